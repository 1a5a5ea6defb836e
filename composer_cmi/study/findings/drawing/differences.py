"""Every seed's difference, of whatever has been compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from composer_cmi.study.findings.analysis import Comparison
from composer_cmi.study.findings.drawing.style import style
from composer_cmi.text import for_matplotlib, told_apart

__all__ = ['paired_differences']

_MOST_PANELS = 12


def paired_differences(comparisons: Sequence[Comparison]) -> Figure | None:
    """Every seed's difference with the mean and the interval that the verdict rests on.

    A panel for each pair of arms with a line a setting, or the other way round where arms are more.
    """
    pairs = list(dict.fromkeys((each.arm, each.baseline) for each in comparisons))
    tables = list(dict.fromkeys(each.table for each in comparisons))
    if not pairs:
        return None
    by_pair, one = len(pairs) <= len(tables), len({baseline for _, baseline in pairs}) == 1
    titles: dict[Any, str] = {pair: _minus(pair) for pair in pairs}
    if not by_pair:
        titles = {name: for_matplotlib(name, longest=44) for name in tables}
    named = {pair: pair[0] if one else f'{pair[0]} - {pair[1]}' for pair in pairs}
    lines: dict[Any, str] = {name: name for name in tables} if by_pair else named
    heads, places = list(titles)[:_MOST_PANELS], list(lines)
    columns = min(3, len(heads))
    rows = math.ceil(len(heads) / columns)
    # A line of names takes the room that it needs once, not in every panel.
    figure = Figure(figsize=(3 + 4 * columns, 1.1 + rows * (1.1 + 0.36 * len(lines))), layout='constrained')
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    jitter = np.random.default_rng(0)
    for panel, head in zip(panels.flat, heads, strict=False):
        for each in comparisons:
            pair = (each.arm, each.baseline)
            if head == (pair if by_pair else each.table):
                _draw_seeds(panel, each, places.index(each.table if by_pair else pair), jitter)
        panel.axvline(0, color='gray', linewidth=1)
        panel.set_title(titles[head], fontsize=10)
        panel.set_xlabel(f'difference in {_unit(comparisons[0])}')
        panel.locator_params(axis='x', nbins=5)
        panel.grid(axis='x', alpha=0.3)
    names = [for_matplotlib(name) for name in told_apart(list(lines.values()), 36)]
    panels[0][0].set_yticks([-i for i in range(len(lines))], names)
    panels[0][0].set_ylim(-len(lines) + 0.35, 0.5)
    if not by_pair and one:
        figure.supylabel(f'minus {for_matplotlib(pairs[0][1], longest=32)}', fontsize=10)
    for panel in panels.flat[len(heads) :]:
        panel.set_axis_off()
    return figure


def _draw_seeds(panel: Axes, each: Comparison, index: int, jitter: np.random.Generator) -> None:
    heights = -index + jitter.uniform(-0.14, 0.14, len(each.differences))
    panel.scatter(each.differences, heights, s=26, alpha=0.55, linewidths=0, **style(index, line=False))
    low, high = each.interval
    if not math.isnan(low):
        panel.plot([low, high], [-index - 0.3] * 2, color='black', linewidth=2.2, solid_capstyle='butt')
    panel.plot(each.difference.mean, -index - 0.3, 'D', color='black', markersize=6)


def _minus(pair: tuple[str, str]) -> str:
    return f'{for_matplotlib(pair[0], longest=44)}\nminus {for_matplotlib(pair[1], longest=44)}'


def _unit(each: Comparison) -> str:
    return f'{for_matplotlib(each.kind.name)}{f" ({each.kind.unit})" if each.kind.unit else ""}'
