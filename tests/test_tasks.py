from __future__ import annotations

import subprocess
import sys

import pytest

from composer_cmi.data.tasks import Task
from composer_cmi.registry import get_task, known_tasks

GLUE = ['cola', 'mnli', 'mrpc', 'qnli', 'qqp', 'rte', 'sst2', 'wnli']

# The sizes of the GLUE paper's table and the Hub's data card, written down apart from the code.
SIZES = {
    'cola': (8551, 1043, 1063),
    'mnli': (392702, 9815, 9832, 9796, 9847),
    'mrpc': (3668, 408, 1725),
    'qnli': (104743, 5463, 5463),
    'qqp': (363846, 40430, 390965),
    'rte': (2490, 277, 3000),
    'sst2': (67349, 872, 1821),
    'wnli': (635, 71, 146),
}


def test_all_tasks_are_registered():
    assert {*GLUE, 'stsb', 'bbc_headlines', 'bbc_articles', 'custom'} <= set(known_tasks())


@pytest.mark.parametrize('name', GLUE)
def test_glue_tasks_are_complete(name):
    task = get_task(name)
    splits = ('train', *task.eval_splits, *task.test_splits)
    assert tuple(sum(task.published[split].values()) for split in splits) == SIZES[name]
    assert set(task.published['train']) == set(task.label_names)
    assert set(task.submission) == set(task.test_splits)
    assert task.hub == ('nyu-mll/glue', name)
    assert len(task.text_columns) == len(task.layout.text_columns)
    assert task.summary.startswith('GLUE ')


def test_official_metrics():
    metrics = {name: get_task(name).metrics for name in GLUE}
    assert metrics.pop('cola') == ('matthews_correlation',)
    assert metrics.pop('mrpc') == metrics.pop('qqp') == ('f1', 'accuracy')
    assert set(metrics.values()) == {('accuracy',)}


def test_majority_baselines_of_the_literature():
    shares = {}
    for name in ('cola', 'mrpc', 'qnli', 'qqp', 'rte', 'sst2', 'wnli'):
        dev = get_task(name).published['dev']
        shares[name] = round(100 * max(dev.values()) / sum(dev.values()), 1)
    expected = {'cola': 69.1, 'mrpc': 68.4, 'qnli': 50.5, 'qqp': 63.2, 'rte': 52.7, 'sst2': 50.9, 'wnli': 56.3}
    assert shares == expected


def test_wnli_carries_its_caveat():
    assert '40/71 = 56.34' in get_task('wnli').caveat


def test_stsb_is_refused_with_the_reason():
    with pytest.raises(ValueError, match='STS-B asks for a similarity between 0 and 5, a regression'):
        get_task('stsb')


def test_an_unknown_task_lists_the_known_and_the_nearest():
    with pytest.raises(ValueError, match=r"'sst'.* Did you mean 'sst2'\? Known: .*wnli"):
        get_task('sst')


def test_a_task_that_could_not_be_scored_is_refused():
    with pytest.raises(ValueError, match='are unknown; choose from'):
        Task('mine', '', metrics=('bleu',))
    with pytest.raises(ValueError, match="'f1' needs two classes; with more use 'macro_f1'"):
        Task('mine', '', label_names=('a', 'b', 'c'), metrics=('f1',))


def test_listing_tasks_imports_nothing_heavy():
    code = (
        'import sys, composer; before = set(sys.modules); '
        'from composer_cmi.registry import known_tasks; known_tasks(); '
        "new = {m.split('.')[0] for m in set(sys.modules) - before}; print(sorted(new & {'datasets', 'evaluate', "
        "'pyarrow', 'sklearn', 'pydantic'}))"
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == '[]'
