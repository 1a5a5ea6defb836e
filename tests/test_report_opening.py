"""What stands first in a report can be read, however many arms and settings there are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from composer_cmi.pages import Bold
from composer_cmi.study.findings.analysis import compare
from composer_cmi.study.findings.drawing.differences import paired_differences
from composer_cmi.study.findings.elsewhere import load_table
from composer_cmi.study.findings.opening import overview, sentences
from composer_cmi.study.findings.study import SCORE, Study
from composer_cmi.text import for_latex, told_apart
from test_report_from import write


def study_of(path: Path, arms: int, settings: int, gains: int) -> Study:
    draw = np.random.default_rng(0)
    rows = [['setting', 'arm', 'seed', 'score']]
    for setting in range(settings):
        for arm in range(arms):
            gain = 0.05 if 0 < arm <= gains else -0.05 if arm == arms - 1 else 0
            values = 0.8 + gain + draw.normal(0, 0.004, 8)
            rows += [
                [f'set{setting}', f'an arm with a name, variant {arm}', seed, value]
                for seed, value in enumerate(values)
            ]
    return load_table(write(path / 'scores.csv', rows[0], rows[1:]))


@pytest.mark.parametrize(('arms', 'settings', 'gains'), [(2, 1, 1), (3, 6, 1), (50, 4, 5), (50, 2, 40)])
def test_one_short_sentence_a_question_whatever_their_number(tmp_path, arms, settings, gains):
    study = study_of(tmp_path, arms, settings, gains)
    found = compare(study)[SCORE]
    told = sentences(study, found, study.metrics[SCORE])
    assert len(told) <= 14 and max(map(len, told)) < 260
    text = ' '.join(told)
    assert f'and {settings - 3} more' in text if settings > 3 else 'more' not in told[0]
    if arms == 50:
        assert 'No evidence of a gain over an arm with a name, variant 0' in text
        assert ('more arms gain or lose somewhere' in text) == (gains == 40)
    table = overview(study, found)
    assert len(table.rows) == arms and len(table.header) == settings + 1
    bold = [cell for row in table.rows for cell in row if isinstance(cell, Bold)]
    assert len(bold) == sum(each.verdict in ('gain', 'loss') for each in found)
    assert all(cell.endswith(('gain', 'LOSS')) for cell in bold)


def test_many_arms_are_lines_of_a_panel_and_not_panels(tmp_path):
    found = compare(study_of(tmp_path, 50, 2, 1))[SCORE]
    figure = paired_differences(found)
    assert figure is not None and len(figure.axes) == 2
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len({*names}) == 49
    few = paired_differences([each for each in found if each.arm.endswith(' 1')])
    assert few is not None and [len(few.axes), len(few.axes[0].get_yticks())] == [1, 2]


def test_long_names_are_cut_where_they_are_alike():
    names = [f'the very long beginning of all names, number {i} of the kind' for i in (1, 22)]
    shown = told_apart([*names, 'short'], 30)
    assert shown[2] == 'short' and max(map(len, shown)) <= 30
    assert '1' in shown[0] and '22' in shown[1] and shown[0].startswith('the very')
    assert told_apart(['x' * 99, 'x' * 98], 20)[0].count('…') == 1
    assert len(told_apart(['q' * 99], 20)[0]) == 20 and told_apart([], 5) == []


def test_latex_shows_text_as_it_is():
    assert for_latex('a_b & 50 % {x} \\cmd #1 $2 ~^') == (
        r'a\_b \& 50 \% \{x\} \textbackslash{}cmd \#1 \$2 \textasciitilde{}\textasciicircum{}'
    )
