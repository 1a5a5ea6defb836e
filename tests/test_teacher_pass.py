"""A teacher's pass over its rows: in pieces that a kill leaves, with a bar, into a table that is no copy."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import default_collate

import toys
from composer_cmi.teachers import forward
from composer_cmi.teachers.forward import open_or_pass, run_teacher
from composer_cmi.teachers.logit_cache import CacheKey, LogitCache
from composer_cmi.teachers.teacher import load_teacher

KEY = CacheKey(teacher='t', data='d')


class Killed(BaseException):
    """In place of a signal that ends the process."""


def test_a_killed_pass_goes_on_and_ends_as_one_that_was_not(tmp_path, monkeypatch):
    monkeypatch.setattr(forward, '_PIECE', 8)
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
    kept = forward.PiecesOfPass(tmp_path, KEY, 4)
    kept.write(0, ids, logits)
    found = kept.read(0, ids.flip(0))
    assert found is not None and torch.equal(found, logits.flip(0))
    assert kept.read(0, ids + 1) is None and kept.read(1, ids) is None
    assert forward.PiecesOfPass(tmp_path, KEY, 8).read(0, ids) is None
    assert forward.PiecesOfPass(tmp_path, CacheKey('u', 'd'), 4).read(0, ids) is None


def test_the_bar_says_how_many_rows_are_done_and_how_long_it_takes(capsys, monkeypatch):
    monkeypatch.setattr(forward, '_SOON', 0.0)
    with forward.rows_bar('Teacher x') as progress:
        assert progress is not None
        progress(50, 200)
        progress(200, 200)
    told = capsys.readouterr().err
    assert 'Teacher x' in told and '200/200' in told and 'row/s' in told
    with forward.rows_bar('Teacher x', shown=False) as progress:
        assert progress is None


def test_columns_in_another_order_are_no_copy():
    cache = LogitCache(torch.arange(3), torch.arange(9.0).view(3, 3), key=KEY, label_names=['a', 'b', 'c'])
    other = cache.reordered([2, 0, 1]).reordered([1, 0, 2])
    assert other._logits is cache._logits and other.label_names == ('a', 'c', 'b')
    assert other.logits.tolist() == other.lookup(torch.arange(3)).tolist() == [[0, 2, 1], [3, 5, 4], [6, 8, 7]]
