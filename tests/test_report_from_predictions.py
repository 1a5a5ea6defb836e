"""`report --from` on predictions: files that scikit-learn's classifiers make, and those of a model that only answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss

from composer_cmi.errors import ConfigError
from composer_cmi.study.findings.analysis import compare
from composer_cmi.study.findings.crossed import crossed
from composer_cmi.study.findings.elsewhere import load_table
from composer_cmi.study.findings.study import SCORE
from test_report_from import write

KEYS = ['setting', 'arm', 'seed', 'id', 'label']
CLASSES = ['setosa', 'versicolor', 'virginica']


@pytest.fixture(scope='module')
def iris() -> dict[tuple[str, int], tuple[np.ndarray, np.ndarray]]:
    """Labels and probabilities of 110 held-out flowers by arm and seed; `strong` hardly fits."""
    data = load_iris()
    order = np.random.default_rng(0).permutation(150)
    test = order[40:]
    found = {}
    for arm, c in (('plain', 1.0), ('strong', 0.001)):
        for seed in range(5):
            train = np.random.default_rng(seed).choice(order[:40], 30, replace=False)
            model = LogisticRegression(C=c, max_iter=300).fit(data.data[train], data.target[train])
            found[arm, seed] = (data.target[test], model.predict_proba(data.data[test]))
    return found


def rows_of(iris, prefix: bool = True) -> list[list[Any]]:
    return [
        ['iris', arm, seed, f'flower{i}', CLASSES[label], *map(float, p)]
        for (arm, seed), (labels, probabilities) in iris.items()
        for i, (label, p) in enumerate(zip(labels, probabilities, strict=True))
    ]


@pytest.mark.parametrize('prefix', ['p_', 'prob_', ''])
def test_predictions_of_scikit_learn_score_as_it_says(tmp_path, iris, prefix):
    study = load_table(write(tmp_path / 'predictions.csv', [*KEYS, *(prefix + c for c in CLASSES)], rows_of(iris)))
    for arm in ('plain', 'strong'):
        for seed, run in study.of('iris', arm).items():
            labels, probabilities = iris[arm, seed]
            accuracy = accuracy_score(labels, probabilities.argmax(1))
            assert run.score('reported', 'accuracy') == pytest.approx(100 * accuracy, abs=1e-3)
            assert run.score('reported', 'nll') == pytest.approx(log_loss(labels, probabilities), rel=1e-5)
    found = compare(study)
    right = {key: labels == probabilities.argmax(1) for key, (labels, probabilities) in iris.items()}
    table = np.array([100.0 * right['strong', seed] - 100.0 * right['plain', seed] for seed in range(5)])
    (by_score,) = found[SCORE]
    assert by_score.rests_on == 'seeds and rows'
    assert by_score.p == pytest.approx(float(crossed(table).p), rel=1e-6)
    assert by_score.mcnemar[0].only_baseline == int((right['plain', 0] & ~right['strong', 0]).sum())
    assert found['nll'][0].verdict == 'loss'


def test_a_folder_names_its_runs_by_its_paths(tmp_path, iris):
    for (arm, seed), (labels, probabilities) in iris.items():
        rows = [[i, CLASSES[y], *map(float, p)] for i, (y, p) in enumerate(zip(labels, probabilities, strict=True))]
        write(tmp_path / 'all' / 'iris' / arm / f'seed{seed}.csv', ['row', 'label', *(f'p_{c}' for c in CLASSES)], rows)
    study = load_table(tmp_path / 'all')
    assert {(run.setting, run.arm, run.seed) for run in study.runs} == {('iris', *key) for key in iris}
    (tmp_path / 'all' / 'iris' / 'plain' / 'seed0.csv').unlink()
    assert 'iris: strong and plain are compared on 4 seeds; not paired: 0.' in load_table(tmp_path / 'all').remarks


def test_answers_alone_are_scored_and_strange_ones_are_wrong(tmp_path):
    rows = []
    for arm, right in (('small', 60), ('large', 90)):
        rows += [
            ['qa', arm, 0, i, 'yes', 'yes' if i < right else 'I cannot say' if i == 119 else 'no'] for i in range(120)
        ]
    study = load_table(write(tmp_path / 'answers.csv', [*KEYS, 'prediction'], rows))
    assert study.of('qa', 'large')[0].score('reported', 'accuracy') == pytest.approx(75)
    (found,) = compare(study)[SCORE]
    assert found.mcnemar[0].only_arm == 30 and found.verdict.startswith('no evidence')  # of one seed
    assert set(compare(study)) == {SCORE}
    assert any('no label count as wrong: I cannot say, no' in remark for remark in study.remarks)
    assert any(remark.startswith('One seed') for remark in study.remarks)


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        (lambda rows: rows[3].__setitem__(5, 0.99), 'line 5: the probabilities add up to'),
        (lambda rows: rows[3].__setitem__(5, -0.2), "line 5: the probability of 'setosa' is -0.2, not between 0 and 1"),
        (lambda rows: rows[3].__setitem__(6, 'x'), "line 5: p_versicolor 'x' is not a number."),
        (lambda rows: rows[3].__setitem__(4, 'rose'), "line 5: label 'rose' has no probability; there are those of setosa"),
        (lambda rows: rows[3].__setitem__(3, 'flower0'), "line 5: row 'flower0' of arm 'plain', seed 0 on 'iris' stands in line 2 "),
        (lambda rows: rows.pop(-1), "arm 'strong', seed 4 on 'iris' has no row 'flower109', which arm 'plain', seed 0 on 'iris' has"),
        (lambda rows: rows[130].__setitem__(4, other(rows[130][4])), "line 132: label '"),
        (lambda rows: rows[3].__setitem__(5, ''), 'has probabilities of other classes than'),
    ],
)  # fmt: skip
def test_bad_predictions_are_refused_by_line(tmp_path, iris, change, said):
    rows = rows_of(iris)
    if said.startswith("line 5: label 'rose'") or 'other classes' in said:
        rows[3][4:8] = ['virginica', 0.0, 0.5, 0.5]
    change(rows)
    with pytest.raises(ConfigError) as error:
        load_table(write(tmp_path / 'predictions.csv', [*KEYS, *(f'p_{c}' for c in CLASSES)], rows))
    assert said in str(error.value)


def other(label: str) -> str:
    return CLASSES[(CLASSES.index(label) + 1) % 3]


def test_predictions_without_what_was_predicted_are_refused(tmp_path, iris):
    rows = [row[:5] for row in rows_of(iris)]
    with pytest.raises(
        ConfigError, match="there is no column 'prediction'; predictions have setting, arm, seed, row, label"
    ):
        load_table(write(tmp_path / 'predictions.csv', KEYS, rows))
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ConfigError, match=r'no file of predictions \(\*\.csv'):
        load_table(tmp_path / 'empty')


def test_probabilities_of_zero_are_said(tmp_path):
    rows: list[list[Any]] = []
    for arm in ('a', 'b'):
        for seed in range(3):
            rows += [
                ['s', arm, seed, i, 'xy'[i % 2], *([1.0, 0.0] if (i + seed) % 3 else [0.4, 0.6])] for i in range(100)
            ]
    study = load_table(write(tmp_path / 'p.csv', [*KEYS, 'x', 'y'], rows))
    assert any('probabilities below 1e-07 count as 1e-07 in NLL' in remark for remark in study.remarks)
    assert all(np.isfinite(run.score('reported', 'nll')) for run in study.runs)


def test_unequal_columns_of_a_path_say_what_is_wanted(tmp_path):
    write(Path(tmp_path / 'f' / 'x.csv'), ['row', 'label', 'prediction'], [[0, 'a', 'a']])
    with pytest.raises(
        ConfigError, match=r"there are no columns 'setting', 'arm', 'seed'; a file has .* SETTING/ARM/seed0\.csv"
    ):
        load_table(tmp_path / 'f')
