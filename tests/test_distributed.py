"""Ranks: what they see differs, what they hold does not; one all-reduce a step; shards."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from composer.utils import dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import runs
import sharding
import toys
from composer_cmi.algorithms import CMIMaximization, CMIRegularization

HERE = Path(__file__).parent
RANKS = [pytest.param(n, marks=pytest.mark.world_size(n)) for n in (1, 2, 4)]
on_ranks = pytest.mark.parametrize('ranks', RANKS)


def same_on_all_ranks(tensor: Tensor) -> bool:
    first, *others = dist.all_gather(tensor.contiguous())
    return all(torch.equal(first, other) for other in others)


class Given(DistributedSampler):
    """The rows that each rank gets, batch after batch."""

    def __init__(self, batches: list[list[list[int]]]):
        rank, ranks = dist.get_global_rank(), dist.get_world_size()
        super().__init__(range(sum(len(batch[rank]) for batch in batches)), num_replicas=ranks, rank=rank)
        self.batches = [batch[rank] for batch in batches]

    def __iter__(self):
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def train(algorithm: Any, batches: list[list[list[int]]], data: TensorDataset, **kwargs: Any) -> Tensor:
    """Two epochs over the given rows; the weights, checked to be equal on all ranks."""
    model = toys.mlp()
    # The sampler gives whole batches; DataLoader's own batching is off.
    loader = DataLoader(data, batch_size=None, sampler=Given(batches))
    options = {'train_dataloader': loader, 'device_train_microbatch_size': 16, **kwargs}
    trainer = toys.trainer(model, data, [algorithm], **options)
    trainer.fit()
    trainer.close()
    for tensor in (toys.weights(model), *algorithm.class_centroids.tables.values()):
        assert same_on_all_ranks(tensor)
    return toys.weights(model)


@on_ranks
@pytest.mark.parametrize('make', [lambda: CMIRegularization(3.0, form='plain', start='0ba'), CMIMaximization])
def test_who_sees_which_class_does_not_matter(ranks, make):
    """Dealt out in turn, or by class: then some ranks never see a class, and others see one only."""
    data = toys.points(64)
    by_class = data.tensors[1].argsort(stable=True).tolist()
    share = 16 // ranks
    weights = []
    for deal in ('in turn', 'by class'):
        batches = []
        for start in range(0, 64, 16):
            rows = sorted(range(start, start + 16), key=by_class.index)
            cut = [rows[r::ranks] if deal == 'in turn' else rows[r * share : (r + 1) * share] for r in range(ranks)]
            batches.append(cut)
        weights.append(train(make(), batches, data))
    seen = set(data.tensors[1][batches[0][dist.get_global_rank()]].tolist())
    assert ranks == 1 or len(seen) < toys.CLASSES, 'the case is not the one that is meant'
    torch.testing.assert_close(weights[0], weights[1], atol=5e-6, rtol=1e-5)


@on_ranks
def test_uneven_last_batches(ranks):
    """The last batch is smaller on one rank than on another, and a class occurs on one rank alone."""
    data = toys.points(40)
    sizes = [[4, 3, 2, 1][r] if ranks > 1 else 10 for r in range(ranks)]
    starts = [sum(sizes[:r]) for r in range(ranks)]
    full = [[list(range(r * (16 // ranks), (r + 1) * (16 // ranks))) for r in range(ranks)]]
    last = [[list(range(16 + starts[r], 16 + starts[r] + sizes[r])) for r in range(ranks)]]
    algorithm = CMIRegularization(1.0, form='plain', start='0ba')
    train(algorithm, full + last, data, max_duration='1ep')
    counts = torch.bincount(data.tensors[1][: 16 + sum(sizes)], minlength=toys.CLASSES)
    assert algorithm.class_centroids.tables['totals'][:, 1].tolist() == counts.tolist()


@on_ranks
def test_rows_without_labels_on_one_rank(ranks):
    """One rank's whole share is unlabelled: it has no table of its own, and takes part in the all-reduce."""
    x, labels = toys.points(32).tensors
    labels = labels.clone()
    labels[: 16 // ranks if ranks > 1 else 4] = -100
    data = TensorDataset(x, labels)
    share = 16 // ranks
    batches = [[list(range(b + r * share, b + (r + 1) * share)) for r in range(ranks)] for b in (0, 16)]
    algorithm = CMIRegularization(1.0, form='plain', start='0ba')
    train(algorithm, batches, data, max_duration='1ep')
    assert algorithm.class_centroids.tables['totals'][:, 1].sum() == (labels >= 0).sum()


# --- cost -------------------------------------------------------------------------------------------------------------


def fit(algorithms: list[Any], microbatch_size: int = 4, batches: int = 8) -> None:
    options = {'device_train_microbatch_size': microbatch_size, 'max_duration': f'{batches}ba', 'loggers': []}
    trainer = runs.trainer(algorithms, model=toys.mlp(), **options)
    trainer.fit()
    trainer.close()


@pytest.mark.world_size(2)
@pytest.mark.parametrize('case', ['regularization', 'regularization, fixed', 'maximization', 'distillation'])
def test_one_all_reduce_a_step(case, monkeypatch):
    """Of classes x (dim + 4) + 2 numbers, however many microbatches there are."""
    sizes: list[int] = []
    others: Counter[str] = Counter()
    original = torch.distributed.all_reduce

    def all_reduce(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        sizes.append(tensor.numel())
        return original(tensor, *args, **kwargs)

    monkeypatch.setattr(torch.distributed, 'all_reduce', all_reduce)
    for name in ('all_gather', 'all_gather_into_tensor', 'broadcast', 'barrier', 'all_gather_object', 'reduce'):
        function = getattr(torch.distributed, name)

        def counted(*args: Any, _name: str = name, _function: Any = function, **kwargs: Any) -> Any:
            others[_name] += 1
            return _function(*args, **kwargs)

        monkeypatch.setattr(torch.distributed, name, counted)
    seen = []
    for algorithms, microbatch_size in (
        ([], 4),
        (runs.CASES[case](), 4),
        (runs.CASES[case](), 2),
        (runs.CASES[case](), 8),
    ):
        sizes.clear()
        others.clear()
        fit(algorithms, microbatch_size)
        seen.append((Counter(sizes), Counter(others)))
    (plain, plain_others), *ours = seen
    dim = toys.CLASSES if case == 'maximization' else toys.HIDDEN
    once = 'fixed' in case  # for the table of all rows, before the first step
    expected = {} if case == 'distillation' else {toys.CLASSES * (dim + 4) + 2: 8 + once}
    for with_algorithm, its_others in ours:
        assert with_algorithm - plain == expected
        assert its_others == plain_others


@pytest.mark.parametrize('case', runs.CASES)
def test_no_wait_for_the_device_in_a_step(case, monkeypatch):
    """Nothing reads a value from the device: neither in Python nor below it (item, nonzero, masks as an index)."""
    reads: Counter[str] = Counter()
    names = ('item', 'tolist', 'numpy', 'cpu', '__bool__', '__float__', '__int__', '__index__', 'nonzero')
    for name in names:
        function = getattr(Tensor, name)

        def counted(self: Tensor, *args: Any, _name: str = name, _function: Any = function, **kwargs: Any) -> Any:
            reads[_name] += 1
            return _function(self, *args, **kwargs)

        monkeypatch.setattr(Tensor, name, counted)

    def reading(algorithms: list[Any], batches: int) -> Counter[str]:
        reads.clear()
        with Below() as below:
            fit(algorithms, batches=batches)
        return Counter(reads) + below.reads

    # Three steps more: both runs have the same beginning and end, where reading is allowed.
    with_algorithm = reading(runs.CASES[case](), 10) - reading(runs.CASES[case](), 7)
    assert with_algorithm - (reading([], 10) - reading([], 7)) == Counter()


class Below(TorchDispatchMode):
    """Counts the operators that read a value from the device, whoever calls them."""

    NAMES = ('_local_scalar_dense', 'nonzero', 'masked_select', '_unique2', 'equal', 'is_nonzero', 'item')

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in self.NAMES or (name == 'index' and any(i is not None and i.dtype == torch.bool for i in args[1])):
            self.reads[name] += 1
        return func(*args, **(kwargs or {}))


def test_the_count_of_reads_sees_them():
    x = torch.tensor([1.0, 0.0])
    with Below() as below:
        x[x > 0], x.sum().item(), bool(x.any()), x.nonzero()
    assert below.reads.total() >= 4


# --- FSDP2 ------------------------------------------------------------------------------------------------------------

FSDP_CASES = ('regularization', 'regularization, fixed', 'maximization', 'distillation, regularization')


@pytest.mark.world_size(2)
@pytest.mark.parametrize('case', FSDP_CASES)
def test_fsdp2_trains_as_ddp_does(case):
    found = []
    for make in (sharding.trainer, lambda algorithms: runs.trainer(algorithms, model=toys.mlp())):
        trainer = make(runs.CASES[case]())
        trainer.fit()
        found.append(sharding.gathered(trainer))
        trainer.close()
    for name, tensor in found[0]['model'].items():
        torch.testing.assert_close(tensor, found[1]['model'][name], atol=2e-5, rtol=1e-4)
    for algorithm in runs.CASES[case]():
        if isinstance(algorithm, CMIRegularization | CMIMaximization):
            tables = [f['algorithms'][type(algorithm).__name__]['centroids']['tables']['running'] for f in found]
            torch.testing.assert_close(*tables, atol=1e-4, rtol=1e-4)


@pytest.mark.world_size(2)
@pytest.mark.parametrize('state', ['sharded', 'full'])
@pytest.mark.parametrize('case', FSDP_CASES)
def test_fsdp2_continues_bit_for_bit(case, state, shared_tmp_path):
    whole = sharding.trainer(runs.CASES[case](), shared_tmp_path, state)
    expected = runs.finish(whole)
    for batch in (3, 4, 6):
        path = sharding.shards(shared_tmp_path, batch)
        path = path if state == 'sharded' else str(shared_tmp_path / f'ba{batch}-rank0.pt')
        continued = runs.finish(sharding.trainer(runs.CASES[case](), state=state, load_path=path))
        assert runs.differences(runs.after(expected, batch), continued) == [], f'resumed after batch {batch}'


@pytest.mark.world_size(2)
@pytest.mark.parametrize('state', ['sharded', 'full'])
def test_fsdp2_autoresume(state, shared_tmp_path):
    case = 'distillation, regularization'
    expected = runs.finish(sharding.trainer(runs.CASES[case](), state=state))
    options = {'state': state, 'autoresume': True, 'run_name': 'again'}
    stopped = sharding.trainer(runs.CASES[case](), shared_tmp_path, callbacks=[runs.Stop(6)], **options)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    stopped.close()
    continued = sharding.trainer(runs.CASES[case](), shared_tmp_path, **options)
    assert continued.state.timestamp.batch == 6
    assert runs.differences(runs.after(expected, 6), runs.finish(continued)) == []


@pytest.mark.world_size(2)
def test_fsdp2_without_the_algorithm_of_its_shards_says_so(shared_tmp_path):
    runs.finish(sharding.trainer(runs.CASES['regularization'](), shared_tmp_path, max_duration='2ba'))
    with pytest.warns(UserWarning, match='CMIRegularization, which this run does not list'):
        sharding.trainer([], load_path=sharding.shards(shared_tmp_path, 2)).close()


def launch(ranks: int, *arguments: str) -> None:
    command = [sys.executable, '-m', 'composer.cli.launcher', '-n', str(ranks), str(HERE / 'sharding.py'), *arguments]
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
    done = subprocess.run(command, env=env, cwd=HERE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_elastic(tmp_path):
    """Two ranks, then one, then two: each begins with the very state that was saved, and ends as two ranks do alone."""
    elastic, straight = tmp_path / 'elastic', tmp_path / 'straight'
    for folder in (elastic, straight):
        folder.mkdir()
    launch(2, str(straight), str(sharding.LAST))
    launch(2, str(elastic), '3')
    launch(1, str(elastic), '6', '3')
    launch(2, str(elastic), str(sharding.LAST), '6')
    for before, after in (('3', '6'), ('6', str(sharding.LAST))):
        saved, begun = torch.load(elastic / f'{before}.pt'), torch.load(elastic / f'{after}-begin.pt')
        assert runs.differences(saved, begun) == []
    one, other = (torch.load(folder / f'{sharding.LAST}.pt') for folder in (elastic, straight))
    for name, tensor in one['model'].items():
        torch.testing.assert_close(tensor, other['model'][name], atol=2e-5, rtol=1e-4)
    tables = [r['algorithms']['CMIRegularization']['centroids']['tables'] for r in (one, other)]
    torch.testing.assert_close(tables[0]['running'], tables[1]['running'], atol=1e-4, rtol=1e-4)
    assert torch.equal(tables[0]['totals'], tables[1]['totals'])
