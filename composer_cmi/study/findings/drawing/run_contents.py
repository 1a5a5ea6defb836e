"""What run folders hold beside scores. Each function returns a figure, or None where they do not hold it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from composer_cmi.run.outputs.history import read_history
from composer_cmi.run.outputs.results import load_results
from composer_cmi.study.findings.drawing.style import COLORS, figure_of, style
from composer_cmi.study.findings.runs import Run
from composer_cmi.study.findings.statistics import t_interval
from composer_cmi.study.findings.study import Study
from composer_cmi.text import for_matplotlib, told_apart

__all__ = ['against_weight', 'clusters', 'over_training', 'teacher_and_student']

# Of a grid of arms a picture shows the first ones: more are not told apart.
_MOST_ARMS = 6
_FEW_CLASSES = 15
_MOST_CLASSES = 50
_REGULARISERS = ('cmi_regularization', 'cmi_maximization')


def _mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    interval = t_interval(values)
    return float(np.mean(values)), float(interval.low), float(interval.high)


def _weight(run: Run) -> float | None:
    """Lambda of a run: 0 for plain cross-entropy, None where it is not stated."""
    algorithms = run.results.config.get('algorithms') or {}
    if 'knowledge_distillation' in algorithms:
        return None
    terms = [algorithms[name] for name in _REGULARISERS if name in algorithms]
    return float(terms[0]['weight']) if terms and 'weight' in terms[0] else None if terms else 0.0


def against_weight(study: Study) -> Figure | None:
    """Score and held-out CMI against lambda, one line a setting, mean and 95 % t interval over seeds.

    Each grid of weights is an arm family of its own; the one with most weights is drawn, `ce` as 0.
    """
    families: dict[str, set[float]] = {}
    for run in study.runs:
        weight = _weight(run)
        if weight:
            families.setdefault(run.arm.split(',')[0], set()).add(weight)
    family = max(families, key=lambda name: len(families[name]), default=None)
    if family is None or len(families[family]) < 2:
        return None
    figure, panels = figure_of(1, 2, 12, 4.6)
    score_panel, cmi_panel = panels[0]
    for index, table in enumerate(study.tables):
        by_weight: dict[float, list[Run]] = {}
        for run in study.runs:
            weight = _weight(run)
            if run.setting == table.setting and weight is not None and run.arm.split(',')[0] in (family, 'ce'):
                by_weight.setdefault(weight, []).append(run)
        weights = sorted(by_weight)
        scores = [[run.score(table.split, table.metric) for run in by_weight[w]] for w in weights]
        cmis = [[run.results.cmi['after']['features'].cmi for run in by_weight[w]] for w in weights]
        for panel, values in ((score_panel, scores), (cmi_panel, cmis)):
            means, lows, highs = np.array([_mean_interval(each) for each in values]).T
            panel.plot(weights, means, label=for_matplotlib(table.name), **style(index))
            panel.fill_between(weights, lows, highs, color=COLORS[index % len(COLORS)], alpha=0.15, linewidth=0)
    ticks = [0.0, *sorted(families[family])]
    for panel, label in ((score_panel, 'score (points)'), (cmi_panel, 'held-out CMI, features (nats)')):
        panel.set_xscale('symlog', linthresh=ticks[1])
        panel.set_xticks(ticks, [f'{tick:g}' for tick in ticks])
        panel.minorticks_off()
        panel.set_xlabel(f'lambda of {for_matplotlib(family)} (0 is ce)')
        panel.set_ylabel(label)
        panel.grid(alpha=0.3)
    cmi_panel.set_yscale('log')
    score_panel.legend(fontsize=9)
    return figure


_RUNNING = (
    ('cmi/cmi', 'CMI  I(X;Z|Y) (nats)'),
    ('cmi/mutual_information', 'I(X;Z) (nats)'),
    ('cmi/relative_cmi', 'rho = CMI / I(X;Z)'),
)


def over_training(study: Study, setting: str) -> Figure | None:
    """NLL and CMI of training rows and of held-out ones as logged in training, an arm a line, mean over the seeds.

    Of runs that logged none of it, those of an earlier version, what the term of CMI runs was measured by.
    """
    histories = {
        arm: [
            read_history(run.folder / 'history.csv')
            for run in study.of(setting, arm).values()
            if (run.folder / 'history.csv').is_file()
        ]
        for arm in study.arms[:_MOST_ARMS]
    }
    split = next(table.split for table in study.tables if table.setting == setting)
    curves = (
        ('metrics/train/nll', 'NLL, training rows (nats)'),
        (f'metrics/{split}/NegativeLogLikelihood', 'NLL, held-out rows (nats)'),
        ('metrics/train/cmi', 'CMI, training rows (nats)'),
        (f'metrics/{split}/cmi', 'CMI, held-out rows (nats)'),
    )
    logged = {key for found in histories.values() for history in found for row in history for key in row}
    # Runs that are evaluated at their end alone have no curves of held-out rows.
    if there := [curve for curve in curves if curve[0] in logged]:
        title = f'{for_matplotlib(setting)}: mean over seeds'
        return _curves(histories, there, title, 2 if len(there) == len(curves) else len(there))
    title = f'{for_matplotlib(setting)}: running class centroids of the training batches, mean over seeds'
    return _curves(histories, _RUNNING, title, 3)


def _curves(
    histories: Mapping[str, Sequence[list[dict[str, Any]]]], curves: Sequence[tuple[str, str]], title: str, columns: int
) -> Figure | None:
    rows = math.ceil(len(curves) / columns)
    figure, panels = figure_of(rows, columns, 1 + 4.4 * columns, 0.8 + 3.8 * rows)
    drawn = False
    for index, (arm, found) in enumerate(histories.items()):
        for panel, (key, _) in zip(panels.flat, curves, strict=True):
            steps, means = _mean_curve(found, key)
            if len(steps):
                look = {**style(index), 'markevery': max(1, len(steps) // 8)}
                panel.plot(steps, means, label=f'{for_matplotlib(arm)} ({len(found)} seeds)', markersize=5, **look)
                drawn = True
    if not drawn:
        return None
    for panel, (_, label) in zip(panels.flat, curves, strict=True):
        panel.set_xlabel('optimizer step')
        panel.set_ylabel(label)
        panel.margins(y=0.1)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    named = max(panels.flat, key=lambda panel: len(panel.lines))
    handles, names = named.get_legend_handles_labels()
    figure.legend(
        handles, names, fontsize=9, ncols=min(3, columns), loc='outside lower center'
    )  # inside it would hide curves
    figure.suptitle(title, fontsize=11)
    return figure


def _mean_curve(histories: Sequence[list[dict[str, Any]]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the runs at the steps that all of them logged."""
    curves = [{row['step']: row[key] for row in history if isinstance(row.get(key), float)} for history in histories]
    curves = [curve for curve in curves if curve]
    if not curves:
        return np.array([]), np.array([])
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    return np.array(steps), np.array([np.mean([curve[step] for curve in curves]) for step in steps])


def teacher_and_student(study: Study) -> Figure | None:
    """Held-out CMI of each teacher in logit space against the score of its student, where students are distilled."""
    by_folder = {run.folder.resolve(): run for run in study.runs}
    figure, panels = figure_of(1, 1, 7, 4.8)
    panel: Axes = panels[0][0]
    drawn = False
    for index, arm in enumerate(study.arms):
        points = []
        for run in (run for run in study.runs if run.arm == arm):
            teacher = _teacher_of(run, by_folder)
            if teacher is not None:
                points.append((teacher, run.results.primary_score * 100))
        if points:
            panel.scatter(
                *zip(*points, strict=True), s=42, alpha=0.8, label=for_matplotlib(arm), **style(index, line=False)
            )
            drawn = True
    if not drawn:
        return None
    panel.set_xlabel('held-out CMI of the teacher, logits (nats)')
    panel.set_ylabel('score of the student (points)')
    panel.grid(alpha=0.3)
    panel.legend(fontsize=9, loc='center left', bbox_to_anchor=(1.01, 0.5))  # outside: the points are many
    return figure


def _teacher_of(run: Run, by_folder: dict[Any, Run]) -> float | None:
    teacher = ((run.results.config.get('algorithms') or {}).get('knowledge_distillation') or {}).get('teacher')
    if not isinstance(teacher, str):
        return None
    # The path is as the run was given it, relative to where the study was started: match it by its end as well.
    parts = teacher.replace('\\', '/').split('/')[-3:]
    for folder, candidate in by_folder.items():
        if list(folder.parts[-3:]) == parts:
            return candidate.results.cmi['after']['logits'].cmi
    results = load_results(teacher)
    return None if results is None else results.cmi['after']['logits'].cmi


def clusters(study: Study, setting: str, split: str) -> Figure | None:
    """Clusters of f_x with their centroids, arms side by side in one projection, of the first seed with features.

    Reads `features_{split}.npz` (`composer_cmi.run.outputs.files.write_features`) of the run folders. The plane is
    that of the two leading directions of the arms' class means of log f, after each arm's own mean is taken off.
    """
    for seed in sorted({run.seed for run in study.runs if run.setting == setting}):
        stored = {arm: study.of(setting, arm).get(seed) for arm in study.arms}
        files = {arm: run.folder / f'features_{split}.npz' for arm, run in stored.items() if run is not None}
        there = [(arm, path) for arm, path in files.items() if path.is_file()]
        loaded = {arm: np.load(path) for arm, path in there[:_MOST_ARMS]}
        if loaded:
            # Arms of other widths lie in no plane with the first one.
            width = next(iter(loaded.values()))['features'].shape[1]
            loaded = {arm: each for arm, each in loaded.items() if each['features'].shape[1] == width}
            break
    else:
        return None
    log_f = {arm: _centred_log_f(arrays['features']) for arm, arrays in loaded.items()}
    labels = {arm: np.asarray(arrays['labels']) for arm, arrays in loaded.items()}
    names = next(iter(loaded.values()))['label_names']
    few = len(names) <= _FEW_CLASSES
    shown = told_apart([str(name) for name in names], 30 if few else 22)
    classes = sorted({int(label) for each in labels.values() for label in each if label >= 0})
    means = np.concatenate(
        [[log_f[a][labels[a] == c].mean(0) for c in classes if (labels[a] == c).any()] for a in log_f]
    )
    axes = np.linalg.svd(means, full_matrices=False)[2][:2]
    columns = 2 if len(log_f) == 4 else min(3, len(log_f))
    lines = math.ceil(len(log_f) / columns)
    figure, panels = figure_of(lines, columns, 1 + 4.4 * columns, 0.4 + 4.4 * lines)
    projected = {arm: rows @ axes.T for arm, rows in log_f.items()}
    # One scale for all arms: how large the clusters are is what the picture is about.
    low, high = (edge(np.concatenate(list(projected.values())), axis=0) for edge in (np.min, np.max))
    margin = 0.04 * (high - low)
    for panel, (arm, points) in zip(panels.flat, projected.items(), strict=False):
        for index, label in enumerate(classes):
            mine = points[labels[arm] == label]
            if len(mine):
                panel.scatter(*mine.T, s=9, alpha=0.35, linewidths=0, **style(index, line=False))
                look = {**style(index, line=False), 'label': for_matplotlib(shown[label])}
                size, edge_width = (130, 1.5) if few else (60, 0.8)
                panel.scatter(*mine.mean(0), s=size, edgecolors='black', linewidths=edge_width, zorder=3, **look)
        panel.set_title(f'{for_matplotlib(arm)}, seed {seed}', fontsize=10)
        panel.set_xlabel('first direction of log f')
        panel.locator_params(axis='x', nbins=4)
        panel.set_xlim(low[0] - margin[0], high[0] + margin[0])
        panel.set_ylim(low[1] - margin[1], high[1] + margin[1])
        panel.grid(alpha=0.3)
    for panel in panels.flat[len(log_f) :]:
        panel.set_axis_off()
    for panel in panels[:, 0]:
        panel.set_ylabel('second direction of log f')
    handles, labelled = panels[0][0].get_legend_handles_labels()
    if len(labelled) > _MOST_CLASSES:  # the others are in the picture, without a name
        labelled = [*labelled[: _MOST_CLASSES - 1], f'and {len(labelled) - _MOST_CLASSES + 1} more']
    figure.legend(
        handles[: len(labelled)],
        labelled,
        fontsize=8 if few else 7,
        markerscale=1.0 if few else 0.6,
        title='centroid of',
        ncols=1 if len(labelled) <= 25 * lines else 2,
        loc='outside right upper',
    )
    return figure


def _centred_log_f(features: np.ndarray) -> np.ndarray:
    rows = features.astype(np.float64)
    rows = rows - rows.max(1, keepdims=True)
    rows = rows - np.log(np.exp(rows).sum(1, keepdims=True))
    return rows - rows.mean(0)
