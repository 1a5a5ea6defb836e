"""What a run needs before its first step: model, data, algorithms, and the Trainer around them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from composer import Evaluator, Trainer
from composer.core import Algorithm, Callback, DataSpec, Precision, Time
from composer.devices import Device
from composer.models import HuggingFaceModel
from composer.utils import dist, reproducibility
from torchmetrics import Metric

from composer_cmi.algorithms.distillation import KnowledgeDistillation
from composer_cmi.data.task_data import (
    Split,
    TaskData,
    concatenate,
    eval_dataloader,
    tokenize,
    train_dataloader,
)
from composer_cmi.features import FeatureReader, skip_unread_tokens
from composer_cmi.run.calibrate.temperature import divide_head, inputs_of
from composer_cmi.run.config.schema import RunConfig
from composer_cmi.run.distill import prepare_distillation
from composer_cmi.run.loggers import build_logger
from composer_cmi.run.measures.row_measures import RowMeasures
from composer_cmi.run.models import build_model, silence_transformers
from composer_cmi.run.outputs.checkpoints import CHECKPOINTS, CheckedCheckpoints, loading
from composer_cmi.run.outputs.history import HistoryLogger
from composer_cmi.run.outputs.identity import refuse_other
from composer_cmi.run.parts.classifier import build_composer_model, class_weights
from composer_cmi.run.parts.notes import notes_before, readers_of_all_tokens
from composer_cmi.run.parts.selection import Ending, KeepBest, check_waiting, lower_is_better, metric_name
from composer_cmi.run.progress import DivergenceCheck, ProgressBar
from composer_cmi.run.ranks import start_device
from composer_cmi.run.scoring import task_metrics
from composer_cmi.run.setup import (
    DISTILLATION,
    build_algorithms,
    build_callbacks,
    build_optimizer,
    build_parallelism,
    build_scheduler,
    check_starts,
    choose_precision,
    cpu_bfloat16,
    microbatch_size,
    to_steps,
    user_errors,
)
from composer_cmi.teachers.pretrained import check_fit
from composer_cmi.teachers.safe_load import safe_loading

__all__ = ['Setup', 'build_trainer', 'prepare', 'score_key']


@dataclass(frozen=True)
class Setup:
    """What is made once for a run."""

    config: RunConfig
    data: TaskData
    model: HuggingFaceModel
    reader: FeatureReader
    train_data: DataSpec
    eval_data: dict[str, DataSpec]
    calibration_data: DataSpec | None
    algorithms: list[Algorithm]
    callbacks: list[Callback]
    device: Device
    precision: Precision
    notes: list[str]

    @property
    def primary_split(self) -> str:
        return next(iter(self.eval_data))

    @property
    def score_key(self) -> str:
        """The name under which Composer logs the primary score."""
        return score_key(self.data)


def score_key(data: TaskData) -> str:
    """The name under which Composer logs the primary score of the first evaluation split."""
    metric = task_metrics(data.task)[data.task.primary_metric]
    return f'metrics/{next(iter(data.eval_splits))}/{type(metric).__name__}'


def prepare(config: RunConfig, data: TaskData) -> Setup:
    """Load and build everything that can be refused.

    Raises:
        ConfigError: in one sentence.
    """
    device = start_device(config.train.device)
    precision = choose_precision(config.train, device)
    microbatch_size(config.train, device)
    silence_transformers()
    # The head is random: the same seed gives every arm, and every rank, the same one.
    reproducibility.seed_all(config.seed)
    model, tokenizer = build_model(config.model, data.label_names)
    check_fit(model, tokenizer, config.data.max_length)
    if config.calibrate:
        inputs = inputs_of(model, tokenizer, next(data.train.rows()), config.data.max_length)
        for temperature in (2.0, 0.5):  # exact in binary numbers: the head ends as it was
            divide_head(model, inputs, temperature)
    metrics = task_metrics(data.task)
    weights = None
    if config.train.class_weights is not None:
        weights = class_weights(config.train.class_weights, data.label_names, data.train.labels)
    composer_model = build_composer_model(
        model,
        tokenizer,
        eval_metrics=list(metrics.values()),
        label_smoothing=config.train.label_smoothing,
        weights=weights,
        peft=config.peft,
        fsdp=config.fsdp is not None,
        bfloat16=cpu_bfloat16(config.train, device),
    )
    with user_errors('model'):
        reader = FeatureReader(composer_model)

    def encode(split: Any) -> Any:
        return tokenize(split, tokenizer, max_length=config.data.max_length, cache_dir=config.data.cache_dir)

    # Rows without labels teach nothing without a teacher.
    distils = DISTILLATION in config.algorithms
    with user_errors('data'):
        encoded = encode(concatenate(data.train, data.unlabelled) if distils else data.train)
        train_data = train_dataloader(
            encoded,
            tokenizer,
            batch_size=config.train.batch_size,
            seed=config.seed,
            group_by_length=config.data.group_by_length,
            num_workers=config.train.num_workers,
        )

        def measured(split: Split) -> DataSpec:
            return eval_dataloader(encode(split), tokenizer, batch_size=config.train.eval_batch_size)

        eval_data = {name: measured(split) for name, split in data.eval_splits.items()}
        calibration_data = None if data.calibration is None else measured(data.calibration)
    callbacks = _callbacks(config, composer_model, metrics, [*eval_data])
    algorithms = build_algorithms(config.algorithms)
    check_starts(algorithms, config, steps_per_epoch=len(train_data.dataloader))  # pyright: ignore[reportArgumentType]
    readers = readers_of_all_tokens(config, algorithms, callbacks)
    if not readers:
        skip_unread_tokens(model)
    with user_errors(f'algorithms.{DISTILLATION}'):
        for algorithm in algorithms.values():
            if isinstance(algorithm, KnowledgeDistillation):
                prepare_distillation(
                    algorithm,
                    data,
                    tokenizer,
                    max_length=config.data.max_length,
                    device=device,
                    precision=precision,
                    cache_dir=config.data.cache_dir,
                    progress_bar=config.train.progress_bar,
                )
    return Setup(
        config=config,
        data=data,
        model=composer_model,
        reader=reader,
        train_data=train_data,
        eval_data=eval_data,
        calibration_data=calibration_data,
        algorithms=[*algorithms.values()],
        callbacks=[*callbacks.values()],
        device=device,
        precision=precision,
        notes=[*notes_before(config, data, device, weights, readers)],
    )


def _callbacks(
    config: RunConfig, model: HuggingFaceModel, metrics: Mapping[str, Metric], splits: Sequence[str]
) -> dict[str, Callback]:
    """Those of the file, pointed at what the run measures, and the one that keeps the best weights."""
    built = build_callbacks(config.callbacks)
    check_waiting(built, config.train, metrics, splits)
    if (metric := config.train.keep_best) is not None:
        by_composer, lower = metric_name('train.keep_best', metric, metrics), lower_is_better(metric)
        sharded = config.fsdp is not None
        built['train.keep_best'] = KeepBest(model.model, splits[0], by_composer, lower=lower, sharded=sharded)
    return built


class Built(NamedTuple):
    """A Trainer, and how far it goes.

    Attributes:
        trainer: Composer's.
        asked: The steps that the file asks for.
        steps: Those that there will be, as far as is known: fewer where an earlier start has ended training early.
        identified: Whether a checkpoint was taken up that holds its run's identity.
    """

    trainer: Trainer
    asked: int
    steps: int
    identified: bool


def build_trainer(setup: Setup, identity: dict[str, Any], checkpoint: Path | None, history: HistoryLogger) -> Built:
    """The Trainer, with what the checkpoint holds where there is one."""
    config = setup.config
    steps_per_epoch = len(setup.train_data.dataloader)  # pyright: ignore[reportArgumentType]
    count = {'steps_per_epoch': steps_per_epoch, 'batch_size': config.train.batch_size}
    steps = to_steps(config.train.max_duration, **count)
    warmup = to_steps(config.scheduler.warmup, **count, total=steps)
    eval_every = Time.from_timestring(config.train.eval_interval)
    evaluators = [
        Evaluator(label=name, dataloader=data, device_eval_microbatch_size=config.train.eval_batch_size)
        for name, data in setup.eval_data.items()
    ]
    shown = {'loss/train/total': 'loss', 'cmi/cmi': 'cmi', setup.score_key: setup.data.task.primary_metric}
    loggers: list[Any] = [history]
    loggers += [build_logger(name, kwargs, config.folder) for name, kwargs in config.loggers.items()]
    if config.train.progress_bar:
        loggers.append(ProgressBar(config.folder.name, shown))
    watch, ending = DivergenceCheck(), Ending(steps)
    # The gradient scaler of amp_fp16 may meet an overflow and skip the step.
    first = [] if setup.precision == Precision.AMP_FP16 else [watch]
    measures: list[RowMeasures] = []
    compiled = config.train.compile
    if compiled is False:  # the hooks of a second reader are more than compiled code's guards bear
        measures = [RowMeasures(FeatureReader(setup.model), setup.data.task.primary_metric)]
    elif dist.get_global_rank() == 0:
        print('train.compile: training rows are not measured on their way; the picture has the held-out ones alone.')

    def before_saving() -> None:
        watch.check()
        for each in measures:
            each.share()

    saver = CheckedCheckpoints(
        config.folder,
        identity=identity,
        save_interval=config.checkpoint.save_interval,
        num_keep=config.checkpoint.num_keep,
        refuse=lambda there: refuse_other(config, identity, there, 'an interrupted'),
        check=before_saving,
    )
    # Composer says so for every last batch of an evaluation; nothing is wrong with one.
    warnings.filterwarnings('ignore', message='Cannot split tensor of length')
    with user_errors(), loading(checkpoint) as load_path, safe_loading(config.folder / CHECKPOINTS):
        trainer = Trainer(
            model=setup.model,
            run_name=config.run_name,
            seed=config.seed,
            # In steps, so that shares of it ('0.3dur') are exact to the step.
            max_duration=f'{steps}ba',
            train_dataloader=setup.train_data,
            eval_dataloader=evaluators if eval_every.value > 0 else None,
            eval_interval=config.train.eval_interval if eval_every.value > 0 else 1,
            optimizers=build_optimizer(setup.model, config.optimizer),
            schedulers=build_scheduler(warmup, steps, config.scheduler.name, config.scheduler.arguments),
            step_schedulers_every_batch=True,
            algorithms=setup.algorithms,
            loggers=loggers,
            progress_bar=False,
            device=setup.device,
            precision=setup.precision,
            device_train_microbatch_size=microbatch_size(config.train, setup.device),
            parallelism_config=build_parallelism(config),
            callbacks=[*first, *measures, *setup.callbacks, ending, saver],
            compile_config=None if compiled is False else {} if compiled is True else compiled,
            load_path=load_path,
            load_progress_bar=False,
            python_log_level='warning',
        )
    reached = int(trainer.state.timestamp.batch) if ending.reached else steps
    return Built(trainer, steps, reached, saver.identified)
