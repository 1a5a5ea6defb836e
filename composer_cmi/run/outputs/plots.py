"""``cmi.png``: how loss, score and information went in training, and what the clusters look like at its end."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from composer_cmi.functional import log_distribution
from composer_cmi.run.evaluate import Evaluation
from composer_cmi.run.outputs.files import write_bytes
from composer_cmi.text import for_matplotlib, told_apart

__all__ = ['plot_run', 'project']

# Okabe & Ito's palette, without yellow (unreadable on white); shapes differ as well, for print and for any eye.
_COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#56B4E9', '#E69F00', '#000000')
_MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X', '*')
_MAX_POINTS = 2000
_MAX_NAMES = 50


def project(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Feature distributions and class centroids on the two directions along which the centroids differ most.

    The plane is that of the principal components of the class means of ``log f``, in which squared distances are close
    to twice D times the divergences that CMI averages; with two classes, the second direction is the widest one left.

    Args:
        features: ``[N, D]``.
        labels: ``[N]``, all in ``0..C-1``.
        num_classes: C.

    Returns:
        ``[N, 2]`` points and ``[C, 2]`` centroids (NaN for a class without rows).
    """
    log_f = log_distribution(features).double()
    center = log_f.mean(0)
    rows = log_f - center
    means = torch.full((num_classes, rows.shape[1]), float('nan'), dtype=rows.dtype)
    for label in range(num_classes):
        if (labels == label).any():
            means[label] = rows[labels == label].mean(0)
    known = means[~means.isnan().any(1)]
    directions = torch.linalg.svd(known - known.mean(0), full_matrices=False)
    between = directions.Vh[1e-9 * directions.S.max().clamp(min=1e-30) < directions.S][:2]
    rest = rows - rows @ between.T @ between
    axes = torch.cat([between, torch.linalg.svd(rest, full_matrices=False).Vh[: 2 - len(between)]])
    return rows @ axes.T, means @ axes.T


def plot_run(
    path: str | Path,
    *,
    title: str,
    history: Sequence[Mapping[str, Any]],
    after: Evaluation,
    label_names: Sequence[str],
    score_key: str,
    score_name: str,
    information: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> None:
    """Draw the picture and write it aside, then rename it.

    Args:
        path: ``cmi.png``.
        title: Of the whole figure.
        history: Rows of ``history.csv``.
        after: Of the first evaluation split, after training.
        label_names: Class names by index.
        score_key: The logged name of the score on that split.
        score_name: How the score is called on the axis.
        information: ``{'before' | 'after': {'features' | 'logits': {'cmi': ...}}}``.
    """
    of_split = score_key.rpartition('/')[0]
    # A figure of its own, no pyplot's, so that nothing is left open.
    figure = Figure(figsize=(15, 9.5), layout='constrained')
    above, below = figure.subfigures(2, 1, squeeze=False).flat  # a wide legend below takes nothing from the curves
    nll, score, cmi = above.subplots(1, 3)
    bars, clusters = below.subplots(1, 2, width_ratios=(1, 2.2))
    of_training = 'training rows'
    nll.set_title('NLL')
    _lines(nll, history, {'metrics/train/nll': of_training, f'{of_split}/NegativeLogLikelihood': 'held-out rows'})
    nll.set_ylabel('nats')
    nll.set_ylim(bottom=0)
    score.set_title(for_matplotlib(score_name.replace('_', ' ')))
    _lines(score, history, {f'metrics/train/{score_name}': of_training, score_key: 'held-out rows'})
    score.set_ylabel('share')
    score.set_ylim(min(0.0, score.get_ylim()[0]), 1.02)
    cmi.set_title('CMI  I(X;Z|Y) of the features')
    names = {'metrics/train/cmi': of_training, f'{of_split}/cmi': 'held-out rows'}
    _lines(cmi, history, {**names, 'cmi/cmi': 'running, which the term is set by'})
    cmi.set_ylabel('nats')
    cmi.set_ylim(bottom=0)
    _draw_before_after(bars, information)
    _draw_clusters(clusters, after, label_names)
    figure.suptitle(for_matplotlib(title, longest=110), fontsize=14)
    _save(figure, Path(path))


def _series(history: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    rows = [(row['step'], row[name]) for row in history if name in row]
    return [step for step, _ in rows], [value for _, value in rows]


def _lines(axes: Axes, history: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> None:
    for (key, label), color, style in zip(names.items(), _COLORS, ('--', '-', ':'), strict=False):
        steps, values = _series(history, key)
        if steps:
            marker = 'o' if len(steps) < 30 else None
            axes.plot(steps, values, style, color=color, label=label, marker=marker, markersize=4)
    if axes.lines:
        axes.legend(fontsize=9)
    else:
        axes.text(0.5, 0.5, 'not logged in this run', ha='center', va='center', transform=axes.transAxes)
    axes.set_xlabel('optimizer step')
    axes.margins(y=0.1)
    axes.grid(alpha=0.3)


def _draw_before_after(axes: Axes, information: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    axes.set_title('Held-out information')
    bars = [('features', 'cmi', 'CMI'), ('features', 'mutual_information', 'I(X;Z)')]
    bars += [('logits', 'cmi', 'CMI'), ('logits', 'mutual_information', 'I(X;Z)')]
    for offset, (time, color) in enumerate(zip(('before', 'after'), _COLORS, strict=False)):
        if time not in information:
            continue
        values = [information[time][space][name] for space, name, _ in bars]
        places = [index + 0.4 * (offset - 0.5) for index in range(len(bars))]
        container = axes.bar(
            places, values, 0.38, color=color, hatch=(None, '//')[offset], edgecolor='white', label=time
        )
        axes.bar_label(container, fmt='%.3g', fontsize=8, padding=2)
    axes.set_xticks(range(len(bars)), [f'{name}\n{space}' for space, _, name in bars])
    axes.set_yscale('symlog', linthresh=1e-3)
    # Powers as matplotlib writes them are set in a mathematical font, whose absence it tells in twenty lines.
    axes.yaxis.set_major_formatter('{x:g}')
    axes.yaxis.set_minor_formatter('')
    axes.set_ylabel('nats (log scale)')
    axes.margins(y=0.22)
    axes.legend(fontsize=9, title='training', ncols=2, loc='upper center')


def _draw_clusters(axes: Axes, after: Evaluation, label_names: Sequence[str]) -> None:
    labelled = after.labels >= 0
    features, labels = after.features[labelled], after.labels[labelled]
    axes.set_title('Held-out clusters of feature distributions, and their centroids')
    axes.set_xlabel('first direction of log f')
    axes.set_ylabel('second direction of log f')
    axes.grid(alpha=0.3)
    if len(features) < 3 or features.shape[1] < 2:
        return
    points, centroids = project(features, labels, len(label_names))
    shown = torch.linspace(0, len(points) - 1, min(len(points), _MAX_POINTS)).long()
    few = len(label_names) <= 15
    for index, name in enumerate(told_apart(label_names, 30 if few else 22)):
        mine = shown[labels[shown] == index]
        style: dict[str, Any] = {'color': _COLORS[index % len(_COLORS)], 'marker': _MARKERS[index % len(_MARKERS)]}
        axes.scatter(*points[mine].T.tolist(), s=14, alpha=0.45, linewidths=0, **style)
        x, y = centroids[index].tolist()
        style |= {'label': for_matplotlib(name), 'zorder': 3}
        axes.scatter(x, y, s=170 if few else 80, edgecolors='black', linewidths=1.8 if few else 1.0, **style)
    handles, names = axes.get_legend_handles_labels()
    if len(names) > _MAX_NAMES:  # the others are in the picture, without a name
        names = [*names[: _MAX_NAMES - 1], f'and {len(names) - _MAX_NAMES + 1} more']
    axes.legend(
        handles[: len(names)],
        names,
        title='centroid of',
        fontsize=9 if few else 7,
        markerscale=0.8 if few else 0.5,
        labelspacing=0.9 if few else 0.5,
        ncols=1 if few else 2,
        loc='upper left',
        bbox_to_anchor=(1.01, 1.0),
        borderaxespad=0.0,
    )


def _save(figure: Any, path: Path) -> None:
    picture = io.BytesIO()
    figure.savefig(picture, format='png', dpi=110)
    write_bytes(path, picture.getvalue())
