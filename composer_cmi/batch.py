"""Where a model's outputs hold the class logits, and a batch its labels and last tokens: the one place that knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ['class_labels', 'class_logits', 'last_positions', 'raw_labels']


def class_logits(outputs: Any) -> Tensor:
    """The class logits ``[N, C]`` of a model's outputs, the tensor itself.

    Args:
        outputs: the logits; or a mapping (a Hugging Face output) with ``'logits'``; or a tuple or list that begins with
            them, after the loss where there is one (``return_dict=False``; a loss has no dimension).

    Raises:
        ValueError: there are none.
    """
    found = outputs
    if isinstance(outputs, Mapping):
        found = outputs.get('logits')
    elif isinstance(outputs, (tuple, list)):
        found = next((item for item in outputs if isinstance(item, Tensor) and item.ndim), None)
    if isinstance(found, Tensor) and found.ndim:
        return found
    given = f'a mapping with {_names(outputs)}' if isinstance(outputs, Mapping) else f'a {type(outputs).__name__}'
    raise ValueError(
        f'The model gave no class logits but {given}: it must return the logits [N, C], a mapping with them under '
        "'logits', or a tuple that begins with them or with a loss and them."
    )


def raw_labels(batch: Any, key: Any = None) -> Any:
    """What a batch holds under ``key``, whatever it is; see :func:`class_labels`.

    Raises:
        ValueError: it has nothing there.
    """
    key = _key(batch, key)
    get = key[0] if isinstance(key, tuple) and key and callable(key[0]) else key  # Composer's (getter, setter)
    try:
        if callable(get):
            return get(batch)
        return getattr(batch, get) if isinstance(get, str) and not isinstance(batch, Mapping) else batch[get]
    except (LookupError, TypeError, AttributeError) as error:
        held = _names(batch) if isinstance(batch, Mapping) else f'a {type(batch).__name__}'
        raise ValueError(f'The batch has no labels at {key!r} but {held}: label_key says where they are.') from error


def class_labels(batch: Any, key: Any = None) -> Tensor:
    """The class of each example of a batch, ``[N]`` int64; -100 marks a row without one.

    Args:
        batch: what the dataloader gives.
        key: an algorithm's ``label_key``: a mapping's key, an index, or a function of the batch; by default
            ``'labels'`` in a mapping, else index 1.

    Raises:
        ValueError: there are none, or they are not one integer per example.
    """
    labels = raw_labels(batch, key)
    if not isinstance(labels, Tensor):
        wrong = f'a {type(labels).__name__}: the collate function must make a tensor of them'
    elif labels.is_floating_point() or labels.is_complex():
        wrong = f'{labels.dtype} of shape {list(labels.shape)}: conditional mutual information knows no regression'
    elif labels.ndim != 1:
        wrong = f'shape {list(labels.shape)}: one-hot rows, or several labels per example, name no single class'
    elif labels.dtype == torch.bool:
        wrong = 'torch.bool: make them the classes 0 and 1'
    else:
        return labels.to(torch.int64)
    key = _key(batch, key)
    raise ValueError(f'There must be one integer class per example in batch[{key!r}], got {wrong} (label_key={key!r}).')


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


def _key(batch: Any, key: Any) -> Any:
    default = 'labels' if isinstance(batch, Mapping) else 1
    return default if key is None else key


def _names(mapping: Mapping[Any, Any]) -> str:
    return ', '.join(repr(name) for name in mapping) or 'nothing'
