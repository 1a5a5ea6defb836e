"""What a run's YAML file may say: one class a section, one field a key, with ranges and defaults."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from composer.core import Time, TimeUnit
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

__all__ = [
    'CheckpointConfig',
    'DataConfig',
    'ModelConfig',
    'OptimizerConfig',
    'RunConfig',
    'SchedulerConfig',
    'TrainConfig',
]

Sections = dict[str, dict[str, Any]]


def _sections(value: Any) -> Any:
    # `name:` alone means the defaults; `name: false` takes out, in an arm, what the base file puts in.
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        return value
    return {name: {} if kwargs is None else kwargs for name, kwargs in value.items() if kwargs is not False}


def _time_string(value: str) -> str:
    try:
        time = Time.from_timestring(value)
    except ValueError as error:
        raise ValueError(f"{value!r} is not a Composer time such as '3ep', '100ba' or '0.1dur'") from error
    if time.value < 0:
        raise ValueError(f'{value!r} is negative')
    return value


def _duration(value: str) -> str:
    if Time.from_timestring(value).unit not in (TimeUnit.EPOCH, TimeUnit.BATCH, TimeUnit.SAMPLE):
        raise ValueError(f"{value!r} must be in epochs, batches or samples, such as '3ep', '100ba' or '5000sp'")
    if Time.from_timestring(value).value == 0:
        raise ValueError(f'{value!r} would train nothing')
    return value


def _relative_path(value: str) -> str:
    if not value or Path(value).is_absolute() or '..' in Path(value).parts:
        raise ValueError(f"{value!r} must be a name below output_dir, such as 'rte_mincmi' or 'glue/rte/seed1'")
    return value


Timestring = Annotated[str, AfterValidator(_time_string)]
Duration = Annotated[str, AfterValidator(_time_string), AfterValidator(_duration)]
RunName = Annotated[str, AfterValidator(_relative_path)]


class _Section(BaseModel):
    model_config = ConfigDict(extra='forbid', frozen=True, protected_namespaces=(), use_attribute_docstrings=True)


class ModelConfig(_Section):
    """Which model is fine-tuned."""

    name_or_path: str
    """A hub name, a Hugging Face folder, a finished run folder or a registered name (``embedded:minilm``)."""
    keep_layers: list[Annotated[int, Field(ge=0)]] | None = None
    """Make a student of these encoder layers of the model, counted from 0, as DistilBERT was made of BERT."""
    config_overrides: dict[str, Any] = {}
    """Entries of the Hugging Face configuration to change before loading, such as ``hidden_dropout_prob: 0.2``."""


class DataConfig(_Section):
    """What is read, and how much of it. ``seed`` fixes every subset, whatever the seed of the run."""

    path: str | None = None
    """GLUE's own folder, or the folder or file of own data; without it the task's embedded set or the Hub."""
    max_length: int = Field(128, ge=4)
    """Tokens of a text (of both, in a pair); what is longer is cut."""
    seed: int = Field(17, ge=0)
    """Fixes which rows every subset has."""
    train_rows: int | None = Field(None, ge=2)
    """Take so many training rows, in the classes' own shares."""
    labelled_rows: int | None = Field(None, ge=2)
    """Keep the labels of so many training rows; the others become text without labels."""
    eval_rows: int | None = Field(None, ge=2)
    """Score on so many rows of each evaluation split."""
    unlabelled: str | None = None
    """A file of text without labels, for distillation."""
    validation_fraction: float | None = Field(None, gt=0, lt=1)
    """Hold out this share of train for evaluation, instead of the task's own evaluation split."""
    text_columns: list[str] | None = Field(None, min_length=1, max_length=2)
    """The column of text, or two for pairs; without it guessed from the header. For ``task: custom``."""
    label_column: str | None = None
    """The column of class names or numbers; without it guessed from the header. For ``task: custom``."""
    labels: list[str] | None = Field(None, min_length=2)
    """Names of the classes, in the order of the class indices."""
    metrics: list[str] | None = Field(None, min_length=1)
    """What is scored, the main one first (accuracy, macro_f1, f1, matthews_correlation); None is the task's own."""
    label_noise: float = Field(0.0, ge=0, lt=1)
    """Give this share of the training rows a wrong label, drawn evenly among the other classes."""
    class_imbalance: float | None = Field(None, gt=0, le=1)
    """Thin the classes out, so that the last one keeps this share of the first one's training rows."""
    group_by_length: bool = True
    """Put texts of like length into one batch: less padding, faster."""
    cache_dir: str | None = None
    """Keep the tokens in this folder for the next run."""


class TrainConfig(_Section):
    """How long, in which batches, in which precision."""

    max_duration: Annotated[Duration, BeforeValidator(lambda v: f'{v}ep' if type(v) is int else v)] = '3ep'
    """How long: epochs, batches or samples (``3ep``, ``100ba``, ``5000sp``); a plain number is epochs."""
    batch_size: int = Field(32, ge=1)
    """Rows of one optimizer step, over all ranks together."""
    microbatch_size: Annotated[int, Field(ge=1)] | Literal['auto'] | None = None
    """Rows of one forward pass on one rank; None takes the rank's whole batch."""
    eval_batch_size: int = Field(128, ge=1)
    """Rows of one forward pass when the evaluation splits are scored."""
    eval_interval: Timestring = '1ep'
    """When the evaluation splits are scored during training; ``0ba`` is never."""
    label_smoothing: float | None = Field(None, gt=0, lt=1)
    """Train towards labels that give this share to all classes alike; scores and NLL are of the plain labels."""
    precision: Literal['fp32', 'amp_fp16', 'amp_bf16'] | None = None
    """None is fp32 on a CPU and amp_bf16 on a GPU."""
    device: Literal['cpu', 'gpu', 'mps'] | None = None
    """None takes a GPU where there is one."""
    num_workers: int = Field(0, ge=0)
    """Processes that read batches beside the training process; 0 reads in it."""
    progress_bar: bool = True
    """Show how far training is."""


class OptimizerConfig(_Section):
    """AdamW with bias correction (Mosbach et al. 2021); no decay on biases and LayerNorm weights."""

    lr: float = Field(2e-5, gt=0, lt=1)
    """The learning rate at its peak."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled decay of the weights that are no biases and no LayerNorm weights."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square."""
    eps: float = Field(1e-6, gt=0)
    """Added to the root of the second mean."""


class SchedulerConfig(_Section):
    """Linear warm-up from 0, then linear decay to 0."""

    warmup: Timestring = '0.1dur'
    """How long the learning rate rises: a share of the training (``0.1dur``) or a time."""


class CheckpointConfig(_Section):
    """Composer checkpoints in the run folder."""

    save_interval: Timestring = '1ep'
    """When a checkpoint is written."""
    autoresume: bool = True
    """Go on from the last checkpoint when the run is started again."""
    num_keep: int = Field(1, ge=1)
    """So many of the last checkpoints stay."""
    save_sharded: bool = False
    """Under FSDP, save one shard a rank."""


class RunConfig(_Section):
    """One run, or several arms of it."""

    task: str
    """A name of ``composer-cmi list tasks``; ``custom`` is for own data."""
    run_name: RunName
    """The folder below ``output_dir``; ``{task}`` and ``{seed}`` in it are filled in."""
    output_dir: str = 'runs'
    """Where run folders go."""
    seed: int = Field(17, ge=0)
    """Of the initial weights of what is new, of dropout and of the order of the batches."""
    code_paths: list[str] = []
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
    arms: dict[str, dict[str, Any]] | None = None
    """Changes of the file by name: the run is repeated for each, from the same seed, and the arms are compared."""

    @model_validator(mode='before')
    @classmethod
    def _fill_in(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if isinstance(data.get('arms'), dict):
            data = {**data, 'arms': {name: {} if arm is None else arm for name, arm in data['arms'].items()}}
        if isinstance(name := data.get('run_name'), str):
            # `run_name: glue/{task}_seed{seed}` lets one file serve many runs.
            seed = data.get('seed', cls.model_fields['seed'].default)
            data = {**data, 'run_name': name.replace('{task}', str(data.get('task'))).replace('{seed}', str(seed))}
        return data

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.output_dir) / self.run_name

    def resolved(self) -> dict[str, Any]:
        """All settings, defaults included, as plain YAML types."""
        return self.model_dump(mode='json')
