"""DDP, FSDP1 and FSDP2 on all GPUs over NCCL: run by benchmarks/gpu_checks.sh under Composer's launcher.

    composer -n 8 tests/gpu_ranks.py [--device cpu]

Each strategy trains all cases, the ranks' centroids are compared, and the run is resumed in mid-epoch from a checkpoint
in shards and from a whole one. A line for each; exits with 1 if one of them is wrong. On CPUs: gloo, without FSDP1.
"""

from __future__ import annotations

import argparse
import tempfile
import traceback
from pathlib import Path
from typing import Any

import torch
from composer.utils import dist, get_device
from composer.utils.parallelism import FSDP2Config

import runs
import sharding
import toys

CASES = ('regularization', 'regularization, fixed', 'maximization', 'distillation, regularization')


def strategies(device: str) -> dict[str, dict[str, Any]]:
    """Name and arguments of the Trainer."""
    found: dict[str, dict[str, Any]] = {'DDP': {}}
    for kind in ('sharded', 'full'):
        if device == 'gpu':
            fsdp1 = {'sharding_strategy': 'FULL_SHARD', 'mixed_precision': 'DEFAULT', 'state_dict_type': kind}
            found[f'FSDP1, {kind}'] = {'parallelism_config': {'fsdp': fsdp1}}
        found[f'FSDP2, {kind}'] = {'parallelism_config': {'fsdp': FSDP2Config(state_dict_type=kind)}}
    return found


def check(case: str, name: str, options: dict[str, Any], folder: Path) -> str:
    """'ok', or what is wrong."""
    algorithms = runs.CASES[case]()
    whole = runs.trainer(algorithms, folder, toys.mlp(), **options)
    expected = runs.finish(whole)
    for algorithm in algorithms:
        for table in getattr(getattr(algorithm, 'class_centroids', None), 'tables', {}).values():
            first, *others = dist.all_gather(table.contiguous())
            if any(not torch.equal(first, other) for other in others):
                return 'the ranks hold different centroids'
    batch = 6
    path = sharding.shards(folder, batch) if 'sharded' in name else str(folder / f'ba{batch}-rank0.pt')
    continued = runs.finish(runs.trainer(runs.CASES[case](), None, toys.mlp(), load_path=path, **options))
    different = runs.differences(runs.after(expected, batch), continued)
    return f'resumed, {len(different)} values differ: {different[0][:200]}' if different else 'ok'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--device', default='gpu', choices=('gpu', 'cpu'))
    device = parser.parse_args().device
    dist.initialize_dist(get_device(device), timeout=300)
    torch.set_num_threads(1)
    wrong = 0
    for name, options in strategies(device).items():
        for case in CASES:
            paths = [tempfile.mkdtemp()]
            dist.broadcast_object_list(paths)
            arguments = {'device': device, 'deterministic_mode': device == 'gpu', **options}
            try:
                result = check(case, name, arguments, Path(paths[0]))
            except Exception:
                traceback.print_exc()
                result = 'an exception, see above'
            wrong += result != 'ok'
            if dist.get_global_rank() == 0:
                print(f'{dist.get_world_size()} ranks, {device}, {name:14}  {case:30}  {result}', flush=True)
            dist.barrier()
    return wrong


if __name__ == '__main__':
    raise SystemExit(bool(main()))
