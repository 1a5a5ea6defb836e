"""What a run computes: whether it is plain cross-entropy, a study's baseline, and whether two are the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from composer_cmi import registry
from composer_cmi.arguments import with_defaults
from composer_cmi.run.config import ModelConfig, RunConfig

__all__ = ['essence', 'is_plain_ce', 'only_measures']

# How strongly an algorithm counts, by the names that arguments of terms have: where all of them are 0 it adds nothing.
_STRENGTHS = ('weight', 'share', 'alpha', 'smoothing', 'separation', 'relation')

# Of Composer's algorithms those that look for weights, or average them, whatever the loss is.
_OF_ANY_LOSS = frozenset({'ema', 'gradient_clipping', 'low_precision_layernorm', 'swa'})

# What cross-entropy may choose for itself: which model, how fast, how long, on what machine. Any other key, dropout and
# one that is yet to come among them, is a way to regularise: an arm that alone sets it is a method of its own.
_FREE = frozenset(
    {'algorithms', 'arms', 'callbacks', 'checkpoint', 'code_paths', 'fsdp', 'loggers', 'optimizer'}
    | {'output_dir', 'peft', 'run_name', 'scheduler', 'seed'}
    | {'train.batch_size', 'train.compile', 'train.device', 'train.eval_batch_size', 'train.eval_interval'}
    | {'train.max_duration', 'train.microbatch_size', 'train.num_workers', 'train.precision', 'train.progress_bar'}
    | {f'model.{key}' for key in ModelConfig.model_fields if key != 'config_overrides'}
    | {'data.cache_dir', 'data.group_by_length', 'data.max_length'}
)

# What a run needs and no weight depends on.
_UNLEARNT = (('data', 'cache_dir'), ('train', 'eval_batch_size'), ('train', 'num_workers'))


def only_measures(name: str, given: Mapping[str, Any]) -> bool:
    """Whether an algorithm adds nothing to the loss: it has a weight, a share or the like, and all of them are 0."""
    full = with_defaults(registry.get_algorithm(name), given)
    strengths = [full[key] for key in _STRENGTHS if key in full]
    return bool(strengths) and not any(strengths)


def is_plain_ce(config: RunConfig, shared: RunConfig | None = None) -> bool:
    """Whether a run trains with cross-entropy alone, that of its study.

    It has no term of ours or of a plugin's. Of Composer's own algorithms, and of the keys that regularise or shape
    loss, labels or rows (`train.class_weights`, `train.label_smoothing`, `model.config_overrides`, `data.label_noise`
    ...), it has what all arms have, or none.

    Args:
        config: Of the run.
        shared: Of the same setting without the arm; None where nothing is shared.
    """
    others = {} if shared is None else shared.algorithms
    own = {name: given for name, given in config.algorithms.items() if not only_measures(name, given)}
    for name in own.keys() - _OF_ANY_LOSS:
        if name in registry.algorithms or others.get(name) != own[name]:
            return False
    default = _shaping(RunConfig.model_construct(task=config.task, model=ModelConfig.model_construct()))
    common = default if shared is None else _shaping(shared)
    return all(value in (default.get(key), common.get(key)) for key, value in _shaping(config).items())


def _shaping(config: RunConfig) -> dict[str, Any]:
    """All values that are not free, by dotted key."""
    flat: dict[str, Any] = {}
    for name, value in config.model_dump(mode='json', exclude={*_FREE}).items():
        flat |= {f'{name}.{key}': inner for key, inner in value.items()} if isinstance(value, dict) else {name: value}
    return {key: value for key, value in flat.items() if key not in _FREE}


def essence(config: RunConfig) -> str:
    """Equal exactly for runs that compute the same: settings with defaults filled in, without what only measures."""
    facts = config.resolved()
    for key in ('output_dir', 'run_name', 'loggers', 'checkpoint'):
        facts.pop(key, None)
    for section, key in _UNLEARNT:
        facts[section].pop(key, None)
    # Distillation reads rows without labels, which its weight of 0 leaves in the batches.
    unlabelled = config.data.unlabelled is not None or config.data.labelled_rows is not None
    facts['algorithms'] = {
        name: with_defaults(registry.get_algorithm(name), given) | {'cache': None}  # where logits are kept
        for name, given in config.algorithms.items()
        if not only_measures(name, given) or (name == 'knowledge_distillation' and unlabelled)
    }
    return json.dumps(facts, sort_keys=True, default=str)
