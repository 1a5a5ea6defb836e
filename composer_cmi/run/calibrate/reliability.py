"""How far probabilities can be believed: numbers before and after, a sentence, and a diagram with its intervals."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use('Agg')

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from composer_cmi.run.calibrate.temperature import divided
from composer_cmi.run.evaluate import Evaluation
from composer_cmi.run.outputs.files import write_bytes
from composer_cmi.run.outputs.results import Calibration, Reliability
from composer_cmi.run.scoring import CalibrationError, NegativeLogLikelihood, brier_score
from composer_cmi.text import for_matplotlib

__all__ = ['calibration_of', 'describe', 'plot_reliability', 'reliability', 'wilson']


def reliability(evaluation: Evaluation) -> Reliability:
    """Of the labelled rows."""
    nll, ece = NegativeLogLikelihood(), CalibrationError()
    for metric in (nll, ece):
        metric.update(evaluation.logits, evaluation.labels)
    count, confidence, right = ece.sums
    return Reliability(
        nll=float(nll.compute()),
        ece=float(ece.compute()),
        brier=brier_score(evaluation.logits, evaluation.labels),
        rows=count.long().tolist(),
        confidence=(confidence / count.clamp(min=1)).tolist(),
        right=right.long().tolist(),
    )


def calibration_of(temperature: float, rows: int, raw: Mapping[str, Evaluation]) -> Calibration:
    """What a temperature changes on each split that has labels, given the answers without it."""
    return Calibration(
        temperature=temperature,
        rows=rows,
        splits={
            name: {'before': reliability(part), 'after': reliability(divided(part, temperature))}
            for name, part in raw.items()
            if bool((part.labels >= 0).any())
        },
    )


def describe(calibration: Calibration) -> list[str]:
    """A sentence for each split, for the card and the terminal."""
    first = f'Temperature {calibration.temperature:.3g}, fitted on {calibration.rows:,} rows kept out of training'
    return [
        f'{first}; {name}: '
        + ', '.join(
            f'{label} {getattr(parts["before"], key):.4f} -> {getattr(parts["after"], key):.4f}'
            for key, label in (('nll', 'NLL'), ('ece', 'ECE'), ('brier', 'Brier score'))
        )
        + '.'
        for name, parts in calibration.splits.items()
    ]


def wilson(right: int, rows: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (Wilson 1927)."""
    z, share = 1.959964, right / rows
    middle = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    return max(0.0, middle - half), min(1.0, middle + half)


def plot_reliability(path: str | Path, title: str, calibration: Calibration) -> None:
    """Accuracy by confidence of the first split, before and after, with 95 % intervals and the number of rows."""
    parts = next(iter(calibration.splits.values()))
    figure, axes = plt.subplots(
        2, 2, figsize=(10, 6.5), sharex=True, sharey='row', gridspec_kw={'height_ratios': (4, 1)}
    )
    try:
        for column, (when, part) in enumerate(parts.items()):
            temperature = calibration.temperature if when == 'after' else 1.0
            _draw(axes[0][column], axes[1][column], part, f'{when}: temperature {temperature:.3g}')
        figure.suptitle(for_matplotlib(title, longest=110), fontsize=14)
        figure.tight_layout(rect=(0, 0, 1, 0.96))
        picture = io.BytesIO()
        figure.savefig(picture, format='png', dpi=110)
        write_bytes(path, picture.getvalue())
    finally:
        plt.close(figure)


def _draw(top: Axes, bottom: Axes, part: Reliability, title: str) -> None:
    places = [place for place, rows in enumerate(part.rows) if rows]
    x = [part.confidence[place] for place in places]
    share = [part.right[place] / part.rows[place] for place in places]
    ends = [wilson(part.right[place], part.rows[place]) for place in places]
    errors = [[max(0.0, y - low) for y, (low, _) in zip(share, ends, strict=True)]]
    errors += [[max(0.0, high - y) for y, (_, high) in zip(share, ends, strict=True)]]
    top.plot([0, 1], [0, 1], '--', color='#777777', label='as sure as right')
    top.errorbar(x, share, yerr=errors, fmt='o', color='#0072B2', capsize=3, label='share of right answers, 95 %')
    top.set_title(f'{title}\nNLL {part.nll:.4f}, ECE {part.ece:.4f}, Brier score {part.brier:.4f}', fontsize=11)
    top.set_ylim(-0.02, 1.02)
    top.set_ylabel('share of right answers')
    top.legend(fontsize=9, loc='upper left')
    width = 1 / len(part.rows)
    bottom.bar([(place + 0.5) * width for place in range(len(part.rows))], part.rows, 0.9 * width, color='#56B4E9')
    bottom.set_ylabel('rows')
    bottom.set_xlabel('probability of the answer')
    bottom.set_xlim(0, 1)
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
