"""One look of all pictures of a report."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

__all__ = ['COLORS', 'figure_of', 'style']

# Okabe & Ito's palette without yellow; marks and dashes differ too, for print and for every eye.
COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#56B4E9', '#E69F00', '#000000')
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X', '*')  # one more than colours: 56 looks before one comes again
DASHES = ('-', '--', ':', '-.', (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))


def figure_of(rows: int, columns: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    """A figure and its panels, a matrix of axes; size in inches."""
    figure = Figure(figsize=(width, height), layout='constrained')
    return figure, figure.subplots(rows, columns, squeeze=False)


def style(index: int, line: bool = True) -> dict[str, Any]:
    """Colour, mark and dashes of the curve or the points of one number."""
    look: dict[str, Any] = {'color': COLORS[index % len(COLORS)], 'marker': MARKERS[index % len(MARKERS)]}
    return {**look, 'linestyle': DASHES[index % len(DASHES)]} if line else look
