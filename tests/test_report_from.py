"""`composer-cmi report --from`: scores and predictions of other programs, judged as run folders are."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from composer_cmi.cli import app
from composer_cmi.errors import ConfigError
from composer_cmi.study.findings.analysis import compare
from composer_cmi.study.findings.elsewhere import load_table
from composer_cmi.study.findings.study import SCORE

HEADER = ['setting', 'arm', 'seed', 'score', 'nll']
GAINS = [0.02, 0.015, 0.022, 0.018, 0.03, 0.011]


def write(path: Path, header: list[str], rows: list[list[Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('w', newline='') as file:
        csv.writer(file).writerows([header, *rows])
    return path


def score_rows() -> list[list[Any]]:
    """Six seeds of two settings; `new` gains on the first alone, and its NLL is the score's complement."""
    rows = []
    for setting in ('imdb', 'trec'):
        for seed in range(6):
            base = 0.8 + 0.01 * ((seed * 7) % 5)
            gain = GAINS[seed] if setting == 'imdb' else (-1) ** seed * 0.01
            rows += [[setting, 'old', seed, base, 1 - base], [setting, 'new', seed, round(base + gain, 6), 1 - base]]
    return rows


def test_scores_are_judged_as_scipy_does(tmp_path):
    path = write(tmp_path / 'scores.csv', HEADER, score_rows())
    study = load_table(path)
    assert study.comparisons == [('new', 'old')] and study.arms == ['old', 'new']
    assert 'Compared with old, the first arm that is named (--baseline NAME for another).' in study.remarks
    found = {each.table: each for each in compare(study)[SCORE]}
    old, new = ([100 * row[3] for row in score_rows() if row[:2] == ['imdb', arm]] for arm in ('old', 'new'))
    expected = stats.ttest_rel(new, old)
    assert found['imdb'].p == pytest.approx(expected.pvalue)
    assert found['imdb'].interval == pytest.approx(tuple(expected.confidence_interval()))
    # One family: two settings by two kinds of score, of which the smallest p is this one.
    assert found['imdb'].holm_p == pytest.approx(4 * expected.pvalue)
    assert (found['imdb'].verdict, found['trec'].verdict) == ('gain', 'no evidence of a gain')
    assert found['imdb'].rests_on == 'seeds alone'
    assert study.metrics['nll'].lower_is_better and study.metrics['nll'].unit == 'nats'


def test_the_report_of_scores_has_every_file_and_one_sentence_a_question(tmp_path):
    path = write(tmp_path / 'scores.csv', HEADER, score_rows())
    done = CliRunner().invoke(app, ['report', '--from', str(path)])
    assert done.exit_code == 0, done.output
    assert '* new against old: gain on imdb (+1.93 points [+1.25, +2.62]); no evidence on trec.' in done.output
    out = tmp_path / 'scores_report'
    names = {'report.md', 'report.html', 'report.tex', 'report.json', 'comparisons.csv', 'runs.csv', 'pictures'}
    assert {each.name for each in out.iterdir()} == names
    text = (out / 'report.md').read_text()
    assert '| new | **+1.93 [+1.25, +2.62] gain** | +0.00 [-1.15, +1.15] |' in text
    assert '(pictures/differences_score.png)' in text and 'CMI' not in text.split('How to read')[0]
    latex = (out / 'report.tex').read_text()
    assert r'new & \textbf{+1.93 [+1.25, +2.62] gain} & +0.00 [$-$1.15, +1.15] \\' in latex
    assert latex.count(r'\begin') == latex.count(r'\end') == 2


def test_the_baseline_and_the_direction_are_asked_for(tmp_path):
    rows = [[a, b, c, 100 - 100 * score, 3.5] for a, b, c, score, _ in score_rows()]
    path = write(tmp_path / 'scores.csv', ['setting', 'arm', 'seed', 'score', 'minutes'], rows)
    study = load_table(path, ['new'], ['score'])
    (found, _) = compare(study)[SCORE]
    assert (found.arm, found.baseline, found.verdict) == ('old', 'new', 'loss')
    assert found.difference.mean == pytest.approx(100 * np.mean(GAINS))  # more errors
    assert 'Compared with new, as was asked.' in study.remarks and 'Lower is better: score.' in study.remarks
    with pytest.raises(ConfigError, match="no arm 'older' to compare with"):
        load_table(path, ['older'])
    with pytest.raises(ConfigError, match="no column of scores 'loss'"):
        load_table(path, [], ['loss'])


def changed(rows: list[list[Any]], *changes: tuple[int, int, Any]) -> list[list[Any]]:
    for row, column, value in changes:
        rows[row][column] = value
    return rows


@pytest.mark.parametrize(
    ('changes', 'said'),
    [
        ([(0, 3, 'good')], "line 2: score 'good' is not a number."),
        ([(1, 3, 'nan')], "line 3: score 'nan' is not a finite number."),
        ([(1, 4, '')], 'line 3: nll is empty.'),
        ([(2, 2, '1.5')], "line 4: seed '1.5' is not a whole number from 0."),
        ([(3, 1, ' ')], 'line 5: arm is empty.'),
        ([(2, 2, 0)], "line 4: arm 'old', seed 0 on 'imdb' stands in line 2 already."),
        ([(0, 3, 'a'), (5, 2, 'b'), (6, 3, 'inf')], "line 7: seed 'b' is not a whole number from 0.\n"),
    ],
)
def test_bad_scores_are_refused_by_line(tmp_path, changes, said):
    path = write(tmp_path / 'scores.csv', HEADER, changed(score_rows(), *changes))
    with pytest.raises(ConfigError) as error:
        load_table(path)
    assert said in f'{error.value}\n'
    assert len(str(error.value).splitlines()) == len(changes)
    assert all(line.startswith(f'{path}, line ') for line in str(error.value).splitlines())


def test_bad_tables_are_refused_as_a_whole(tmp_path):
    def refused(header: list[str], rows: list[list[Any]], said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            load_table(write(tmp_path / 'scores.csv', header, rows))

    rows = score_rows()
    refused(
        ['setting', 'model', 'seed', 'score', 'nll'],
        rows,
        "there is no column 'arm'; a table of scores has setting, arm",
    )
    refused(['a', 'b', 'seed', 'score', 'nll'], rows, "there are no columns 'setting', 'arm'")
    refused(HEADER, [], 'header but no rows')
    refused(HEADER, [row for row in rows if row[2] == 0], "line 2: arm 'old' has on 'imdb' one seed only")
    refused(HEADER, [row for row in rows if row[1] == 'old'], 'one arm only')
    refused(HEADER, [[*row[:2], row[2] + 9 * (row[1] == 'old'), *row[3:]] for row in rows], 'nothing to pair')
    refused(HEADER, [[*row[:3], 'x', row[4]] for row in rows * 3], r'\.\.\. and \d+ more in')
    with pytest.raises(ConfigError, match='There is no data file'):
        load_table(tmp_path / 'absent.csv')
    done = CliRunner().invoke(app, ['report'])
    assert done.exit_code == 2


def test_seeds_without_a_pair_are_said(tmp_path):
    rows = [row for row in score_rows() if row[:3] != ['imdb', 'new', 3]]
    study = load_table(write(tmp_path / 'scores.csv', HEADER, rows))
    assert 'imdb: new and old are compared on 5 seeds; not paired: 3.' in study.remarks
    assert compare(study)[SCORE][0].seeds == [0, 1, 2, 4, 5]
