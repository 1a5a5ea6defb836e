"""What a piece of a step costs on any machine, busy or not: operators, waits for the device, bytes, multiplications."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

# What reads a value or a number of values from the device. On a CPU such a call waits for nothing, and `tolist` leaves
# no trace there; on a GPU the driver's own waits are counted.
_READS = {'aten::_local_scalar_dense', 'aten::nonzero', 'aten::masked_select', 'aten::equal', 'aten::_unique2'}
_WAITS = {'cudaStreamSynchronize', 'cudaDeviceSynchronize', 'cudaEventSynchronize'}


class Calls:
    """Operator calls and host syncs of what ran inside, by torch's profiler."""

    operators = syncs = 0
    names: Counter[str]

    @contextmanager
    def counted(self) -> Iterator[None]:
        cuda = torch.cuda.is_available()
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
        with profile(activities=activities) as profiled:
            yield
        events: Any = profiled.events()
        # An operator that is built of others is one call.
        calls = [e.name for e in events if e.name.startswith('aten::') and not _in_operator(e)]
        self.names, self.operators = Counter(calls), len(calls)
        self.syncs = sum(e.name in (_WAITS if cuda else _READS) for e in events)


def _in_operator(event: Any) -> bool:
    parent = event.cpu_parent
    while parent is not None:
        if parent.name.startswith('aten::'):
            return True
        parent = parent.cpu_parent
    return False


class Traffic(TorchDispatchMode):
    """Bytes that operators read and write, views left out: what memory moves if nothing stays in a cache."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and 'empty' not in func.name():
            tensors = {id(t): t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)}
            self.bytes += sum(t.numel() * t.element_size() for t in tensors.values())
        return out


class Work:
    """Bytes and floating-point operations (of matrix products, as torch counts them) of what ran inside."""

    bytes = flops = 0

    @contextmanager
    def counted(self) -> Iterator[None]:
        with FlopCounterMode(display=False) as flops, Traffic() as traffic:
            yield
        self.bytes, self.flops = traffic.bytes, flops.get_total_flops()
