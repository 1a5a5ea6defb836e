"""FSDP2 on gloo: runs that are saved whole or in shards, and continued on another number of ranks.

As a script (`sharding.py FOLDER UNTIL [FROM]`, under the launcher) it trains up to batch UNTIL, from batch FROM's shards
if given, saves its shards there, and on rank 0 what it ended with (`{UNTIL}.pt`) and began with (`{UNTIL}-begin.pt`).
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import torch
from composer import Trainer
from composer.core import Algorithm, Callback, State
from composer.loggers import Logger
from composer.utils import dist, get_device
from composer.utils.parallelism import FSDP2Config
from torch.distributed.fsdp._fully_shard import _fsdp_collectives

import runs
import toys

LAST = runs.EPOCHS * runs.BATCHES


def shards(folder: Path | str, batch: int) -> str:
    """Where Composer puts the shards of a batch, whatever the file name."""
    return str(Path(folder) / f'ep{(batch - 1) // runs.BATCHES}-ba{batch}')


def average_on_gloo() -> None:
    """Torch 2.7's gloo returns the sum where FSDP2 asks for the mean; set right, FSDP2 can be held against DDP."""
    original = torch.distributed.reduce_scatter_tensor
    if dist.get_world_size() == 1 or hasattr(original, 'averaging'):
        return

    def reduce_scatter_tensor(
        output: torch.Tensor, input: torch.Tensor, op: Any = None, group: Any = None, **kwargs: Any
    ):
        work = original(output, input, op=torch.distributed.ReduceOp.SUM, group=group, **kwargs)
        assert op in (torch.distributed.ReduceOp.AVG, torch.distributed.ReduceOp.SUM)
        if op == torch.distributed.ReduceOp.AVG:
            assert work is None, 'an asynchronous sum cannot be divided here'
            output.div_(torch.distributed.get_world_size(group))
        return work

    reduce_scatter_tensor.averaging = True  # type: ignore[attr-defined]
    _fsdp_collectives.dist.reduce_scatter_tensor = reduce_scatter_tensor


def trainer(algorithms: list[Algorithm], folder: Path | None = None, state: str = 'sharded', **kwargs: Any) -> Trainer:
    """The run of `runs.trainer` without dropout, whose masks depend on the rank, under FSDP2."""
    average_on_gloo()
    config = {'fsdp': FSDP2Config(state_dict_type=state)}
    options = {'parallelism_config': config, **kwargs}
    return runs.trainer(algorithms, folder, toys.mlp(), **options)


def algorithms() -> list[Algorithm]:
    """Everything that has a state."""
    return [runs.distillation(), *runs.CASES['regularization, logits']()]


class Record(Callback):
    """Saves what a batch ended with, which is what its checkpoint holds."""

    def __init__(self, trainer: Trainer, batch: int, path: str):
        self.trainer, self.batch, self.path = trainer, batch, path

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch == self.batch:
            ended = gathered(self.trainer)
            if dist.get_global_rank() == 0:
                torch.save(ended, self.path)


def main(folder: str, until: str, begin: str | None = None) -> None:
    dist.initialize_dist(get_device('cpu'), timeout=120)
    torch.set_num_threads(1)
    load = {} if begin is None else {'load_path': shards(folder, int(begin))}
    run = trainer(algorithms(), Path(folder), **load)
    if begin is not None:
        begun = gathered(run)
        if dist.get_global_rank() == 0:
            torch.save(begun, f'{folder}/{until}-begin.pt')
    run.state.callbacks += [Record(run, int(until), f'{folder}/{until}.pt'), runs.Stop(int(until))]
    with contextlib.suppress(KeyboardInterrupt):
        run.fit()
    run.close()


def gathered(trainer: Trainer) -> dict[str, Any]:
    """The whole weights and the algorithms' states; a collective call."""
    model = trainer.state.model.state_dict()
    return {
        'model': {
            name.removeprefix('module.module.').removeprefix('module.'): (
                p.full_tensor() if hasattr(p, 'full_tensor') else p
            ).clone()
            for name, p in model.items()
        },
        'algorithms': {type(a).__name__: a.state_dict() for a in trainer.state.algorithms},
    }


if __name__ == '__main__':
    main(*sys.argv[1:])
