"""Where h_s, the vector that a classifier hands to its last linear layer, is read from a model.

The class head is the module whose output is the logits: :class:`FeatureReader` keeps what every linear layer of the
right width was given and gave, and takes the one that the logits of the loss came from. It looks behind the dropout
directly in front of the head: the features are what the network computed, not one random thinning of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from composer_cmi.batch import last_positions
from composer_cmi.features.heads import Call, find_heads, find_module, head_call, modules_by_name, outside_blocks

__all__ = ['FeatureReader']

_MOST_CALLS = 16  # of heads, kept between two calls of `clear`: nobody who forgets it fills the memory


class FeatureReader:
    """Reads h_s, the features ``[N, D]`` of a batch, while the model computes its ``num_classes`` logits; ``dim`` is D.

    By default h_s is the literal input of the class head, seen before the dropout directly in front of it. The head is
    the call of a linear layer whose output is the logits: the same tensor, its memory, or one from which the autograd
    graph leads to the logits and which nothing else joins (a cast, an index, a scale). Where ``module`` names another
    module, h_s is that module's output (the first tensor of a tuple or of a Hugging Face output); naming the head, or
    a module around it, means the head's input. A dropout called as a function, or with something between it and the
    head, cannot be looked behind: name the module in front of it.

    Args:
        model: the bare model, before FSDP, DDP and torch.compile (Composer's INIT).
        module: full name of a module or the end of one (``'bert.pooler'``); an algorithm's ``feature_module``.
        position: of features ``[N, L, D]``: ``'first'`` ([CLS]) or ``'last'`` (the last real token,
            `composer_cmi.batch.last_positions`), the default where the head itself sees every position, as in decoders;
            an algorithm's ``feature_position``.
        num_classes: number of logits; by default the model's ``num_classes`` or its config's ``num_labels``.

    Raises:
        ValueError: unknown position, unknown or ambiguous module, no head or several widths; says which names there
            are.
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
        modules = modules_by_name(model)
        configs = (getattr(module, 'config', None) for module in modules.values())
        self._config = next((config for config in configs if hasattr(config, 'num_labels')), None)
        classes = num_classes or getattr(model, 'num_classes', None) or getattr(self._config, 'num_labels', None)
        name = None if module is None else find_module(module, modules)
        heads = find_heads(modules, classes, name)
        self._names = [*heads] or [name or '']
        self._reads_head, self._named, self._position = bool(heads), name is not None, position
        # A named module is as wide as its last weight; one without any (an activation) as what the head is given.
        weights = [] if heads or name is None else [p for p in modules[name].parameters() if p.ndim]
        widths = [*(heads or find_heads(modules, classes)).values()] if not weights else []
        self.dim: int = weights[-1].shape[0] if weights else widths[-1][0]
        self.num_classes: int = classes or [*find_heads(modules, None).values()][-1][1]
        self._box, self._checked = _Box(), False
        self._handles: list[Any] = []

    def attach(self, model: nn.Module, always: bool = False) -> None:
        """Hooks the model, by now perhaps wrapped in DDP, FSDP, checkpointing or torch.compile.

        Reads training forwards with gradients only, unless ``always``. Raises ValueError where the module has gone.
        """
        self.detach()
        modules = modules_by_name(model)
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
            hooks = modules[name]._forward_pre_hooks
            for key in [*hooks]:  # torch.compile's guards count them in the order in which they came, so they come anew
                hooks[key] = hooks.pop(key)
            self._hook(modules[name].register_forward_hook, _after_head)
        dropouts = [name for name, module in modules.items() if 'Dropout' in type(module).__name__]
        for name in outside_blocks(dropouts, modules, around=self._names):
            if getattr(modules[name], 'inplace', False):
                self._hook(modules[name].register_forward_pre_hook, _before_inplace, with_kwargs=True)
            self._hook(modules[name].register_forward_hook, _after_dropout, with_kwargs=True)

    def detach(self) -> None:
        """Removes the hooks and empties the box."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.clear()

    def clear(self) -> None:
        """Lets go of the tensors of the last forward, and with them of its graph; call it before every forward."""
        self._box.calls = []
        self._box.given = self._box.overwritten = self._box.before = self._box.after = None

    def read(self, batch: Any, logits: Tensor) -> Tensor:
        """The features of the last forward, ``[N, D]``, in its autograd graph; waits for the device once, if ever.

        Args:
            batch: what the model was given.
            logits: what `composer_cmi.batch.class_logits` makes of its outputs, the tensor itself.

        Raises:
            RuntimeError: the forward did not pass the module.
            ValueError: no head's output is the logits; the features are not one vector per example or not ``dim`` wide.
        """
        where = ' / '.join(self._names)
        if not self._box.calls:
            raise RuntimeError(
                f'There are no features: the last forward did not pass {where!r} in training mode and with gradients; '
                'choose a feature_module that every training forward calls.'
            )
        call = self._box.calls[-1]
        if self._reads_head:
            call = head_call(logits, self._box.calls, self._names, told=self._named)
        features = call.given if self._reads_head else call.output
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
            rows, last = torch.arange(len(features), device=features.device), last.to(features.device)
            if self._position is None and not self._checked:
                _check_position(call.output[rows, last], logits)
                self._checked = True
            features = features[rows, last]
        if features.shape != (len(logits), self.dim):
            raise ValueError(
                f'The features at {where!r} have shape {shape}, which does not give [N, {self.dim}], N={len(logits)}; '
                'choose a feature_module with one vector per example.'
            )
        return features

    def _hook(self, register: Callable[..., Any], function: Callable[..., None], **options: bool) -> None:
        self._handles.append(register(_Hook(function, self._box), **options))


def _check_position(output: Tensor, logits: Tensor) -> None:
    """Refuses logits ``[N, C]`` that are not, but for one scale, the head's outputs ``[N, C]`` at the last tokens."""
    a, b = output.detach().float().flatten(), logits.detach().float().flatten()
    if a.shape == b.shape and not torch.allclose(a * ((a @ b) / (a @ a).clamp(min=1e-30)), b, rtol=0.01, atol=0.001):
        raise ValueError(
            "The head sees every position, but the logits are not those of each row's last real token: say whose the "
            "features are, feature_position='first' or 'last', or name a feature_module with one vector per example."
        )


@dataclass
class _Box:
    """What the hooks of one reader share: the calls of the last forward, and what they have seen of one to come."""

    calls: list[Call] = field(default_factory=list)
    given: Any = None  # to the head
    before: Any = None  # the last dropout
    after: Any = None
    overwritten: Any = None  # by a dropout in place
    always: bool = False


@dataclass
class _Hook:
    """A hook that does not follow the model into a copy or a pickle: SWA's average must not write into the box too."""

    function: Callable[..., None] | None = None
    box: _Box | None = None

    def __call__(self, module: nn.Module, *args: Any) -> None:
        if self.function is None or self.box is None:
            return
        # Gradient checkpointing repeats the forward within backward, when the features have long been read.
        again = not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
        if not again and (self.box.always or (module.training and torch.is_grad_enabled())):
            self.function(self.box, *args)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, ()


def _before_inplace(box: _Box, *given: Any) -> None:
    box.overwritten = _first_tensor(given).clone()


def _after_dropout(box: _Box, args: tuple, kwargs: dict, output: Any) -> None:
    box.before = _first_tensor((args, kwargs)) if box.overwritten is None else box.overwritten
    box.after, box.overwritten = output, None


def _before_head(box: _Box, *given: Any) -> None:
    tensor = _first_tensor(given)
    box.given = box.before if tensor is box.after else tensor


def _after_head(box: _Box, args: tuple, output: Any) -> None:
    box.calls = [*box.calls[1 - _MOST_CALLS :], Call(box.given, _first_tensor(output))]


def _after_module(box: _Box, args: tuple, output: Any) -> None:
    box.calls = [Call(None, _first_tensor(output))]


def _first_tensor(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value
    # In words that torch.compile follows: `tuple | list` and next() over a generator break its graph.
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
    for item in items:
        if (found := _first_tensor(item)) is not None:
            return found
    return None
