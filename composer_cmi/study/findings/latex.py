"""The first table of a report for a paper: `report.tex`, which a document takes in."""

from __future__ import annotations

import re
from collections.abc import Sequence

from composer_cmi.pages import Bold
from composer_cmi.study.findings.analysis import Comparison
from composer_cmi.study.findings.opening import overview
from composer_cmi.study.findings.study import Study
from composer_cmi.text import for_latex

__all__ = ['to_latex']


def to_latex(study: Study, found: Sequence[Comparison]) -> str:
    """Arms down, settings across, differences with their intervals; verdicts in bold."""
    table = overview(study, found)
    columns = 'l' * table.words + 'r' * (len(table.header) - table.words)
    rows = [
        ' & '.join([*map(for_latex, row[: table.words]), *map(_numbers, row[table.words :])]) + r' \\'
        for row in table.rows
    ]
    caption = (
        f'{study.name}: differences to the baseline, mean over the paired seeds with 95 % intervals; bold: proven '
        'below a corrected p of 0.05 (Holm, over the whole study).'
    )
    return '\n'.join(
        [
            r'% \usepackage[T1]{fontenc} and \usepackage{booktabs}; \input this file.',
            r'\begin{table}',
            r'\centering',
            rf'\begin{{tabular}}{{{columns}}}',
            r'\toprule',
            ' & '.join(map(for_latex, table.header)) + r' \\',
            r'\midrule',
            *rows,
            r'\bottomrule',
            r'\end{tabular}',
            rf'\caption{{{for_latex(caption)}}}',
            r'\end{table}',
            '',
        ]
    )


def _numbers(text: str) -> str:
    shown = re.sub(r'-(?=\d)', '$-$', for_latex(text))
    return rf'\textbf{{{shown}}}' if isinstance(text, Bold) else shown
