"""What a later run of several would be refused for, found before the first one trains."""

from __future__ import annotations

import contextlib
import io
import json
import math
import warnings
from collections.abc import Hashable
from pathlib import Path

import torch
from composer.devices import DeviceCPU

from composer_cmi import registry
from composer_cmi.data.task_data import TaskData
from composer_cmi.features import FeatureReader
from composer_cmi.run.config.schema import RunConfig
from composer_cmi.run.models import build_model, silence_transformers
from composer_cmi.run.parts.classifier import build_composer_model, class_weights
from composer_cmi.run.parts.selection import check_waiting
from composer_cmi.run.scoring import task_metrics
from composer_cmi.run.setup import (
    DISTILLATION,
    build_algorithms,
    build_callbacks,
    build_optimizer,
    build_scheduler,
    check_starts,
    choose_precision,
    microbatch_size,
    to_steps,
    user_errors,
)
from composer_cmi.teachers.pretrained import check_fit

__all__ = ['model_key', 'rehearse', 'rehearse_model']


def rehearse(config: RunConfig, data: TaskData) -> None:
    """Make the parts of a run that need no model, and count its steps.

    Args:
        config: Of the run.
        data: That it trains on.

    Raises:
        ConfigError: for an argument that an algorithm, a callback, the optimizer or the scheduler refuses, a class or a
            metric that there is not, a warm-up of the whole training, a term that would start when the training is
            over, and a precision that this machine does not have.
    """
    if config.train.class_weights is not None:
        class_weights(config.train.class_weights, data.label_names, data.train.labels)
    check_waiting(build_callbacks(config.callbacks), config.train, task_metrics(data.task), [*data.eval_splits])
    build_optimizer(torch.nn.Linear(1, 1), config.optimizer)
    algorithms = build_algorithms(config.algorithms)
    rows = len(data.train) + len(data.unlabelled or ()) * (DISTILLATION in algorithms)
    count = {'steps_per_epoch': math.ceil(rows / config.train.batch_size), 'batch_size': config.train.batch_size}
    steps = to_steps(config.train.max_duration, **count)
    warmup = to_steps(config.scheduler.warmup, **count, total=steps)
    build_scheduler(warmup, steps, config.scheduler.name, config.scheduler.arguments)
    check_starts(algorithms, config, steps_per_epoch=count['steps_per_epoch'])
    if config.train.device in (None, 'cpu') and not torch.cuda.is_available():
        choose_precision(config.train, DeviceCPU())
        microbatch_size(config.train, DeviceCPU())


def model_key(config: RunConfig, data: TaskData) -> Hashable | None:
    """Equal for runs that begin with the same model; None for one that is not on this machine, or not yet."""
    name = config.model.name_or_path
    if name not in registry.known_models() and not Path(name).is_dir():
        return None
    parts = config.peft, config.fsdp is None, _feature_places(config)
    return config.model.model_dump_json(), config.data.max_length, json.dumps(parts, default=str), *data.label_names


def rehearse_model(config: RunConfig, data: TaskData) -> None:
    """Build a run's model, find the features that its terms read, and let go of it.

    Raises:
        ConfigError: if it cannot be loaded, or does not fit the task, the length of texts, LoRA or a term.
    """
    silence_transformers()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # all is said when the run begins
        warnings.simplefilter('ignore')
        model, tokenizer = build_model(config.model, data.label_names)
        check_fit(model, tokenizer, config.data.max_length)
        wrapped = build_composer_model(model, tokenizer, peft=config.peft, fsdp=config.fsdp is not None)
        with user_errors('model'):
            FeatureReader(wrapped)
        for name, (module, position) in _feature_places(config).items():
            with user_errors(f'algorithms.{name}'):
                FeatureReader(wrapped, module=module, position=position)


def _feature_places(config: RunConfig) -> dict[str, tuple[str | None, str | None]]:
    places = {
        name: (given.get('feature_module'), given.get('feature_position')) for name, given in config.algorithms.items()
    }
    return {name: place for name, place in places.items() if any(place)}
