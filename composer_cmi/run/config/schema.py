"""What a run's YAML file may say: the whole of it, whose sections are in `composer_cmi.run.config.sections`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from composer_cmi.run.config.fields import (
    ArmName,
    Name,
    PathString,
    RunName,
    Section,
    Sections,
    Seed,
    path_fault,
    sections_given,
)
from composer_cmi.run.config.sections import (
    CheckpointConfig,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    SchedulerConfig,
    TrainConfig,
)
from composer_cmi.run.config.sentences import masked

__all__ = [
    'CheckpointConfig',
    'DataConfig',
    'ModelConfig',
    'OptimizerConfig',
    'RunConfig',
    'SchedulerConfig',
    'TrainConfig',
    'path_fault',
]

# Where paths stand, in which `{task}` and `{seed}` are filled in: by section the keys, or all.
_WHOLE_FILE = ('run_name', 'output_dir', 'code_paths')
_PATHS: dict[str, tuple[str, ...] | None] = {
    **dict.fromkeys((*_WHOLE_FILE, 'algorithms', 'callbacks', 'loggers')),
    'model': ('name_or_path',),
    'data': ('path', 'hub', 'unlabelled', 'streaming', 'cache_dir'),
}


def _fill_in(value: Any, keys: tuple[str, ...] | None, task: str, seed: str) -> Any:
    if isinstance(value, str):
        return os.path.expanduser(value.replace('{task}', task).replace('{seed}', seed))
    if isinstance(value, list):
        return [_fill_in(each, None, task, seed) for each in value]
    if isinstance(value, Mapping):
        return {
            key: _fill_in(each, None, task, seed) if keys is None or key in keys else each
            for key, each in value.items()
        }
    return value


class RunConfig(Section):
    """One run, or several arms of it."""

    task: Name
    """A name of ``composer-cmi list tasks``; ``custom`` is for own data."""
    run_name: RunName
    """The folder below ``output_dir``; ``{task}`` and ``{seed}`` are filled in, here and in every path."""
    output_dir: PathString = 'runs'
    """Where run folders go."""
    seed: Seed = 17
    """Of the initial weights of what is new, of dropout and of the order of the batches."""
    code_paths: list[PathString] = []
    """Python files that register own algorithms, tasks or models; imported before anything is looked up."""
    model: ModelConfig
    data: DataConfig = DataConfig()  # pyright: ignore[reportCallIssue]
    train: TrainConfig = TrainConfig()  # pyright: ignore[reportCallIssue]
    optimizer: OptimizerConfig = OptimizerConfig()  # pyright: ignore[reportCallIssue]
    scheduler: SchedulerConfig = SchedulerConfig()
    algorithms: Annotated[Sections, BeforeValidator(sections_given)] = {}
    """By name (``composer-cmi list algorithms``), the arguments of its class; ``false`` takes one out."""
    loggers: Annotated[Sections, BeforeValidator(sections_given)] = {}
    """By name (``composer-cmi list loggers``), the arguments of its class."""
    callbacks: Annotated[Sections, BeforeValidator(sections_given)] = {}
    """By name (``composer-cmi list callbacks``), the arguments of its class: ``early_stopper: {monitor: nll}``."""
    calibrate: float | None = Field(None, gt=0, le=0.5)
    """Take this share of the training rows out of training and fit a temperature on it, so that probabilities can be
    used: the exported model, the predictions and the scores have it in them."""
    checkpoint: CheckpointConfig = CheckpointConfig()  # pyright: ignore[reportCallIssue]
    fsdp: dict[str, Any] | None = None
    """Composer's FSDP settings; sharded training, on a GPU."""
    peft: dict[str, Any] | None = None
    """Settings of a PEFT adapter, such as LoRA: ``{r: 8, lora_alpha: 16, target_modules: [query, value]}``."""
    arms: Annotated[dict[ArmName, dict[str, Any]], Field(min_length=1)] | None = None
    """Changes of the file by name: the run is repeated for each, from the same seed, and the arms are compared."""

    @model_validator(mode='before')
    @classmethod
    def _fill_in(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if isinstance(data.get('arms'), dict):
            data = {**data, 'arms': {name: {} if arm is None else arm for name, arm in data['arms'].items()}}
        # `run_name: glue/{task}_seed{seed}` lets one file serve many runs. Where there are arms, each has its own.
        task, seed = data.get('task'), data.get('seed', cls.model_fields['seed'].default)
        own = [key for key in data if key in _PATHS and (key in _WHOLE_FILE or data.get('arms') is None)]
        return {**data, **{key: _fill_in(data[key], _PATHS[key], str(task), str(seed)) for key in own}}

    @model_validator(mode='after')
    def _of_fsdp(self) -> RunConfig:
        if self.checkpoint.save_sharded and self.fsdp is None:
            raise ValueError('checkpoint.save_sharded belongs to fsdp, which is not given')
        return self

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.output_dir) / self.run_name

    def resolved(self) -> dict[str, Any]:
        """All settings, defaults included, as plain YAML types; keys and passwords of services are masked."""
        plain = self.model_dump(mode='json')
        return {**plain, **{name: masked(plain[name]) for name in ('algorithms', 'callbacks', 'loggers')}}
