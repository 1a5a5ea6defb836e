"""The file of a teacher's logits: whole or rebuilt, for this teacher and data or refused, built once."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import default_collate

import toys
from composer_cmi.algorithms import KnowledgeDistillation
from composer_cmi.teachers.forward import inputs_fingerprint, run_teacher
from composer_cmi.teachers.logit_cache import CacheError, CacheKey, LogitCache, MissingExamplesError, open_or_build
from composer_cmi.teachers.teacher import load_teacher

KEY = CacheKey(teacher='t', data='d', task='rte', tokenizer='bert', max_length=128)
IDS = torch.tensor([3, 4, 10, 70_000_000_000])
LOGITS = torch.tensor([[0.5, -1.0], [1.5, 2.0], [3.0, 4.0], [-5.0, 6.25]])


def table(key: CacheKey = KEY) -> LogitCache:
    return LogitCache(IDS, LOGITS, key=key, label_names=['no', 'yes'])


# --- lookup -----------------------------------------------------------------------------------------------------------


def test_lookup_in_any_order_and_repeatedly():
    rows = table().lookup(torch.tensor([10, 3, 10, 70_000_000_000]))
    assert rows.tolist() == [[3.0, 4.0], [0.5, -1.0], [3.0, 4.0], [-5.0, 6.25]]


@pytest.mark.parametrize('unknown', [0, 5, 80_000_000_000, -1])
def test_unknown_ids(unknown):
    with pytest.raises(
        KeyError, match=rf'^1 examples have no stored logits \(ids {unknown}\): the cache holds 4 other'
    ):
        table().lookup(torch.tensor([3, unknown]))
    with pytest.raises(MissingExamplesError, match='no stored logits'):
        table().require(torch.tensor([3, unknown]))
    table().require(IDS.flip(0))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_unknown_ids_on_a_gpu_give_nan_and_are_reported_later():
    cache = table()
    rows = cache.lookup(torch.tensor([3, 5], device='cuda'))
    assert rows[0].tolist() == [0.5, -1.0] and bool(rows[1].isnan().all())
    with pytest.raises(MissingExamplesError, match='1 looked up examples'):
        cache.check()


def test_check_after_known_ids():
    cache = table()
    cache.lookup(IDS)
    cache.check()


def test_reordered():
    cache = table()
    assert cache.reordered(None) is cache
    swapped = cache.reordered([1, 0])
    assert swapped.lookup(IDS).tolist() == LOGITS.flip(1).tolist() and swapped.label_names == ('yes', 'no')
    assert cache.label_names == ('no', 'yes') and torch.equal(cache.logits, LOGITS)


@pytest.mark.parametrize(
    ('ids', 'logits', 'message'),
    [
        (IDS[:3], LOGITS, r'got \[3\] and \[4, 2\]'),
        (IDS[:0], LOGITS[:0], 'at least one example'),
        (torch.tensor([1, 2, 2, 3]), LOGITS, 'unique and in increasing order, 2 is not'),
        (IDS, LOGITS.clone().fill_(float('inf')), 'logits of example id 3 are not finite'),
    ],
)
def test_bad_tables(ids, logits, message):
    with pytest.raises(ValueError, match=message):
        LogitCache(ids, logits, key=KEY)


# --- the file ---------------------------------------------------------------------------------------------------------


def test_round_trip(tmp_path):
    path = table().save(tmp_path / 'a' / 'x.safetensors')
    cache = LogitCache.open(path, KEY)
    assert torch.equal(cache.example_ids, IDS) and torch.equal(cache.logits, LOGITS)
    assert cache.logits.dtype == torch.float32 and cache.key == KEY and cache.label_names == ('no', 'yes')
    assert os.listdir(path.parent) == ['x.safetensors']  # nothing is left behind
    assert path.stat().st_mode & 0o444 == path.parent.stat().st_mode & 0o444  # shared as the folder is
    LogitCache(IDS, LOGITS, key=KEY).save(path)
    assert LogitCache.open(path).label_names is None


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match='no logit cache'):
        LogitCache.open(tmp_path / 'x.safetensors')


@pytest.mark.parametrize('keep', [0, 5, 100, 0.5, -1])
def test_truncated(tmp_path, keep):
    path = table().save(tmp_path / 'x.safetensors')
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(CacheError, match='no logit cache, or a truncated one'):
        LogitCache.open(path)


def test_one_altered_byte(tmp_path):
    path = table().save(tmp_path / 'x.safetensors')
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(CacheError, match='altered after it was written'):
        LogitCache.open(path)


def test_a_foreign_safetensors_file_and_a_newer_schema(tmp_path):
    path = tmp_path / 'x.safetensors'
    save_file({'logits': LOGITS}, path)
    with pytest.raises(CacheError, match='no logit cache'):
        LogitCache.open(path)
    metadata = {'schema_version': '2', 'key': json.dumps(asdict(KEY)), 'label_names': 'null', 'digest': ''}
    save_file({'logits': LOGITS, 'example_ids': IDS}, path, metadata)
    with pytest.raises(CacheError, match='schema version 2, this composer-cmi reads up to 1'):
        LogitCache.open(path)


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        ('teacher', 'u'),
        ('data', 'e'),
        ('task', 'cola'),
        ('tokenizer', 'gpt'),
        ('max_length', 64),
        ('precision', 'bf16'),
    ],
)
def test_each_part_of_the_key_counts(tmp_path, field, value):
    other = replace(KEY, **{field: value})
    assert other.digest() != KEY.digest()
    path = table().save(tmp_path / 'x.safetensors')
    with pytest.raises(CacheError, match=f'built for another {field}'):
        LogitCache.open(path, other)
    # In a folder the two do not meet.
    open_or_build(tmp_path, KEY, table)
    built = open_or_build(tmp_path, other, lambda: LogitCache(IDS, LOGITS + 1, key=other))
    assert torch.equal(built.logits, LOGITS + 1)
    assert torch.equal(open_or_build(tmp_path, KEY, fail).logits, LOGITS)


def fail() -> LogitCache:
    raise AssertionError('it was there already')


def test_built_once_and_rebuilt_when_damaged(tmp_path, caplog):
    assert torch.equal(open_or_build(tmp_path, KEY, table).logits, LOGITS)
    assert torch.equal(open_or_build(tmp_path, KEY, fail).logits, LOGITS)
    path = tmp_path / f'{KEY.digest()}.safetensors'
    path.write_bytes(path.read_bytes()[:-4])
    with caplog.at_level(logging.WARNING):
        assert torch.equal(open_or_build(tmp_path, KEY, table).logits, LOGITS)
    assert 'built anew' in caplog.text and 'truncated' in caplog.text
    assert torch.equal(open_or_build(tmp_path, KEY, fail).logits, LOGITS)
    table(replace(KEY, task='cola')).save(path)  # another table under this name
    assert open_or_build(tmp_path, KEY, table).key == KEY


def test_a_failed_build_leaves_nothing_behind(tmp_path):
    with pytest.raises(AssertionError):
        open_or_build(tmp_path, KEY, fail)
    assert not list(tmp_path.glob('*.safetensors'))
    assert torch.equal(open_or_build(tmp_path, KEY, table).logits, LOGITS)


def test_what_a_killed_builder_left_is_swept_up(tmp_path):
    stale = tmp_path / f'{KEY.digest()}.safetensors.12345.tmp'
    stale.write_bytes(b'half')
    open_or_build(tmp_path, KEY, table)
    assert not stale.exists()


def test_it_is_mapped_not_read(tmp_path):
    """Ranks share the pages of one file: it appears in the process's map of memory."""
    path = table().save(tmp_path / 'x.safetensors')
    cache = LogitCache.open(path)
    if not Path('/proc/self/maps').exists():
        pytest.skip('no /proc on this system')
    assert str(path) in Path('/proc/self/maps').read_text()
    assert len(cache) == 4


def _build_slowly(folder: str, wait) -> None:
    def build() -> LogitCache:
        with open(f'{folder}/builds', 'a') as file:
            file.write('x')
        time.sleep(0.3)
        return table()

    wait.wait()
    cache = open_or_build(folder, KEY, build)
    assert torch.equal(cache.lookup(IDS), LOGITS)


def test_concurrent_builders(tmp_path):
    context = multiprocessing.get_context('fork')
    barrier = context.Barrier(4)
    processes = [context.Process(target=_build_slowly, args=(str(tmp_path), barrier)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert (tmp_path / 'builds').read_text() == 'x'
    assert torch.equal(open_or_build(tmp_path, KEY, fail).logits, LOGITS)


# --- the pass of a teacher --------------------------------------------------------------------------------------------


def test_run_teacher_gives_each_example_its_own_logits():
    teacher = load_teacher(toys.tiny_bert(dropout=0.5).model)
    data = toys.Sentences(21)
    before = torch.get_rng_state()
    ids, logits = run_teacher(teacher, data, default_collate, batch_size=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert ids.tolist() == list(range(21)) and logits.dtype == torch.float32
    for i in (0, 7, 20):
        torch.testing.assert_close(logits[i : i + 1], teacher.logits(default_collate([data[i]])), atol=1e-6, rtol=1e-6)


def test_rows_without_ids():
    rows = [{'input_ids': torch.ones(2, dtype=torch.long)}]
    with pytest.raises(ValueError, match="no 'example_id'"):
        run_teacher(load_teacher(toys.tiny_bert().model), rows, default_collate)


def collate(rows, width: int = 8):
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row['input_ids'][:width])] = torch.tensor(row['input_ids'][:width])
    return {'input_ids': ids, 'example_id': torch.tensor([row['example_id'] for row in rows]), 'labels': rows[0]}


def test_inputs_fingerprint():
    rows = [{'input_ids': [1, 2], 'example_id': 0, 'labels': 1}, {'input_ids': [3], 'example_id': 1, 'labels': 0}]
    first = inputs_fingerprint(rows, collate)
    # Labels are not the teacher's input.
    assert inputs_fingerprint([{**row, 'labels': -100} for row in rows], collate) == first
    assert inputs_fingerprint(rows[::-1], collate) != first
    assert inputs_fingerprint([rows[0], {**rows[1], 'input_ids': [4]}], collate) != first
    assert inputs_fingerprint([rows[0], {**rows[1], 'example_id': 2}], collate) != first


class Declared(list):
    """Rows that know their own hash."""

    fingerprint = 'abc'

    @property
    def example_ids(self):
        return torch.tensor([row['example_id'] for row in self])

    @property
    def lengths(self):
        return [len(row['input_ids']) for row in self]


def test_promise_12_the_key_holds_what_the_collate_function_makes():
    rows = [{'input_ids': list(range(1, 2 + i % 9)), 'example_id': i} for i in range(300)]
    for kind in (list, Declared):
        first = inputs_fingerprint(kind(rows), collate)
        assert inputs_fingerprint(kind(rows), collate) == first
        for width in (3, 7, 9):  # 9 adds padding alone, which the positions of some models see
            assert inputs_fingerprint(kind(rows), partial(collate, width=width)) != first
    other = Declared([*rows[:-1], {**rows[-1], 'example_id': 300}])
    assert inputs_fingerprint(other, collate) != inputs_fingerprint(Declared(rows), collate)


def test_promise_12_a_stored_cache_is_not_read_after_the_cut_has_changed(tmp_path):
    """In a plain Trainer, whose rows and teacher stay the same: 8 tokens, then 3, then 8 again."""
    teacher, data = toys.tiny_bert(seed=9).model, toys.Sentences(16)

    def cut(width, rows):
        batch = default_collate(rows)
        return {k: v[:, :width] if k in ('input_ids', 'attention_mask') else v for k, v in batch.items()}

    tables = []
    for width in (8, 3, 8):
        algorithm = KnowledgeDistillation(teacher, cache=tmp_path / 'cache', assume_same_labels=True)
        loader = torch.utils.data.DataLoader(data, 16, collate_fn=partial(cut, width))
        trainer = toys.trainer(toys.tiny_bert(), data, [algorithm], max_duration='1ba', train_dataloader=loader)
        trainer.fit()
        trainer.close()
        tables.append(algorithm._steps.table.logits)
    expected = load_teacher(teacher).logits(cut(3, [data[i] for i in range(16)]))
    torch.testing.assert_close(tables[1], expected, atol=1e-7, rtol=1e-5)
    assert (tables[0] - tables[1]).abs().max() > 1e-5 and torch.equal(tables[0], tables[2])
    assert len(list((tmp_path / 'cache').glob('*.safetensors'))) == 2


@pytest.mark.parametrize('change', [{'num_attention_heads': 4}, {'hidden_act': 'relu'}, {'layer_norm_eps': 1e-3}])
def test_promise_12_the_key_holds_the_config_of_the_teacher(tmp_path, change):
    """The weights' names and shapes are the same, and so are the weights."""
    model = toys.tiny_bert().model
    model.save_pretrained(tmp_path / 'm')
    first = load_teacher(tmp_path / 'm').fingerprint
    assert first == load_teacher(model).fingerprint
    config = json.loads((tmp_path / 'm' / 'config.json').read_text())
    unimportant = {'_name_or_path': 'x', 'transformers_version': '0', 'architectures': None}
    (tmp_path / 'm' / 'config.json').write_text(json.dumps({**config, **unimportant}))
    assert load_teacher(tmp_path / 'm').fingerprint == first
    (tmp_path / 'm' / 'config.json').write_text(json.dumps({**config, **change}))
    assert load_teacher(tmp_path / 'm').fingerprint != first


def test_promise_12_the_key_holds_the_layers_of_a_plain_module():
    one, other = (torch.nn.Sequential(torch.nn.Linear(2, 3), act) for act in (torch.nn.ReLU(), torch.nn.Tanh()))
    other.load_state_dict(one.state_dict())
    assert load_teacher(one).fingerprint != load_teacher(other).fingerprint


def test_promise_16b_any_flipped_byte_or_cut_rebuilds_the_same_table(tmp_path):
    path = tmp_path / f'{KEY.digest()}.safetensors'
    table().save(path)
    whole = path.read_bytes()
    faults = [whole[:i] + bytes([whole[i] ^ (1 << i % 8)]) + whole[i + 1 :] for i in range(len(whole))]
    faults += [*(whole[:i] for i in range(0, len(whole), 7)), whole + b'x', b'', b'\0' * len(whole)]
    for i, content in enumerate(faults):
        path.write_bytes(content)
        with pytest.raises(CacheError, match=str(path)) as error:
            LogitCache.open(path)
        assert '\n' not in str(error.value)
        if i % 9 == 0:
            opened = open_or_build(tmp_path, KEY, table)
            assert torch.equal(opened.logits, LOGITS) and torch.equal(opened.example_ids, IDS) and opened.key == KEY
            assert opened.label_names == ('no', 'yes')
