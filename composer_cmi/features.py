"""Where h_s, the vector that a classifier hands to its last linear layer, is read from a model.

:class:`FeatureReader` finds the class head by itself, or takes a module's name, and gives a batch's features as one
``[N, D]`` tensor that is still in the autograd graph. It looks behind the dropout directly in front of the head: the
features are what the network computed, not one random thinning of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ['FeatureReader', 'find_heads', 'last_positions']


def find_heads(model: nn.Module, num_classes: int | None = None) -> dict[str, Any]:
    """The linear layers that can produce the class logits, by name, in the order of the model's modules.

    More than one is normal (peft keeps the original head beside the copy that it trains): as long as they agree in
    width, the one that a forward calls last is the head. Without ``num_classes`` the last linear layer is taken.

    Raises:
        ValueError: no linear layer gives ``num_classes`` logits, or several of different input widths do.
    """
    modules = _modules_by_name(model)
    linears = _linears(modules)
    heads = _with_outputs(linears, num_classes)
    # In an encoder as wide as there are classes, layers of its blocks match by accident: look outside of them.
    for names in (heads, _outside_blocks(heads, modules)):
        if len({heads[name].in_features for name in names}) == 1:
            return {name: heads[name] for name in names}
    problem = 'Several linear layers of different width give' if heads else 'No linear layer gives'
    shown = [f'{name} [{ln.in_features} -> {ln.out_features}]' for name, ln in (heads or linears).items()][-8:]
    raise ValueError(
        f'{problem} {num_classes or "any"} logits (there are: {", ".join(shown) or "none"}); name the class head, '
        "or the module whose output is the features: feature_module='...'."
    )


def last_positions(batch: Any, length: int, pad_token_id: int | None) -> Tensor:
    """The position of each row's last real token, ``[N]``, by the rule of Hugging Face's own decoder classifiers.

    That is the rightmost token other than ``pad_token_id``: right for left and for right padding, and with a padding
    token inside the text. Without a padding token the rightmost 1 of ``attention_mask`` counts.

    Raises:
        ValueError: the batch does not tell, or is not ``length`` tokens wide (virtual tokens before the text).
    """
    tokens = batch if isinstance(batch, Mapping) else {}
    ids, mask = tokens.get('input_ids'), tokens.get('attention_mask')
    real = ids != pad_token_id if ids is not None and pad_token_id is not None else mask
    if real is None or real.shape[-1] != length:
        given = f'{real.shape[-1]} tokens' if real is not None else 'no attention_mask, nor input_ids and pad_token_id'
        raise ValueError(
            f'The last real token among {length} positions cannot be told, there are {given}; choose '
            "feature_position='first' or a feature_module with one vector per example."
        )
    return (torch.arange(length, device=real.device) * (real != 0)).argmax(-1)


class FeatureReader:
    """Reads h_s, the features ``[N, D]`` of a batch, while the model computes its ``num_classes`` logits; ``dim`` is D.

    By default h_s is the literal input of the class head, seen before the dropout directly in front of it. Where
    ``module`` names another module, h_s is that module's output (the first tensor of a tuple or of a Hugging Face
    output); naming the head, or a module around it, means the head's input. A dropout called as a function, or with
    something between it and the head, cannot be looked behind: name the module in front of it.

    Args:
        model: the bare model, before FSDP, DDP and torch.compile (Composer's INIT).
        module: full name of a module or the end of one (``'bert.pooler'``); an algorithm's ``feature_module``.
        position: of features ``[N, L, D]``: ``'first'`` ([CLS]) or ``'last'`` (:func:`last_positions`), the default
            where the head itself sees every position, as in decoders; an algorithm's ``feature_position``.
        num_classes: number of logits; by default the model's ``num_classes`` or its config's ``num_labels``.

    Raises:
        ValueError: unknown position, unknown or ambiguous module, no head or several; says which names there are.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        module: str | None = None,
        position: str | None = None,
        num_classes: int | None = None,
    ) -> None:
        if position not in ('first', 'last', None):
            raise ValueError(f"feature_position={position!r} is unknown: it is 'first', 'last' or left out.")
        modules = _modules_by_name(model)
        configs = (getattr(module, 'config', None) for module in modules.values())
        self._config = next((config for config in configs if hasattr(config, 'num_labels')), None)
        classes = num_classes or getattr(model, 'num_classes', None) or getattr(self._config, 'num_labels', None)
        name = None if module is None else _full_name(module, modules)
        heads = find_heads(model, classes) if name is None else _heads_at(name, modules, classes)
        self._names = [name] if name is not None and not heads else [*heads]
        self._reads_head = bool(heads)
        self._position = position
        # A named module is as wide as its last weight; one without any (an activation) as what the head is given.
        weights = [] if heads or name is None else [p for p in modules[name].parameters() if p.ndim]
        self.num_classes: int = classes or _last(find_heads(model)).out_features
        self.dim: int = weights[-1].shape[0] if weights else _last(heads or find_heads(model, classes)).in_features
        self._box = _Box()
        self._handles: list[Any] = []

    def attach(self, model: nn.Module, always: bool = False) -> None:
        """Hooks the model, by now perhaps wrapped in DDP, FSDP, checkpointing or torch.compile.

        Reads training forwards with gradients only, unless ``always``. Raises ValueError where the module has gone.
        """
        self.detach()
        modules = _modules_by_name(model)
        if gone := [name for name in self._names if name not in modules]:
            raise ValueError(f'The model has no module {gone[0]!r} any more, where its features were to be read.')
        if any('_orig_mod' in m._modules or m._compiled_call_impl is not None for m in model.modules()):
            torch.compiler.reset()  # code compiled without hooks does not notice that there are some now
        self._box.always = always
        if not self._reads_head:
            self._hook(modules[self._names[0]].register_forward_hook, _after_module)
            return
        for name in self._names:  # ahead of other hooks: FSDP2's may cast the input, which makes a new tensor
            self._hook(modules[name].register_forward_pre_hook, _before_head, with_kwargs=True, prepend=True)
        dropouts = [name for name, module in modules.items() if 'Dropout' in type(module).__name__]
        for name in _outside_blocks(dropouts, modules, around=self._names):
            self._hook(modules[name].register_forward_pre_hook, _before_dropout, with_kwargs=True)
            self._hook(modules[name].register_forward_hook, _after_dropout)

    def detach(self) -> None:
        """Removes the hooks and empties the box."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.clear()

    def clear(self) -> None:
        """Lets go of the tensors of the last forward, and with them of its graph."""
        self._box.features = self._box.before_dropout = self._box.after_dropout = None

    def read(self, batch: Any) -> Tensor:
        """The features of the last forward, ``[N, D]``, in its autograd graph; ``batch`` is what the model was given.

        Raises:
            RuntimeError: the forward did not pass the module.
            ValueError: the features are not one vector per example, or not ``dim`` wide.
        """
        features, where = self._box.features, ' / '.join(self._names)
        if features is None:
            raise RuntimeError(
                f'There are no features: the last forward did not pass {where!r} in training mode and with gradients; '
                'choose a feature_module that every training forward calls.'
            )
        shape = list(features.shape)
        position = self._position or ('last' if self._reads_head and features.ndim == 3 else None)
        if (features.ndim == 3) != (position is not None):
            raise ValueError(
                f"The features at {where!r} have shape {shape}: feature_position is 'first' or 'last' where they are "
                f'[N, L, D] and only there, but here it is {position!r}.'
            )
        if position == 'first':
            features = features[:, 0]
        elif position == 'last':
            last = last_positions(batch, features.shape[1], getattr(self._config, 'pad_token_id', None))
            features = features[torch.arange(len(features), device=features.device), last.to(features.device)]
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise ValueError(
                f'The features at {where!r} have shape {shape}, which does not give [N, {self.dim}]; '
                'choose a feature_module with one vector per example.'
            )
        return features

    def _hook(self, register: Callable[..., Any], function: Callable[..., None], **options: bool) -> None:
        self._handles.append(register(_Hook(function, self._box), **options))


@dataclass
class _Box:
    """What the hooks of one reader share: the features of the last forward, and the last dropout's input and output."""

    features: Tensor | None = None
    before_dropout: Tensor | None = None
    after_dropout: Tensor | None = None
    always: bool = False

    def takes(self, module: nn.Module) -> bool:
        # Gradient checkpointing repeats the forward within backward, when the features have long been read.
        if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
            return False
        return self.always or (module.training and torch.is_grad_enabled())


@dataclass
class _Hook:
    """A hook that does not follow the model into a copy or a pickle: SWA's average must not write into the box too."""

    function: Callable[..., None] | None = None
    box: _Box | None = None

    def __call__(self, module: nn.Module, *args: Any) -> None:
        if self.function is not None and self.box is not None and self.box.takes(module):
            self.function(self.box, module, *args)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, ()


def _before_dropout(box: _Box, dropout: nn.Module, args: tuple, kwargs: dict) -> None:
    given = _first_tensor((args, kwargs))
    overwritten = dropout.training and getattr(dropout, 'inplace', False)
    box.before_dropout = given.clone() if overwritten and given is not None else given


def _after_dropout(box: _Box, dropout: nn.Module, args: tuple, output: Any) -> None:
    box.after_dropout = output


def _before_head(box: _Box, head: nn.Module, args: tuple, kwargs: dict) -> None:
    given = _first_tensor((args, kwargs))
    box.features = box.before_dropout if given is box.after_dropout else given


def _after_module(box: _Box, module: nn.Module, args: tuple, output: Any) -> None:
    box.features = _first_tensor(output)


def _first_tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
    return next((found for item in items if (found := _first_tensor(item)) is not None), None)


def _modules_by_name(model: nn.Module, name: str = '') -> dict[str, Any]:
    """All modules by the names of the bare model: a wrapper adds no name, and stands for what it wraps."""
    named = {name: model}
    for child_name, child in model.named_children():
        wrapped = child_name in ('_orig_mod', '_fsdp_wrapped_module', '_checkpoint_wrapped_module')
        transparent = wrapped or isinstance(model, DistributedDataParallel)
        inner = _modules_by_name(child, name if transparent else f'{name}.{child_name}'.lstrip('.'))
        named.update((key, module) for key, module in inner.items() if key not in named)
    return named


def _linears(modules: dict[str, Any]) -> dict[str, Any]:
    """Linear layers, also quantised and LoRA ones, without the layers that those hold inside."""
    found: dict[str, Any] = {}
    for name, module in modules.items():
        # The weight tells a linear layer from somebody's MLP(in_features, out_features).
        linear = all(hasattr(module, part) for part in ('in_features', 'out_features', 'weight'))
        if linear and not (found and _is_inside(name, [*found][-1])):
            found[name] = module
    return found


def _with_outputs(linears: dict[str, Any], num_classes: int | None) -> dict[str, Any]:
    if num_classes is None:
        return dict([*linears.items()][-1:])
    return {name: linear for name, linear in linears.items() if linear.out_features == num_classes}


def _heads_at(name: str, modules: dict[str, Any], num_classes: int | None) -> dict[str, Any]:
    """The heads that are, or lie inside of, the named module; none where it comes before the head."""
    heads = _with_outputs(_linears(modules), num_classes)
    inside = {head: linear for head, linear in heads.items() if _is_inside(head, name)}
    return inside if name in heads or (inside and [*inside][-1] == [*heads][-1]) else {}


def _outside_blocks(names: Iterable[str], modules: dict[str, Any], around: Iterable[str] = ()) -> list[str]:
    """The names outside the model's lists of layers, save the lists that hold one of ``around``."""
    blocks = [name for name, module in modules.items() if isinstance(module, nn.ModuleList)]
    blocks = [block for block in blocks if not any(_is_inside(name, block) for name in around)]
    return [name for name in names if not any(_is_inside(name, block) for block in blocks)]


def _is_inside(name: str, outer: str) -> bool:
    return name == outer or name.startswith(f'{outer}.')


def _full_name(given: str, modules: dict[str, Any]) -> str:
    names = [name for name in modules if name == given] or [name for name in modules if name.endswith(f'.{given}')]
    if len(names) != 1:
        problem = 'is the end of several names' if names else 'is no module of the model'
        near = names or get_close_matches(given, [*modules], n=8, cutoff=0.3) or [*modules][1:]
        raise ValueError(f'feature_module={given!r} {problem}; there are for example: {", ".join(near[:8])}.')
    return names[0]


def _last(linears: dict[str, Any]) -> Any:
    return [*linears.values()][-1]
