"""The reliability diagram: how often answers of each probability are right, with intervals."""

from __future__ import annotations

import io
import math
from pathlib import Path

import matplotlib

matplotlib.use('Agg')

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from composer_cmi.run.outputs.files import write_bytes
from composer_cmi.run.outputs.results import Calibration, Reliability
from composer_cmi.text import for_matplotlib

__all__ = ['plot_reliability', 'wilson']


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
