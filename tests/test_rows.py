"""Rows out of Python lists: the same texts, keys, tokens and batches as before, in pieces and in mapped files."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from composer.utils import dist
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizerFast

from composer_cmi.data import encoding
from composer_cmi.data.batches import TrainSampler
from composer_cmi.data.encoding import tokenize
from composer_cmi.data.readers import DataError
from composer_cmi.data.rows import columns, pieces
from composer_cmi.data.rows.columns import Texts, repr_of_all, together
from composer_cmi.data.rows.machine import open_splits, shared, store_splits
from composer_cmi.data.source import read_unlabelled
from composer_cmi.data.splits import Split, concatenate, fingerprint, take
from composer_cmi.data.task_data import load_task_data
from composer_cmi.data.tasks import Task

ANYTHING = st.lists(st.text(st.sampled_from('ab\'"\\\n\x1e\x85é😀'), max_size=4), max_size=9)


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(columns, 'PIECE', 2)
    monkeypatch.setattr(columns.Texts.pieces, '__defaults__', (2,))
    monkeypatch.setattr(encoding, '_PIECE', 5)
    monkeypatch.setattr(encoding, '_CALL', 3)


def split_of(columns):
    numbers = np.arange(len(columns[0]), dtype=np.int64)
    return Split(columns, numbers % 2, numbers + 7)


# --- texts ------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(ANYTHING, ANYTHING, st.integers(1, 4))
def test_texts_are_a_list_of_strings(first, second, size):
    some = together([Texts(first), Texts(second)])
    everything = first + second
    assert some == everything and Texts(everything) == some and some != [*everything, 'x'] and len(some) == len([*some])
    assert [text for piece in some.pieces(size) for text in piece] == everything
    assert some[1:-1] == everything[1:-1] and all(some[i] == text for i, text in enumerate(everything))
    order = np.random.default_rng(0).permutation(len(everything))
    assert some.take(order) == [everything[i] for i in order]


@settings(max_examples=80, deadline=None)
@given(ANYTHING, st.integers(1, 4))
def test_fingerprints_are_those_of_earlier_versions(rows, size):
    """Of runs and of stored tokens and logits: they were made of one string of all rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Texts.pieces, '__defaults__', (size,))
        assert ''.join(repr_of_all(Texts(rows))) == repr('\x1e'.join(rows))
        for split in (split_of([rows]), split_of([rows, rows[::-1]])):
            whole = '\x1e'.join(map('\x1f'.join, zip(*split.texts, strict=True)))
            digest = hashlib.sha256(whole.encode())
            digest.update(split.labels.tobytes() + split.example_ids.tobytes() + b'\x00')
            assert fingerprint(split) == digest.hexdigest()[:16]
            assert fingerprint(split.joined(), 'x') == fingerprint(whole, 'x')


@pytest.mark.parametrize(('rows', 'fault'), [(['a', None], 'missing'), ([1], 'got'), (['\ud800'], 'surrogates')])
def test_rows_that_are_no_text_are_refused(rows, fault):
    with pytest.raises(DataError, match=f'must be Unicode text.*{fault}'):
        Split((rows,), np.zeros(len(rows)), np.arange(len(rows)))


# --- files in pieces --------------------------------------------------------------------------------------------------

OWN = Task('custom', '', ('text',), ('a', 'b'))
CONTENTS = {
    'more.txt': 'one\n\ntwo\r\n three \nfour\nfive\n',
    'more.csv': 'label,text\n1,one\n,"two"\n2,three\n3,four\n4,five\n',
    'more.jsonl': ''.join(json.dumps({'text': text}) + '\n' for text in ('one', 'two', 'three', 'four', 'five')),
}


@pytest.mark.parametrize('name', CONTENTS)
def test_unlabelled_rows_are_the_same_in_any_pieces(tmp_path, monkeypatch, name):
    (tmp_path / name).write_text(CONTENTS[name], newline='')
    monkeypatch.setattr(pieces.read_pieces, '__defaults__', (2,))
    split = read_unlabelled(OWN, tmp_path / name, 40)
    assert split.texts == (['one', 'two', 'three', 'four', 'five'],) and split.example_ids.tolist() == [*range(40, 45)]
    assert split.labels.tolist() == [-100] * 5


def test_faults_of_all_pieces_are_told_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(pieces.read_pieces, '__defaults__', (2,))
    rows = [{'text': 'a'}, {'text': ''}, {'other': 1}, {'other': 2}, {'text': 3}]
    (tmp_path / 'x.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    with pytest.raises(DataError) as error:
        read_unlabelled(OWN, tmp_path / 'x.jsonl', 0)
    told = str(error.value).split('\n')
    assert [line.split(': ')[0].split()[-1] for line in told] == ['2', '3', '4', '5']
    assert 'empty' in told[0] and 'missing' in told[1] and 'missing' in told[2] and 'a int' in told[3]


def test_unlabelled_rows_take_little_memory(tmp_path):
    """Of short texts: 120 bytes a row, where Python's strings and lists took 400 and more."""
    count = 40_000
    (tmp_path / 'more.txt').write_text(''.join(f'a text of about thirty letters {i}\n' for i in range(count)))
    read_unlabelled(OWN, tmp_path / 'more.txt', 0)  # what is imported and made once
    import pyarrow as pa

    before = pa.total_allocated_bytes()
    tracemalloc.start()
    split = read_unlabelled(OWN, tmp_path / 'more.txt', 0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(split) == count
    assert pa.total_allocated_bytes() - before < 120 * count and peak < 10_000_000


# --- tokens -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tokenizer(tmp_path):
    (tmp_path / 'vocab.txt').write_text('\n'.join(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *'abcdefgh']))
    return BertTokenizerFast(str(tmp_path / 'vocab.txt'))


def test_tokens_are_the_same_in_any_pieces_and_from_the_file(tmp_path, tokenizer, small_pieces):
    rows = [' '.join('abcdefgh'[: 1 + i % 8]) for i in range(23)]
    split = split_of([rows, rows[::-1]])
    expected = tokenizer(rows, rows[::-1], truncation=True, max_length=9)
    made, read = (tokenize(split, tokenizer, max_length=9, cache_dir=tmp_path / 'cache') for _ in range(2))
    for encoded in (made, read):
        assert encoded.lengths.tolist() == [len(ids) for ids in expected['input_ids']]
        for i in range(23):
            assert encoded[i]['input_ids'].tolist() == expected['input_ids'][i]
            assert encoded[i]['token_type_ids'].tolist() == expected['token_type_ids'][i]
    assert len(made._tokens) == 5 and not read._tokens[0].values['input_ids'].flags.owndata


def test_the_order_of_an_epoch_is_a_sort_by_length_within_groups_of_fifty_batches():
    def written_out(sampler):
        rng = np.random.default_rng([sampler.seed, sampler.epoch])
        order = np.resize(rng.permutation(len(sampler.lengths)), sampler.total_size)
        if not sampler.group_by_length:
            return order.reshape(sampler.num_batches, sampler.batch_size)
        size = 50 * sampler.batch_size
        groups = [order[start : start + size] for start in range(0, len(order), size)]
        order = np.concatenate([group[np.argsort(sampler.lengths[group], kind='stable')] for group in groups])
        return order.reshape(sampler.num_batches, sampler.batch_size)[rng.permutation(sampler.num_batches)]

    lengths = np.random.default_rng(0).integers(3, 60, size=1003)
    for rows in (1, 5, 12, 600, 601, 1003):
        for grouped in (True, False):
            sampler = TrainSampler(lengths[:rows], 12, 3, num_replicas=1, rank=0, group_by_length=grouped)
            for epoch in (0, 1):
                sampler.set_epoch(epoch)
                assert np.array_equal(sampler.global_batches(), written_out(sampler))
                assert [*sampler] == written_out(sampler).reshape(-1).tolist()


# --- one copy a machine -----------------------------------------------------------------------------------------------


def mapped(numbers):
    """What an array is a part of."""
    return numbers.base.base


def test_stored_splits_are_the_splits_and_follow_each_other(tmp_path):
    first, second = take(split_of([['a', 'é'], ['', 'b']]), [1, 0]), split_of([['c'], ['d']])
    store_splits([first, second], tmp_path)
    found = open_splits(tmp_path)
    for split, opened in zip((first, second), found, strict=True):
        assert opened.texts == split.texts and fingerprint(opened) == fingerprint(split)
    both = concatenate(*found)
    assert fingerprint(both) == fingerprint(concatenate(first, second))
    assert both.labels.base is found[0].labels.base and isinstance(mapped(both.labels), np.memmap)
    reverse = concatenate(*found[::-1])
    assert reverse.example_ids.tolist() == [*second.example_ids, *first.example_ids]


@pytest.mark.world_size(2)
def test_two_ranks_read_the_same_mapped_rows(shared_tmp_path):
    train, read = shared_tmp_path / 'train.csv', []
    if dist.get_local_rank() == 0:
        train.write_text('text,label\n' + ''.join(f'row {i},{"ab"[i % 2]}\n' for i in range(50)))
        (shared_tmp_path / 'more.txt').write_text('one\ntwo\n')
    dist.barrier()
    section = SimpleNamespace(path=str(train), unlabelled=str(shared_tmp_path / 'more.txt'))

    def load():
        read.append(1)
        return load_task_data('custom', section)

    data = shared(load)
    assert data.unlabelled is not None
    assert len(read) == (dist.get_local_rank() == 0)
    alone = load_task_data('custom', section)
    assert (
        data.fingerprint
        == alone.fingerprint
        == fingerprint(alone.task.name, alone.label_names, data.train, data.unlabelled, *data.eval_splits.values())
    )
    numbers = concatenate(data.train, data.unlabelled).example_ids
    file = mapped(numbers)
    assert isinstance(file, np.memmap) and data.label_names == ('a', 'b')
    seen = dist.all_gather_object((file.filename, data.unlabelled.texts[0][:]))
    assert seen[0] == seen[1]
    section.path = str(shared_tmp_path / 'nowhere.csv')
    with pytest.raises(FileNotFoundError, match='nowhere'):
        shared(load)
