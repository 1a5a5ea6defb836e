"""The sections of a run's file, one class each: keys with their ranges, defaults and descriptions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from composer_cmi.run.config.fields import (
    INTERVALS,
    BatchSize,
    Duration,
    Interval,
    Name,
    PathString,
    Rows,
    Section,
    Seed,
    time_in,
)

__all__ = ['CheckpointConfig', 'DataConfig', 'ModelConfig', 'OptimizerConfig', 'SchedulerConfig', 'TrainConfig']

ClassWeight = Annotated[float, Field(gt=0, le=1e6)]


class ModelConfig(Section):
    """Which model is fine-tuned."""

    name_or_path: PathString
    """A hub name, a Hugging Face folder, a finished run folder or a registered name (``embedded:minilm``)."""
    keep_layers: Annotated[list[Annotated[int, Field(ge=0, lt=10_000)]], Field(min_length=1)] | None = None
    """Make a student of these encoder layers of the model, counted from 0, as DistilBERT was made of BERT."""
    config_overrides: dict[str, Any] = {}
    """Entries of the Hugging Face configuration to change before loading, such as ``hidden_dropout_prob: 0.2``."""
    attn_implementation: Name | None = None
    """How attention is computed (``eager``, ``sdpa``, ``flash_attention_2``); None is transformers' own choice."""
    gradient_checkpointing: bool = False
    """Compute each layer's activations again in the backward pass: less memory, slower, the same weights."""
    revision: Name | None = None
    """Branch, tag or commit of a model on the hub; None is its main branch."""
    trust_remote_code: bool = False
    """Run the Python code that comes with a model; read it first, it may do anything that you may do."""


class DataConfig(Section):
    """What is read, and how much of it. ``seed`` fixes every subset, whatever the seed of the run."""

    path: PathString | None = None
    """GLUE's own folder, or the folder or file of own data; without it the task's embedded set or the Hub."""
    hub: Name | None = None
    """A data set of the Hub by name (``owner/name``), or a folder of data files; what ``datasets.load_dataset`` reads.
    For ``task: custom``."""
    hub_config: Name | None = None
    """The configuration of ``data.hub``, where it has several."""
    hub_revision: Name | None = None
    """Branch, tag or commit of ``data.hub``; None is its main branch."""
    max_length: int = Field(128, ge=4, le=2**20)
    """Tokens of a text (of both, in a pair); what is longer is cut."""
    seed: Seed = 17
    """Fixes which rows every subset has."""
    train_rows: Rows | None = None
    """Take so many training rows, in the classes' own shares; rows that are held out are not among them."""
    labelled_rows: Rows | None = None
    """Keep the labels of so many training rows; the others become text without labels."""
    eval_rows: Rows | None = None
    """Score on so many rows of each evaluation split."""
    unlabelled: PathString | None = None
    """A file of text without labels, for distillation; of any size, read in pieces."""
    streaming: PathString | None = None
    """The same from MDS shards, a folder or a bucket (``s3://bucket/folder``), as ``streaming.MDSWriter`` writes them;
    one shard at a time is on the machine. Needs ``composer-cmi[streaming]``."""
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

    @model_validator(mode='after')
    def _of_hub(self) -> DataConfig:
        for key in ('hub_config', 'hub_revision'):
            if getattr(self, key) and not self.hub:
                raise ValueError(f'{key} belongs to data.hub, which is not given')
        return self


class TrainConfig(Section):
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
    class_weights: Literal['balanced'] | dict[str, ClassWeight] | list[ClassWeight] | None = None
    """How much a row of each class counts in the cross-entropy: ``balanced`` (every class as much as any other), or a
    weight for each class by name or in their order. Only their ratios matter: they are scaled to a mean of 1 over the
    training rows. Scores and NLL are not weighted, nor are other terms of the loss."""
    keep_best: Name | None = None
    """End with the weights of the evaluation that was best in this metric (``accuracy``, ``nll`` ...) on the first
    evaluation split. That is a selection on the rows that are reported, and flatters their scores."""
    compile: Annotated[bool | dict[str, Any], BeforeValidator(lambda v: True if v == {} else v)] = False
    """Compile the model by ``torch.compile``: true, or its arguments, such as ``{mode: max-autotune}``."""
    precision: Literal['fp32', 'amp_fp16', 'amp_bf16'] | None = None
    """None is fp32 on a CPU and amp_bf16 on a GPU. On a CPU amp_bf16 is for the forward and backward passes of training
    alone; evaluation, teachers and the exported model are fp32 there."""
    device: Literal['cpu', 'gpu', 'mps'] | None = None
    """None takes a GPU where there is one."""
    num_workers: int = Field(0, ge=0, le=256)
    """Processes that read batches beside the training process; 0 reads in it."""
    progress_bar: bool = True
    """Show how far training is."""


_Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Section):
    """AdamW with bias correction (Mosbach et al. 2021), or one of Composer's; biases and LayerNorm do not decay."""

    name: Literal['adamw', 'decoupled_adamw', 'decoupled_sgdw'] = 'adamw'
    """``adamw`` is torch's; the others are Composer's, with its own defaults."""
    lr: float = Field(2e-5, gt=0, lt=1)
    """The learning rate at its peak."""
    weight_decay: float = Field(0.01, ge=0, le=100)
    """Decoupled decay of the weights that are no biases and no LayerNorm weights."""
    betas: Annotated[tuple[_Beta, _Beta], Field(strict=False)] = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square."""
    eps: float = Field(1e-6, gt=0, le=1)
    """Added to the root of the second mean."""
    arguments: dict[str, Any] = {}
    """Of Composer's optimizers, the arguments of the class, such as ``{momentum: 0.9}``; ``lr`` stands above."""

    @model_validator(mode='after')
    def _whose(self) -> OptimizerConfig:
        fields = type(self).model_fields
        for key in ('weight_decay', 'betas', 'eps') if self.name != 'adamw' else ():
            if getattr(self, key) != fields[key].default:
                raise ValueError(f'{key} is of adamw; write arguments.{key} for {self.name}')
        if self.name == 'adamw' and self.arguments:
            raise ValueError(
                f'arguments are of the other optimizers (given: {", ".join(self.arguments)}): adamw has lr, '
                'weight_decay, betas and eps, each a key of its own'
            )
        return self


class SchedulerConfig(Section):
    """The learning rate in the course of training: linear warm-up from 0, then linear decay to 0, unless told."""

    name: Name = 'linear_with_warmup'
    """One of Composer's schedulers, such as ``cosine_annealing_with_warmup`` or ``constant``."""
    warmup: Interval = '0.1dur'
    """How long the learning rate rises: a share of the training (``0.1dur``) or a time; ``0ba`` where it does not."""
    arguments: dict[str, Any] = {}
    """Further arguments of the scheduler's class, such as ``{alpha_f: 0.1}``, what the rate decays to."""


class CheckpointConfig(Section):
    """Composer checkpoints in the run folder."""

    save_interval: Annotated[str, time_in(*INTERVALS, zero='would save nothing')] = '1ep'
    """When a checkpoint is written."""
    autoresume: bool = True
    """Go on from the last checkpoint when the run is started again."""
    num_keep: int = Field(1, ge=1, le=10**6)
    """So many of the last checkpoints stay."""
    save_sharded: bool = False
    """Under FSDP, save one shard a rank."""
