"""From rows to tokens, made once and kept, and from tokens to batches, the same for any number of ranks."""

from __future__ import annotations

import resource
import string
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from composer.utils import dist
from transformers import BertTokenizerFast

from composer_cmi.data import encoding
from composer_cmi.data.batches import Collator, EvalSampler, TrainSampler, eval_dataloader, train_dataloader
from composer_cmi.data.encoding import tokenize, tokenizer_fingerprint
from composer_cmi.data.readers import DataError
from composer_cmi.data.rows.token_file import open_tokens
from composer_cmi.data.splits import Split
from composer_cmi.teachers.logit_cache import CacheKey, LogitCache
from data_tools import split_of


@pytest.fixture
def tokenizer(tmp_path):
    words = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *string.ascii_lowercase]
    (tmp_path / 'vocab.txt').write_text('\n'.join(words))
    return BertTokenizerFast(str(tmp_path / 'vocab.txt'))


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_tokens_are_those_of_the_tokenizer(tmp_path, tokenizer):
    split = Split((['a b c', 'd'], ['e f', 'g h i j']), np.array([1, -100]), np.array([7, 9]))
    encoded = tokenize(split, tokenizer, max_length=7, cache_dir=tmp_path / 'cache')
    expected = tokenizer(*map(list, split.texts), truncation=True, max_length=7)
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
    file = cache / f'{first.fingerprint}.arrow'
    whole, tokens = file.read_bytes(), first[2]['input_ids'].tolist()
    del first, relabelled  # a file that is mapped must not be cut short
    for damaged in (whole[: len(whole) // 2], b'', b'garbage' * 9):
        file.write_bytes(damaged)
        with pytest.warns(UserWarning, match='are damaged: they are made anew'):
            repaired = run()
        assert repaired[2]['input_ids'].tolist() == tokens
        del repaired
        assert file.read_bytes() == whole
    assert len(calls) == 6


def test_promise_16b_no_flipped_bit_of_a_token_cache_goes_unnoticed(tmp_path, tokenizer):
    tokenize(split_of([0, 1, 0]), tokenizer, max_length=8, cache_dir=tmp_path / 'cache')
    (file,) = (tmp_path / 'cache').iterdir()
    whole = file.read_bytes()
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        with pytest.warns(UserWarning, match='are damaged: they are made anew'):
            assert open_tokens(file) is None
    # Under another name it is another file's.
    file.write_bytes(whole)
    assert open_tokens(file) is not None
    file.rename(tmp_path / 'other.arrow')
    with pytest.warns(UserWarning, match='are damaged: they are made anew'):
        assert open_tokens(tmp_path / 'other.arrow') is None


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path, tokenizer):
    (tmp_path / 'file').write_text('not a folder')
    assert len(tokenize(split_of([0, 1]), tokenizer, max_length=8, cache_dir=tmp_path / 'file' / 'x')) == 2


def test_promise_20_a_full_disk_costs_the_token_cache_and_leaves_nothing(tmp_path, tokenizer):
    cache = tmp_path / 'cache'
    cache.mkdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, limits[1]))
    try:
        assert len(tokenize(split_of([0, 1]), tokenizer, max_length=8, cache_dir=cache)) == 2
        with pytest.raises(OSError, match='File too large') as raised:
            LogitCache(torch.arange(5), torch.randn(5, 3), key=CacheKey('a', 'b')).save(cache / 'logits')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert raised.value.filename == str(cache / 'logits') and [*cache.iterdir()] == []


def test_promise_16c_tokens_left_half_written_are_swept_up(tmp_path, tokenizer):
    cache = tmp_path / 'cache'
    tokenize(split_of([0, 1]), tokenizer, max_length=8, cache_dir=cache)
    file = next(cache.iterdir())
    file.rename(cache / f'.{file.name}.1.tmp')
    tokenize(split_of([0, 1]), tokenizer, max_length=8, cache_dir=cache)
    assert [*cache.iterdir()] == [file]


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
    expected = tokenizer([*split.texts[0]], padding=True, return_tensors='pt')
    for key in ('input_ids', 'attention_mask', 'token_type_ids'):
        assert torch.equal(batch[key], expected[key])
    assert batch['labels'].tolist() == [0, 1, -100]
    assert batch['example_id'].tolist() == [4, 5, 6]
    assert {value.dtype for value in batch.values()} == {torch.int64}


def test_a_tokenizer_without_padding_token_is_refused(tokenizer):
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match=r'has no padding token: set tokenizer.pad_token'):
        Collator(tokenizer)


# --- batches ----------------------------------------------------------------------------------------------------------


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
