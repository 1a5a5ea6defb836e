"""What a run's YAML file may say: one class a section, one field a key, with ranges and defaults."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from composer.core import Time, TimeUnit
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from composer_cmi.arguments import time_fault
from composer_cmi.run.config.sentences import masked, shown

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

Sections = dict[str, dict[str, Any]]


def _sections(value: Any) -> Any:
    # `name:` alone means the defaults; `name: false` takes out, in an arm, what the base file puts in.
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        return value
    return {name: {} if kwargs is None else kwargs for name, kwargs in value.items() if kwargs is not False}


def _time(*units: TimeUnit, zero: str = '') -> AfterValidator:
    def check(value: str) -> str:
        if words := time_fault(value, units):
            raise ValueError(f'{value!r} {words}')
        if zero and Time.from_timestring(value).value == 0:
            raise ValueError(f'{value!r} {zero}')
        return value

    return AfterValidator(check)


def _relative_path(value: str) -> str:
    parts = Path(value).parts
    if not parts or Path(value).is_absolute() or '..' in parts or parts[0].startswith('~'):
        raise ValueError(f"{value!r} must be a name below output_dir, such as 'rte_mincmi' or 'glue/rte/seed1'")
    for part in parts:
        if len(part.encode()) > _LONGEST_NAME or not part.isprintable():
            raise ValueError(f'{shown(part)} becomes a folder: use at most {_LONGEST_NAME} printable characters')
    return _filled(value)


def _one_part(value: str) -> str:
    if '/' in value or value.startswith('.'):
        raise ValueError(f'{value!r} becomes one folder: no slash, and no dot in front')
    return value


def _filled(value: str) -> str:
    # Composer fills in braces of its own, and a name that it does not know is an error after training has begun.
    for found in re.findall(r'\{[^{}]*\}|[{}]', re.sub(r'\{(?:task|seed)\}', '', value)):
        raise ValueError(f'{value!r} has {found!r}: in braces stand {{task}} and {{seed}} only')
    return value


def _path(value: str) -> str:
    """A path as it is written in a shell: ``~`` is home; variables are not looked up."""
    found = os.path.expanduser(_filled(value))
    if found.startswith('~'):
        raise ValueError(f'{value!r}: there is no such home folder; write ./{value} for a folder of that name')
    return found


def path_fault(value: str) -> str | None:
    """What is wrong with a path in a section without a schema, or None."""
    try:
        return None if _path(value) else 'a path is not empty'
    except ValueError as error:
        return str(error)


_LONGEST_NAME = 200
_INTERVALS = (TimeUnit.EPOCH, TimeUnit.BATCH, TimeUnit.SAMPLE, TimeUnit.DURATION)
Name = Annotated[str, Field(min_length=1)]
PathString = Annotated[Name, AfterValidator(_path)]
RunName = Annotated[str, AfterValidator(_relative_path)]
ArmName = Annotated[RunName, AfterValidator(_one_part)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Rows = Annotated[int, Field(ge=2, le=10**12)]
BatchSize = Annotated[int, Field(ge=1, le=2**20)]
Interval = Annotated[str, _time(*_INTERVALS)]
Duration = Annotated[str, _time(*_INTERVALS[:3], zero='would train nothing')]


class _Section(BaseModel):
    # Strict: 'true', '3' and 3.0 are no substitutes for true and 3.
    model_config = ConfigDict(
        extra='forbid',
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )


class ModelConfig(_Section):
    """Which model is fine-tuned."""

    name_or_path: PathString
    """A hub name, a Hugging Face folder, a finished run folder or a registered name (``embedded:minilm``)."""
    keep_layers: Annotated[list[Annotated[int, Field(ge=0, lt=10_000)]], Field(min_length=1)] | None = None
    """Make a student of these encoder layers of the model, counted from 0, as DistilBERT was made of BERT."""
    config_overrides: dict[str, Any] = {}
    """Entries of the Hugging Face configuration to change before loading, such as ``hidden_dropout_prob: 0.2``."""


class DataConfig(_Section):
    """What is read, and how much of it. ``seed`` fixes every subset, whatever the seed of the run."""

    path: PathString | None = None
    """GLUE's own folder, or the folder or file of own data; without it the task's embedded set or the Hub."""
    max_length: int = Field(128, ge=4, le=2**20)
    """Tokens of a text (of both, in a pair); what is longer is cut."""
    seed: Seed = 17
    """Fixes which rows every subset has."""
    train_rows: Rows | None = None
    """Take so many training rows, in the classes' own shares."""
    labelled_rows: Rows | None = None
    """Keep the labels of so many training rows; the others become text without labels."""
    eval_rows: Rows | None = None
    """Score on so many rows of each evaluation split."""
    unlabelled: PathString | None = None
    """A file of text without labels, for distillation."""
    validation_fraction: float | None = Field(None, gt=0, lt=1)
    """Hold out this share of train for evaluation, instead of the task's own evaluation split."""
    text_columns: list[Name] | None = Field(None, min_length=1, max_length=2)
    """The column of text, or two for pairs; without it guessed from the header. For ``task: custom``."""
    label_column: Name | None = None
    """The column of class names or numbers; without it guessed from the header. For ``task: custom``."""
    labels: list[Name] | None = Field(None, min_length=2)
    """Names of the classes, in the order of the class indices."""
    metrics: list[Name] | None = Field(None, min_length=1)
    """What is scored, the main one first (accuracy, macro_f1, f1, matthews_correlation); None is the task's own."""
    label_noise: float = Field(0.0, ge=0, lt=1)
    """Give this share of the training rows a wrong label, drawn evenly among the other classes."""
    class_imbalance: float | None = Field(None, gt=0, le=1)
    """Thin the classes out, so that the last one keeps this share of the first one's training rows."""
    group_by_length: bool = True
    """Put texts of like length into one batch: less padding, faster."""
    cache_dir: PathString | None = None
    """Keep the tokens in this folder for the next run."""


class TrainConfig(_Section):
    """How long, in which batches, in which precision."""

    max_duration: Annotated[Duration, BeforeValidator(lambda v: f'{v}ep' if type(v) is int else v)] = '3ep'
    """How long: epochs, batches or samples (``3ep``, ``100ba``, ``5000sp``); a plain number is epochs."""
    batch_size: BatchSize = 32
    """Rows of one optimizer step, over all ranks together."""
    microbatch_size: BatchSize | Literal['auto'] | None = None
    """Rows of one forward pass on one rank; None takes the rank's whole batch."""
    eval_batch_size: BatchSize = 128
    """Rows of one forward pass when the evaluation splits are scored."""
    eval_interval: Interval = '1ep'
    """When the evaluation splits are scored during training; ``0ba`` is never."""
    label_smoothing: float | None = Field(None, gt=0, lt=1)
    """Train towards labels that give this share to all classes alike; scores and NLL are of the plain labels."""
    precision: Literal['fp32', 'amp_fp16', 'amp_bf16'] | None = None
    """None is fp32 on a CPU and amp_bf16 on a GPU."""
    device: Literal['cpu', 'gpu', 'mps'] | None = None
    """None takes a GPU where there is one."""
    num_workers: int = Field(0, ge=0, le=256)
    """Processes that read batches beside the training process; 0 reads in it."""
    progress_bar: bool = True
    """Show how far training is."""


_Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(_Section):
    """AdamW with bias correction (Mosbach et al. 2021); no decay on biases and LayerNorm weights."""

    lr: float = Field(2e-5, gt=0, lt=1)
    """The learning rate at its peak."""
    weight_decay: float = Field(0.01, ge=0, le=100)
    """Decoupled decay of the weights that are no biases and no LayerNorm weights."""
    betas: Annotated[tuple[_Beta, _Beta], Field(strict=False)] = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square."""
    eps: float = Field(1e-6, gt=0, le=1)
    """Added to the root of the second mean."""


class SchedulerConfig(_Section):
    """Linear warm-up from 0, then linear decay to 0."""

    warmup: Interval = '0.1dur'
    """How long the learning rate rises: a share of the training (``0.1dur``) or a time."""


class CheckpointConfig(_Section):
    """Composer checkpoints in the run folder."""

    save_interval: Annotated[str, _time(*_INTERVALS, zero='would save nothing')] = '1ep'
    """When a checkpoint is written."""
    autoresume: bool = True
    """Go on from the last checkpoint when the run is started again."""
    num_keep: int = Field(1, ge=1, le=10**6)
    """So many of the last checkpoints stay."""
    save_sharded: bool = False
    """Under FSDP, save one shard a rank."""


# Where paths stand, in which `{task}` and `{seed}` are filled in: by section the keys, or all.
_WHOLE_FILE = ('run_name', 'output_dir', 'code_paths')
_PATHS: dict[str, tuple[str, ...] | None] = {
    **dict.fromkeys((*_WHOLE_FILE, 'algorithms', 'loggers')),
    'model': ('name_or_path',),
    'data': ('path', 'unlabelled', 'cache_dir'),
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


class RunConfig(_Section):
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
    algorithms: Annotated[Sections, BeforeValidator(_sections)] = {}
    """By name (``composer-cmi list algorithms``), the arguments of its class; ``false`` takes one out."""
    loggers: Annotated[Sections, BeforeValidator(_sections)] = {}
    """By name (``composer-cmi list loggers``), the arguments of its class."""
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

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.output_dir) / self.run_name

    def resolved(self) -> dict[str, Any]:
        """All settings, defaults included, as plain YAML types; keys and passwords of services are masked."""
        plain = self.model_dump(mode='json')
        return {**plain, **{name: masked(plain[name]) for name in ('algorithms', 'loggers')}}
