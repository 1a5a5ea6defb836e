"""Which module is the class head: the linear layers of the right width, then the one whose output is the logits."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ['Call', 'find_heads', 'find_module', 'head_call', 'modules_by_name', 'outside_blocks']

_REMEDY = "name the class head, or the module whose output is the features: feature_module='...'."
_WRAPPER = re.compile(r'(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(\.|$)')


class Call(NamedTuple):
    """What a module was given (before the dropout in front of it) and what it gave."""

    given: Any
    output: Any


def head_call(logits: Tensor, calls: list[Call], names: list[str], *, told: bool) -> Call:
    """The call whose output is the logits; with ``told`` the user has named the head, and the graph need not agree.

    Raises:
        ValueError: there is none, or the logits are made of several.
    """
    found = _calls_behind(logits, calls)
    if found is None or (told and not found):  # no graph to tell by: the shape must do
        found = [c for c in calls if (*c.output.shape[:1], *c.output.shape[-1:]) == logits.shape]
        if len(found) > 1 and not torch.is_grad_enabled():
            found = [call for call in found if _holds(call.output, logits)][:1]
    if len({id(call.given) for call in found}) == 1:  # of several: a mean over dropouts behind one vector
        return found[0]
    raise ValueError(
        f'The logits come from {"several calls" if found else "none"} of the linear layers of their width '
        f'({" / ".join(names)}); {_REMEDY}'
    )


def _calls_behind(logits: Tensor, calls: list[Call]) -> list[Call] | None:
    """The calls whose outputs the logits are made of, and of nothing else; None where there is no graph to tell."""
    if found := [call for call in calls if call.output is logits]:
        return found
    if found := [call for call in calls if torch._C._is_alias_of(call.output, logits)]:  # pyright: ignore
        return found
    rows: list[Tensor] = []
    ends = {(call.output.grad_fn, call.output.output_nr): call for call in calls}
    edges: list[tuple[Any, int]] = [(logits.grad_fn, logits.output_nr)]
    seen = set()
    while edges:
        node, number = edge = edges.pop()
        if edge in seen:
            continue
        seen.add(edge)
        if node is None or (edge not in ends and 'CompiledFunction' in node.name()):  # one node, whatever it computes
            return None
        if edge in ends:
            found.append(ends[edge])
            continue
        if node.name() == 'IndexBackward0' and [i is None for i in node._saved_indices] in ([False], [False, True]):
            rows.insert(0, node._saved_indices[0])  # sorted by length and back, for example
        if node.name() == 'IndexSelectBackward0' and node._saved_dim == 0:
            rows.insert(0, node._saved_index)
        passes_on = node.name() == '_DDPSinkBackward'  # the model's outputs, each by itself
        inputs = node.next_functions[number : number + 1] if passes_on else node.next_functions
        inputs = [i for i in inputs if i[0] is not None and 'AccumulateGrad' not in i[0].name()]
        if not inputs:
            return []  # something reaches the logits past all heads
        edges += inputs
    for index in rows:
        found = [call._replace(given=call.given[index]) for call in found] if len(found) == 1 else []
    return found


def _holds(output: Tensor, logits: Tensor) -> bool:
    """Whether each row of the logits is among that row's in ``[N, C]`` or ``[N, L, C]``; waits for the device."""
    rows = output.reshape(len(logits), -1, logits.shape[-1]).to(logits.dtype)
    return bool((rows == logits[:, None]).all(-1).any(1).all())


def modules_by_name(model: nn.Module) -> dict[str, Any]:
    """All modules by the names of the bare model: a wrapper adds no name, and stands for what it wraps."""
    while isinstance(model, DistributedDataParallel) or hasattr(model, '_orig_mod'):
        model = getattr(model, '_orig_mod', None) or model.module  # type: ignore[assignment]
    named: dict[str, Any] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        named.setdefault(_WRAPPER.sub('', name).rstrip('.'), module)
    return named


def find_heads(modules: dict[str, Any], classes: int | None, module: str | None = None) -> dict[str, tuple[int, int]]:
    """Input and output width of the layers that may be the class head, by name, in the order of the modules.

    Where ``module`` is named: of the heads that are, or lie inside of, it; none where it comes before the head.
    """
    layers: dict[str, tuple[int, int]] = {}
    for name, layer in modules.items():  # a quantised or LoRA layer stands for those that it holds
        if (widths := _widths(layer)) and not (layers and _is_inside(name, [*layers][-1])):
            layers[name] = widths
    last = [*layers.values()][-1:]
    heads = {name: widths for name, widths in layers.items() if (widths[1] == classes if classes else [widths] == last)}
    if module is not None:
        inside = {name: widths for name, widths in heads.items() if _is_inside(name, module)}
        # In an encoder as wide as there are classes, layers match by accident: there, the head is the last one.
        is_head = module in heads or (
            inside and ([*inside][-1] == [*heads][-1] or [*inside.values()][-1][0] != classes)
        )
        return inside if is_head else {}
    for names in (heads, outside_blocks(heads, modules)):
        if len({heads[name][0] for name in names}) == 1:
            return {name: heads[name] for name in names}
    problem = 'Several linear layers of different width give' if heads else 'No linear layer gives'
    shown = [f'{name} [{given} -> {made}]' for name, (given, made) in (heads or layers).items()][-8:]
    raise ValueError(f'{problem} {classes or "any"} logits (there are: {", ".join(shown) or "none"}); {_REMEDY}')


def find_module(given: str, modules: dict[str, Any]) -> str:
    """The full name of the one module whose name is, or ends in, ``given``; ValueError with others that come near."""
    names = [name for name in modules if name == given] or [name for name in modules if name.endswith(f'.{given}')]
    if len(names) != 1:
        problem = 'is the end of several names' if names else 'is no module of the model'
        near = names or get_close_matches(given, [*modules], n=8, cutoff=0.3) or [*modules][1:]
        raise ValueError(f'feature_module={given!r} {problem}; there are for example: {", ".join(near[:8])}.')
    return names[0]


def outside_blocks(names: Iterable[str], modules: dict[str, Any], around: Iterable[str] = ()) -> list[str]:
    """The names outside the model's lists of layers, save the lists that hold one of ``around``."""
    blocks = [name for name, module in modules.items() if isinstance(module, nn.ModuleList)]
    blocks = [block for block in blocks if not any(_is_inside(name, block) for name in around)]
    return [name for name in names if not any(_is_inside(name, block) for block in blocks)]


def _widths(module: Any) -> tuple[int, int] | None:
    # The weight tells a linear layer from somebody's MLP(in_features, out_features).
    if all(hasattr(module, part) for part in ('in_features', 'out_features', 'weight')):
        return module.in_features, module.out_features
    weight = module._parameters.get('weight')  # somebody's own linear layer, of cosines for example
    if weight is None or weight.ndim != 2 or isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return None
    return weight.shape[1], weight.shape[0]


def _is_inside(name: str, outer: str) -> bool:
    return name == outer or name.startswith(f'{outer}.')
