"""What a trial knows of its data and its model before it plans: sizes, balance, lengths, what dropout is called."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from composer_cmi import registry
from composer_cmi.data.check import Findings, check_data
from composer_cmi.errors import ConfigError
from composer_cmi.run.models import resolve_source

__all__ = ['Look', 'look_at']

_LONGEST = 256
# What the families call the dropout of their hidden layers and of attention.
_DROPOUT_KEYS = (
    *('hidden_dropout_prob', 'attention_probs_dropout_prob', 'dropout', 'attention_dropout'),
    *('hidden_dropout', 'resid_pdrop', 'embd_pdrop', 'attn_pdrop', 'embedding_dropout', 'mlp_dropout', 'dropout_rate'),
)


@dataclass(frozen=True)
class Look:
    """Data and model of a trial.

    Attributes:
        findings: What `composer-cmi check` prints.
        rows: Rows to train on.
        eval_rows: Rows that the report is of.
        unlabelled: Rows without labels.
        imbalance: Rows of the largest class over rows of the smallest, in train.
        max_length: Tokens that are kept of a row.
        width: Of the model's hidden layers.
        dropout: The model's own dropout, by the names of its configuration.
    """

    findings: Findings
    rows: int
    eval_rows: int
    unlabelled: int
    imbalance: float
    max_length: int
    width: int
    dropout: dict[str, float]


def look_at(model: str, data: dict[str, Any]) -> Look:
    """Read data and model's configuration.

    Args:
        model: `model.name_or_path` of a run.
        data: Its `data:` section, with `path` or `hub`.

    Raises:
        ConfigError: the model or the data cannot be had, or are not right; all faults of the files, a line each.
    """
    config, tokenizer = _model_files(model)
    options = {key: value for key, value in data.items() if key not in ('path', 'hub') and value is not None}
    place = data.get('path') or data['hub']
    try:
        found = check_data(place, model=tokenizer, max_length=_LONGEST, task='custom', **options)
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(str(error)) from error
    if found.data is None:
        raise ConfigError('\n'.join(found.faults))
    counts = [found.data.counts['train'].get(name, 0) for name in found.data.label_names]
    lengths = found.lengths['train'].tokens or found.lengths['train'].words
    return Look(
        findings=found,
        rows=len(found.data.train),
        eval_rows=len(next(iter(found.data.eval_splits.values()))),
        unlabelled=0 if found.data.unlabelled is None else len(found.data.unlabelled),
        imbalance=max(counts) / max(min(counts), 1),
        max_length=min(_LONGEST, max(16, -(-lengths[2] // 16) * 16)),
        width=int(getattr(config, 'hidden_size', None) or getattr(config, 'd_model', None) or 768),
        dropout={
            key: float(value)
            for key in _DROPOUT_KEYS
            if isinstance(value := getattr(config, key, None), (int, float)) and 0 < value < 0.5
        },
    )


def _model_files(model: str) -> tuple[Any, str]:
    """The model's Hugging Face configuration, and where its tokenizer is."""
    from transformers import AutoConfig

    source: Any = resolve_source(model)
    if model in registry.known_models():
        source = registry.get_model(model)(())
        if not isinstance(source, (str, Path)):
            raise ConfigError(f'--model {model}: a model that is built by a function cannot be tried; give its folder.')
    try:
        return AutoConfig.from_pretrained(str(source)), str(source)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split('\n')[0]
        raise ConfigError(f'--model {model}: its configuration cannot be loaded ({reason}).') from None
