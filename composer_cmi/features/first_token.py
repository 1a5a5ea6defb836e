"""A classifier of its first token: what the last layer computes for the other tokens, nobody reads.

Of that layer's 12 D^2 multiplications a token, D the width, only keys and values (2 D^2) reach the first token. BERT's
family takes the class from it alone: of a model with n layers, 10 in 12 n multiplications need not be made.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

__all__ = ['skip_unread_tokens']

_TRANSFORMERS = 'transformers.models.'


def skip_unread_tokens(model: nn.Module) -> bool:
    """Lets the last layer of a Hugging Face encoder compute the first token alone, in place, where no other is read.

    The function of the model and its gradients stay as they are, but for the last bits: that the head reads the first
    token alone, and that the layer gives the same for it, is tried on two short rows first. Weights and their names do
    not change. What is computed in full as before: a layer that is asked for its attentions, or whose attention has
    been replaced (ALiBi). Whoever reads the last hidden states of all tokens must not call this.

    Args:
        model: A classifier of `transformers`, before DDP, FSDP and torch.compile.

    Returns:
        Whether it does so from now on; False for other families, and where another token is read.
    """
    layer = _last_layer(model)
    replace = next((each for each in (_FirstToken, _FirstTokenOfBlock) if each.knows(layer)), None)
    if layer is None or replace is None:
        return False
    training = model.training
    model.eval()
    try:
        full, gradient = _try(model, layer)
        if not gradient[:, 0].any() or gradient[:, 1:].any():
            return False
        module = replace.put_into(layer)
        narrow, _ = _try(model, layer)
        close = 1e-4 if full.dtype == torch.float32 else 3e-2
        if narrow.shape[1] == 1 and torch.allclose(narrow[:, 0], full[:, 0], rtol=close, atol=close):
            return True
        del module.forward
        return False
    finally:
        model.train(training)


class _FirstToken:
    """The forward of an attention module built as BERT's; an object and no closure, so that it is copied along."""

    def __init__(self, attention: Any) -> None:
        self.attention, self.kind = attention, type(attention.self)

    @staticmethod
    def knows(layer: Any) -> bool:
        attention = getattr(layer, 'attention', None)
        parts = ('query', 'key', 'value', 'dropout', 'num_attention_heads')
        return hasattr(attention, 'output') and _is_known(getattr(attention, 'self', None), parts)

    @classmethod
    def put_into(cls, layer: Any) -> Any:
        layer.attention.forward = cls(layer.attention)
        return layer.attention

    def __call__(self, hidden_states: Tensor, attention_mask: Tensor | None = None, *more: Any, **named: Any) -> Any:
        heads = self.attention.self
        if _is_replaced(heads, self.kind) or _asks(more, named):
            whole = type(self.attention).forward
            return whole(self.attention, hidden_states, attention_mask, *more, **named)
        first, maps = hidden_states[:, :1], (heads.query, heads.key, heads.value)
        context = _attend(hidden_states, attention_mask, maps, heads.num_attention_heads, heads.dropout)
        return self.attention.output(context, first), None


class _FirstTokenOfBlock:
    """The same for a whole layer of DistilBERT, whose attention adds nothing to its input itself."""

    def __init__(self, block: Any) -> None:
        self.block, self.kind = block, type(block.attention)
        self.gives_tuple = 'attn_mask' in inspect.signature(type(block).forward).parameters  # until transformers 5

    @staticmethod
    def knows(layer: Any) -> bool:
        parts = ('q_lin', 'k_lin', 'v_lin', 'out_lin', 'dropout', 'n_heads')
        return hasattr(layer, 'sa_layer_norm') and _is_known(getattr(layer, 'attention', None), parts)

    @classmethod
    def put_into(cls, layer: Any) -> Any:
        layer.forward = cls(layer)
        return layer

    def __call__(self, hidden_states: Tensor, attention_mask: Tensor | None = None, *more: Any, **named: Any) -> Any:
        block, heads = self.block, self.block.attention
        if _is_replaced(heads, self.kind) or _asks(more, named):
            return type(block).forward(block, hidden_states, attention_mask, *more, **named)
        if attention_mask is not None and attention_mask.ndim == 2:  # 1 for a token, as the eager attention has it
            attention_mask = attention_mask[:, None, None] != 0
        maps = (heads.q_lin, heads.k_lin, heads.v_lin)
        context = heads.out_lin(_attend(hidden_states, attention_mask, maps, heads.n_heads, heads.dropout))
        attended = block.sa_layer_norm(context + hidden_states[:, :1])
        output = block.output_layer_norm(block.ffn(attended) + attended)
        return (output,) if self.gives_tuple else output


def _attend(hidden: Tensor, mask: Tensor | None, maps: tuple[Any, Any, Any], heads: int, dropout: Any) -> Tensor:
    """What the first token takes of all `[N, 1, D]`."""
    query, key, value = maps

    def split(projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (heads, -1)).transpose(1, 2)

    context = scaled_dot_product_attention(
        split(query(hidden[:, :1])),
        split(key(hidden)),
        split(value(hidden)),
        attn_mask=None if mask is None else mask[..., :1, :],
        dropout_p=dropout.p if dropout.training else 0.0,
    )
    return context.transpose(1, 2).flatten(2)


def _is_replaced(heads: Any, kind: type) -> bool:
    # Not vars(): torch.compile does not follow it.
    return type(heads) is not kind or 'forward' in heads.__dict__ or type(heads.dropout) is not nn.Dropout


def _asks(more: Sequence[Any], named: Mapping[str, Any]) -> bool:
    return any(value is not None and value is not False for value in (*more, *named.values()))


def _last_layer(model: Any) -> nn.Module | None:
    trunk: Any = getattr(model, 'base_model', None)
    config: Any = getattr(model, 'config', None)
    count = getattr(config, 'num_hidden_layers', None)
    # Of others' classes nobody knows what their forward takes and gives.
    theirs = type(model).__module__.startswith(_TRANSFORMERS)
    if not theirs or not count or trunk is None or config.output_hidden_states or config.output_attentions:
        return None
    lists = (module for module in trunk.modules() if isinstance(module, nn.ModuleList) and len(module) == count)
    return next((layers[-1] for layers in lists), None)


def _is_known(heads: Any, parts: Sequence[str]) -> bool:
    """Whether it is an attention of transformers itself, made of these parts, that takes masks that can be cut."""
    implementation = getattr(getattr(heads, 'config', None), '_attn_implementation', 'sdpa')
    return (
        type(heads).__module__.startswith(_TRANSFORMERS)
        and all(hasattr(heads, part) for part in parts)
        and not getattr(heads, 'is_decoder', False)
        and 'Flash' not in type(heads).__name__
        and implementation in ('sdpa', 'eager')
    )


def _try(model: Any, layer: nn.Module) -> tuple[Tensor, Tensor]:
    """The layer's output `[2, L, D]` or `[2, 1, D]` for two short rows, and the gradient of the logits by it."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, given: Any, output: Any) -> Any:
        tensor = output if isinstance(output, Tensor) else output[0]
        seen.append(tensor.detach().requires_grad_())
        return seen[0] if isinstance(output, Tensor) else (seen[0], *output[1:])

    ids = torch.arange(5, 17, device=model.device).view(2, 6) % model.config.vocab_size
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    handle = layer.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            logits = model(input_ids=ids, attention_mask=mask).logits
            # Different weights: each row of logits may sum to a constant.
            total = (logits * torch.arange(1.0, logits.shape[-1] + 1, device=ids.device)).sum()
            (gradient,) = torch.autograd.grad(total, seen[0])
    finally:
        handle.remove()
    return seen[0].detach(), gradient
