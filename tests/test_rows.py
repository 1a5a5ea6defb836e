"""Rows out of Python lists: the same texts, keys, tokens and batches as before, in pieces and in mapped files."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from composer.utils import dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import default_collate
from transformers import BertTokenizerFast

import toys
from composer_cmi.data import encoding
from composer_cmi.data.batches import TrainSampler
from composer_cmi.data.encoding import tokenize
from composer_cmi.data.own_files import Task
from composer_cmi.data.readers import DataError
from composer_cmi.data.rows import pieces, texts
from composer_cmi.data.rows.machine import open_split, shared, store_split
from composer_cmi.data.rows.texts import Texts, repr_of_all, together
from composer_cmi.data.source import read_unlabelled
from composer_cmi.data.splits import Split, concatenate, fingerprint, take
from composer_cmi.data.task_data import load_task_data
from composer_cmi.teachers import forward, pass_pieces
from composer_cmi.teachers.forward import run_teacher
from composer_cmi.teachers.logit_cache import CacheKey, LogitCache
from composer_cmi.teachers.pass_pieces import open_or_pass
from composer_cmi.teachers.teacher import load_teacher

ANYTHING = st.lists(st.text(st.sampled_from('ab\'"\\\n\x1e\x85é😀'), max_size=4), max_size=9)


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(texts, 'PIECE', 2)
    monkeypatch.setattr(texts.Texts.pieces, '__defaults__', (2,))
    monkeypatch.setattr(encoding, '_PIECE', 5)
    monkeypatch.setattr(encoding, '_CALL', 3)
    monkeypatch.setattr(forward, '_PIECE', 8)


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


def test_the_order_of_an_epoch_is_that_of_earlier_versions():
    def before(sampler):
        rng = np.random.default_rng([sampler.seed, sampler.epoch])
        order = np.resize(rng.permutation(len(sampler.lengths)), sampler.total_size)
        if not sampler.group_by_length:
            return order.reshape(sampler.num_batches, sampler.batch_size)
        size = 16 * sampler.batch_size
        groups = [order[start : start + size] for start in range(0, len(order), size)]
        order = np.concatenate([group[np.argsort(sampler.lengths[group], kind='stable')] for group in groups])
        return order.reshape(sampler.num_batches, sampler.batch_size)[rng.permutation(sampler.num_batches)]

    lengths = np.random.default_rng(0).integers(3, 60, size=1003)
    for rows in (1, 5, 12, 192, 193, 1003):
        for grouped in (True, False):
            sampler = TrainSampler(lengths[:rows], 12, 3, num_replicas=1, rank=0, group_by_length=grouped)
            for epoch in (0, 1):
                sampler.set_epoch(epoch)
                assert np.array_equal(sampler.global_batches(), before(sampler))
                assert [*sampler] == before(sampler).reshape(-1).tolist()


# --- the teacher's pass -----------------------------------------------------------------------------------------------

KEY = CacheKey(teacher='t', data='d')


class Killed(BaseException):
    """In place of a signal that ends the process."""


def test_a_killed_pass_goes_on_and_ends_as_one_that_was_not(tmp_path, small_pieces):
    data = toys.Sentences(37)
    teacher = load_teacher(toys.tiny_bert(seed=3).model)
    expected = run_teacher(teacher, data, default_collate, batch_size=4)
    calls, stop = [], 5

    def collate(rows):
        calls.append(len(rows))
        if len(calls) == stop:
            raise Killed
        return default_collate(rows)

    def open_table(size=4):
        def run(kept):
            return run_teacher(teacher, data, collate, batch_size=size, kept=kept)

        return open_or_pass(tmp_path, KEY, run, batch_size=size, label_names=None)

    with pytest.raises(Killed):
        open_table()
    left = sorted(path.name for path in (tmp_path / f'{KEY.digest()}.pass').glob('*.safetensors'))
    assert left == ['4-000000.safetensors', '4-000001.safetensors']  # 16 rows are done, the fifth batch is lost
    whole = (tmp_path / f'{KEY.digest()}.pass' / left[0]).read_bytes()
    (tmp_path / f'{KEY.digest()}.pass' / left[0]).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    calls.clear()
    stop = 0
    table = open_table()
    assert sum(calls) == 37 - 8  # the damaged piece is made again, the other is not
    assert torch.equal(table.example_ids, expected[0]) and torch.equal(table.logits, expected[1])
    assert sorted(path.suffix for path in tmp_path.iterdir()) == ['.lock', '.safetensors']
    calls.clear()
    assert torch.equal(open_table().logits, expected[1]) and not calls


def test_pieces_of_other_batches_or_rows_are_not_taken(tmp_path):
    ids, logits = torch.tensor([5, 3, 9]), torch.randn(3, 2)
    kept = pass_pieces.PiecesOfPass(tmp_path, KEY, 4)
    kept.write(0, ids, logits)
    found = kept.read(0, ids.flip(0))
    assert found is not None and torch.equal(found, logits.flip(0))
    assert kept.read(0, ids + 1) is None and kept.read(1, ids) is None
    assert pass_pieces.PiecesOfPass(tmp_path, KEY, 8).read(0, ids) is None
    assert pass_pieces.PiecesOfPass(tmp_path, CacheKey('u', 'd'), 4).read(0, ids) is None


def test_the_bar_says_how_many_rows_are_done_and_how_long_it_takes(capsys, monkeypatch):
    monkeypatch.setattr(pass_pieces, '_SOON', 0.0)
    with pass_pieces.rows_bar('Teacher x') as progress:
        progress(50, 200)
        progress(200, 200)
    told = capsys.readouterr().err
    assert 'Teacher x' in told and '200/200' in told and 'row/s' in told
    with pass_pieces.rows_bar('Teacher x', shown=False) as progress:
        assert progress is None


def test_columns_in_another_order_are_no_copy():
    cache = LogitCache(torch.arange(3), torch.arange(9.0).view(3, 3), key=KEY, label_names=['a', 'b', 'c'])
    other = cache.reordered([2, 0, 1]).reordered([1, 0, 2])
    assert other._logits is cache._logits and other.label_names == ('a', 'c', 'b')
    assert other.logits.tolist() == other.lookup(torch.arange(3)).tolist() == [[0, 2, 1], [3, 5, 4], [6, 8, 7]]


# --- one copy a machine -----------------------------------------------------------------------------------------------


def test_a_stored_split_is_the_split(tmp_path):
    split = concatenate(take(split_of([['a', 'é'], ['', 'b']]), [1, 0]), split_of([['c'], ['d']]))
    store_split(split, tmp_path / 'x')
    found = open_split(tmp_path / 'x')
    assert found.texts == split.texts and fingerprint(found) == fingerprint(split)
    assert isinstance(found.labels, np.memmap) and isinstance(found.example_ids, np.memmap)


@pytest.mark.world_size(2)
def test_two_ranks_read_the_same_mapped_rows(shared_tmp_path):
    file, read = shared_tmp_path / 'train.csv', []
    if dist.get_local_rank() == 0:
        file.write_text('text,label\n' + ''.join(f'row {i},{"ab"[i % 2]}\n' for i in range(50)))
        (shared_tmp_path / 'more.txt').write_text('one\ntwo\n')
    dist.barrier()
    section = SimpleNamespace(path=str(file), unlabelled=str(shared_tmp_path / 'more.txt'))

    def load():
        read.append(1)
        return load_task_data('custom', section)

    data = shared(load)
    assert len(read) == (dist.get_local_rank() == 0)
    alone = load_task_data('custom', section)
    assert (
        data.fingerprint
        == alone.fingerprint
        == fingerprint(alone.task.name, alone.label_names, data.train, data.unlabelled, *data.eval_splits.values())
    )
    assert isinstance(data.train.labels, np.memmap) and data.label_names == ('a', 'b')
    seen = dist.all_gather_object((data.train.labels.filename, data.unlabelled.texts[0][:]))
    assert seen[0] == seen[1]
    section.path = str(shared_tmp_path / 'nowhere.csv')
    with pytest.raises(FileNotFoundError, match='nowhere'):
        shared(load)
