"""A Hugging Face classifier and its tokenizer: read whole or refused, fitted to each other, tried before training."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from composer_cmi.batch import class_logits
from composer_cmi.errors import ConfigError

__all__ = [
    'accepted_inputs',
    'check_fit',
    'first_sentence',
    'fit_padding',
    'fit_tokenizer',
    'positions',
    'read_pretrained',
]

_HEADS = ('classifier', 'classification_head', 'head', 'pooler', 'score')
# Tables that transformers once stored and now computes.
_COMPUTED = ('position_ids', 'token_type_ids', 'inv_freq', 'masked_bias')


def read_pretrained(name: str, **kwargs: Any) -> tuple[Any, list[str]]:
    """`AutoModelForSequenceClassification.from_pretrained`, which fills what a file does not hold with noise.

    Args:
        name: A folder or hub name.
        kwargs: For `from_pretrained`.

    Returns:
        The model, and the names of the tensors that started at random: of the head at most, with its pooler.

    Raises:
        ConfigError: The file lacks other tensors or has them in another shape, holds layers for which the model has no
            place, or holds adapters.
    """
    from transformers import AutoModelForSequenceClassification

    model, info = AutoModelForSequenceClassification.from_pretrained(
        name, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
    )
    if getattr(model, '_hf_peft_config_loaded', False):
        raise ConfigError(f'{name} holds adapters only: merge them into the model, save that, and name its folder.')
    parameters, trunk = dict(model.named_parameters()), _trunk(model)
    new = {*_names(info['missing_keys']), *_names(info['mismatched_keys'])} & parameters.keys()
    beyond = sorted(key for key in new if not _of_head(key, trunk))
    if beyond:
        raise ConfigError(
            f'{name}: {len(beyond)} of the {len(parameters)} tensors of {type(model).__name__} are not in its file, or '
            f'have another shape there ({_some(beyond)}): only a head may start at random, so take a config '
            '(config_overrides, config.json) that belongs to these weights.'
        )
    inside = {f'{child}.' for child, _ in model.base_model.named_children()} | ({trunk} if trunk else set())
    dropped = sorted(
        key
        for key in _names(info['unexpected_keys'])
        if key.startswith(tuple(inside)) and not _of_head(key, '') and not key.endswith((*_COMPUTED, '.attn.bias'))
    )
    if dropped:
        raise ConfigError(
            f'{name}: {len(dropped)} tensors of its file have no place in the {type(model).__name__} of its config '
            f'({_some(dropped)}): take the config that belongs to these weights; fewer layers are model.keep_layers.'
        )
    return model, sorted(new)


def _names(keys: Iterable[Any]) -> list[str]:
    # Mismatched keys come with their shapes, and all of them in lists or sets, by the version of transformers.
    return [key if isinstance(key, str) else key[0] for key in keys]


def _trunk(model: Any) -> str:
    return next((f'{name}.' for name, module in model.named_modules() if module is model.base_model and name), '')


def _of_head(key: str, trunk: str) -> bool:
    if trunk and not key.startswith(trunk):
        return True
    parts = key.split('.')
    return 'pooler' in parts if trunk else any(head in parts for head in _HEADS)


def _some(names: list[str]) -> str:
    return ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')


def first_sentence(error: BaseException) -> str:
    """The first sentence of an error's message."""
    text = ' '.join(str(error).split()) or type(error).__name__
    return text.split('. ')[0].rstrip('.') + '.'


def accepted_inputs(model: nn.Module) -> frozenset[str]:
    """Names of the arguments of a model's `forward`."""
    base, forward = getattr(model, 'base_model', None), model.forward
    if hasattr(model, 'peft_config') and base is not None:  # peft's own forward is (*args, **kwargs)
        forward = base.model.forward  # pyright: ignore[reportAttributeAccessIssue]
    return frozenset(inspect.signature(forward).parameters)


def fit_tokenizer(model: Any, tokenizer: Any) -> None:
    """Make a model's config and its tokenizer agree, in place: the padding token, and the inputs that are made.

    Raises:
        ConfigError: There is no token to pad with.
    """
    config = getattr(model, 'config', None)
    if config is None:
        return
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None or getattr(config, 'is_encoder_decoder', False):
            raise ConfigError(
                'the tokenizer has neither a padding token nor an end-of-text token that could stand in for one: set '
                'pad_token in its tokenizer_config.json.'
            )
        tokenizer.pad_token = tokenizer.eos_token  # GPT-2 and Llama come so, and then refuse batches above 1
    fit_padding(model, tokenizer.pad_token_id)
    accepted = accepted_inputs(model)
    # Of a GPT-2 they are words; of a RoBERTa there is but one, and a second is out of range.
    segments = getattr(config, 'type_vocab_size', 2 if getattr(config, 'model_type', '') == 'xlnet' else 0) > 1
    names = tokenizer.model_input_names
    _set(tokenizer, 'model_input_names', [n for n in names if n in accepted and (segments or n != 'token_type_ids')])


def _set(tokenizer: Any, name: str, value: Any) -> None:
    setattr(tokenizer, name, value)
    tokenizer.init_kwargs[name] = value  # of these, `save_pretrained` writes what stands here


def fit_padding(model: Any, pad: int) -> None:
    """Make a model's padding id that of the batches: a decoder looks for a text's last word by it.

    In models that count positions from their padding id (RoBERTa, MPNet) it is part of the weights, and stays.
    """
    config = getattr(model, 'config', None)
    if config is None or _position_table(model) is not None:
        return
    for holder in (config, getattr(config, 'text_config', None), getattr(model, 'generation_config', None)):
        if holder is not None and getattr(holder, 'pad_token_id', None) != pad:
            holder.pad_token_id = pad
    embedding = model.get_input_embeddings()
    if getattr(embedding, 'padding_idx', None) not in (None, pad):
        embedding.padding_idx = None  # else the word of that id would never be trained


def _position_table(model: nn.Module) -> tuple[int, int] | None:
    """Rows and padding id of a position table that is counted from the padding id, or None."""
    for module in model.modules():
        table, pad = getattr(module, 'position_embeddings', None), getattr(module, 'padding_idx', None)
        if isinstance(table, nn.Embedding) and isinstance(pad, int):
            return table.num_embeddings, pad
    return None


def positions(model: Any) -> int | None:
    """How many tokens a model has positions for; None where it counts distances (T5, DeBERTa) or does not say."""
    if getattr(model.config, 'position_biased_input', None) is False:
        return None
    counted = _position_table(model)
    if counted is not None:
        return counted[0] - counted[1] - 1
    limit = getattr(model.config, 'max_position_embeddings', None)
    return limit if limit is not None and limit > 0 else None


def check_fit(
    model: Any, tokenizer: Any, max_length: int, *, what: str = 'model.name_or_path', may_turn: bool = True
) -> None:
    """Try a model before it is trained: two texts of unlike length, together and alone, must get the same logits.

    With absolute positions and padding on the left (GPT-2) they do not: padding then goes to the right (`may_turn`).

    Args:
        model: A Hugging Face classifier, on any device; its mode and the random generators stay as they are.
        tokenizer: Its tokenizer, after `fit_tokenizer`.
        max_length: Tokens that texts are cut to.
        what: What is at fault, for messages.
        may_turn: Whether the side of the padding is this model's to choose.

    Raises:
        ConfigError: Too few positions, token ids beyond the embedding, weights that are not finite, a forward pass that
            fails, or logits that depend on a batch's padding.
    """
    limit = positions(model)
    if limit is not None and max_length > limit:
        raise ConfigError(f'data.max_length: {max_length} is more than the {limit} positions of the model.')
    rows, largest = model.get_input_embeddings().weight.shape[0], max(tokenizer.get_vocab().values(), default=0)
    if largest >= rows:
        raise ConfigError(
            f"{what}: the tokenizer's ids go up to {largest}, the model's embedding has {rows} rows: take the model's "
            'own tokenizer, or save the model after resize_token_embeddings.'
        )
    texts = _texts(tokenizer, max_length)
    if texts is None:
        return
    for side in dict.fromkeys((tokenizer.padding_side, 'right')) if may_turn else (tokenizer.padding_side,):
        changed = side != tokenizer.padding_side
        _set(tokenizer, 'padding_side', side)
        together, alone = (_logits(model, tokenizer, rows, max_length, what)[-1] for rows in (texts, texts[1:]))
        scale = max(float(alone.abs().max()), 1e-3)
        if float((together - alone).abs().max()) <= 3 * torch.finfo(alone.dtype).eps ** 0.5 * scale:
            if changed:
                warnings.warn(f'{what}: padding goes to the right, on the left it would shift the words of a text.')
            return
    raise ConfigError(
        f'{what}: the logits of {type(model).__name__} depend on how far a text is padded, so that no two batch sizes '
        'would agree: take another model.'
    )


def _texts(tokenizer: Any, max_length: int) -> list[str] | None:
    """A text of at least `max_length` tokens and a short one, or None where the vocabulary gives no words."""
    special = {str(token) for token in tokenizer.all_special_tokens}
    words = (token.strip('Ġ▁#') for token in tokenizer.get_vocab() if token not in special)
    kept = [word for _, word in zip(range(50), (w for w in words if w.isalpha() and w.isascii()), strict=False)]
    short = next((word for word in kept if tokenizer(word, add_special_tokens=False)['input_ids']), None)
    return None if short is None else [' '.join((kept * max_length)[: max(max_length, 2)]), short]


def _logits(model: Any, tokenizer: Any, texts: list[str], max_length: int, what: str) -> Tensor:
    device, was_training = next(model.parameters()).device, model.training
    try:
        inputs = tokenizer(
            texts, padding=True, truncation=True, max_length=max_length, return_attention_mask=True, return_tensors='pt'
        )
        accepted = accepted_inputs(model)
        model.eval()
        with torch.no_grad(), torch.random.fork_rng():
            logits = class_logits(model(**{key: value.to(device) for key, value in inputs.items() if key in accepted}))
    except Exception as error:  # whatever a model of somebody else's stumbles over
        raise ConfigError(
            f'{what}: {type(model).__name__} cannot read a text of {max_length} tokens: {first_sentence(error)}'
        ) from error
    finally:
        model.train(was_training)
    if not bool(torch.isfinite(logits).all()):
        raise ConfigError(f'{what}: the logits of {type(model).__name__} are not finite: its weights are damaged.')
    return logits
