"""One training run, from a checked configuration to a finished run folder."""

from __future__ import annotations

import json
import time
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from composer import Evaluator, Trainer
from composer.core import Algorithm, DataSpec, Precision, Time
from composer.devices import Device
from composer.models import HuggingFaceModel
from composer.utils import dist, get_device, reproducibility

from composer_cmi.algorithms.distillation import KnowledgeDistillation
from composer_cmi.data.task_data import (
    TaskData,
    concatenate,
    eval_dataloader,
    load_task_data,
    tokenize,
    train_dataloader,
)
from composer_cmi.features import FeatureReader
from composer_cmi.run.config.schema import RunConfig
from composer_cmi.run.distill import prepare_distillation
from composer_cmi.run.evaluate import Evaluation, evaluate, information
from composer_cmi.run.loggers import build_logger
from composer_cmi.run.models import build_composer_model, build_model, silence_transformers
from composer_cmi.run.outputs.export import export_model, sample_of
from composer_cmi.run.outputs.files import write_features, write_json, write_predictions
from composer_cmi.run.outputs.folder import finished_results, open_folder
from composer_cmi.run.outputs.history import HISTORY_FILE, HistoryLogger, read_history
from composer_cmi.run.outputs.model_card import write_model_card
from composer_cmi.run.outputs.plots import plot_run
from composer_cmi.run.outputs.results import RESULTS_FILE, Information, RunResults, Timing, git_state, versions
from composer_cmi.run.progress import ProgressBar
from composer_cmi.run.scoring import score, task_metrics
from composer_cmi.run.setup import (
    build_algorithms,
    build_optimizer,
    build_parallelism,
    build_scheduler,
    choose_precision,
    rank_batch_size,
    to_steps,
    user_errors,
)
from composer_cmi.safe_load import safe_loading
from composer_cmi.teachers.pretrained import check_fit

__all__ = ['load_data', 'train_run']

BEFORE_FILE = 'before.json'
DISTILLATION = 'knowledge_distillation'


@dataclass(frozen=True)
class _Setup:
    """What is made once for a run."""

    config: RunConfig
    data: TaskData
    model: HuggingFaceModel
    reader: FeatureReader
    train_data: DataSpec
    eval_data: dict[str, DataSpec]
    algorithms: list[Algorithm]
    device: Device
    precision: Precision

    @property
    def primary_split(self) -> str:
        return next(iter(self.eval_data))

    @property
    def score_key(self) -> str:
        """The name under which Composer logs the primary score."""
        metric = task_metrics(self.data.task)[self.data.task.primary_metric]
        return f'metrics/{self.primary_split}/{type(metric).__name__}'


def train_run(config: RunConfig, data: TaskData | None = None) -> RunResults:
    """Train, evaluate and write the run folder; a finished folder of the same settings is read instead.

    All ranks call it. An interrupted run goes on from its last checkpoint.

    Args:
        config: One run, without arms.
        data: The task's data where the caller has read them already.

    Raises:
        ConfigError: in one sentence, before training, for whatever cannot be run.
    """
    finished = finished_results(config)
    if finished is not None:
        return finished
    started = time.perf_counter()
    setup = _prepare(config, load_data(config) if data is None else data)
    open_folder(config)
    trainer, steps = _build_trainer(setup)
    before = _measure_before(setup, trainer)
    if int(trainer.state.timestamp.batch) < steps:
        trainer.fit()
    after = {split: _evaluate(setup, split) for split in setup.eval_data}
    train_seconds = trainer.state.timestamp.total_wct.total_seconds() if trainer.state.timestamp.total_wct else 0.0
    trainer.close()
    timing = Timing(
        train_seconds=train_seconds,
        steps=steps,
        seconds_per_step=train_seconds / steps,
        total_seconds=time.perf_counter() - started,
    )
    return _write_folder(setup, before, after, timing)


def load_data(config: RunConfig) -> TaskData:
    """The task's data, as the ``data`` section cuts them.

    Raises:
        ConfigError: in one sentence, with file and line, if they cannot be read.
    """
    with user_errors():
        return load_task_data(config.task, config.data)


def _prepare(config: RunConfig, data: TaskData) -> _Setup:
    device = get_device(config.train.device)
    if dist.get_world_size() > 1:
        dist.initialize_dist(device)
    precision = choose_precision(config.train, device)
    rank_batch_size(config.train.batch_size, 'train.batch_size')
    silence_transformers()
    # The head is random: the same seed gives every arm, and every rank, the same one.
    reproducibility.seed_all(config.seed)
    model, tokenizer = build_model(config.model, data.label_names)
    check_fit(model, tokenizer, config.data.max_length)
    metrics = list(task_metrics(data.task).values())
    composer_model = build_composer_model(
        model,
        tokenizer,
        eval_metrics=metrics,
        label_smoothing=config.train.label_smoothing,
        peft=config.peft,
        fsdp=config.fsdp is not None,
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
        eval_data = {
            name: eval_dataloader(encode(split), tokenizer, batch_size=config.train.eval_batch_size)
            for name, split in data.eval_splits.items()
        }
    algorithms = build_algorithms(config.algorithms)
    with user_errors(f'algorithms.{DISTILLATION}'):
        for algorithm in algorithms:
            if isinstance(algorithm, KnowledgeDistillation):
                prepare_distillation(
                    algorithm,
                    data,
                    tokenizer,
                    max_length=config.data.max_length,
                    device=device,
                    precision=precision,
                    cache_dir=config.data.cache_dir,
                )
    return _Setup(config, data, composer_model, reader, train_data, eval_data, algorithms, device, precision)


def _build_trainer(setup: _Setup) -> tuple[Trainer, int]:
    config = setup.config
    steps_per_epoch = len(setup.train_data.dataloader)  # pyright: ignore[reportArgumentType]
    count = {'steps_per_epoch': steps_per_epoch, 'batch_size': config.train.batch_size}
    steps = to_steps(config.train.max_duration, **count)
    warmup = to_steps(config.scheduler.warmup, **count, total=steps)
    eval_every = Time.from_timestring(config.train.eval_interval)
    evaluators = [
        Evaluator(
            label=name,
            dataloader=data,
            device_eval_microbatch_size=config.train.eval_batch_size,
        )
        for name, data in setup.eval_data.items()
    ]
    shown = {'loss/train/total': 'loss', 'cmi/cmi': 'cmi', setup.score_key: setup.data.task.primary_metric}
    loggers = [HistoryLogger(config.folder / HISTORY_FILE)]
    loggers += [build_logger(name, kwargs, config.folder) for name, kwargs in config.loggers.items()]
    if config.train.progress_bar:
        loggers.append(ProgressBar(config.folder.name, shown))
    rank_batch = rank_batch_size(config.train.batch_size, 'train.batch_size')
    # Composer says so for every last batch of an evaluation; nothing is wrong with one.
    warnings.filterwarnings('ignore', message='Cannot split tensor of length')
    with user_errors(), safe_loading(config.folder / 'checkpoints'):
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
            schedulers=build_scheduler(warmup, steps),
            step_schedulers_every_batch=True,
            algorithms=setup.algorithms,
            loggers=loggers,
            progress_bar=False,
            device=setup.device,
            precision=setup.precision,
            device_train_microbatch_size=config.train.microbatch_size or rank_batch,
            parallelism_config=build_parallelism(config),
            save_folder=str(config.folder / 'checkpoints'),
            save_interval=config.checkpoint.save_interval,
            save_num_checkpoints_to_keep=config.checkpoint.num_keep,
            save_overwrite=True,
            autoresume=config.checkpoint.autoresume,
            load_progress_bar=False,
            python_log_level='warning',
        )
    return trainer, steps


def _evaluate(setup: _Setup, split: str) -> Evaluation:
    data = setup.eval_data[split]
    return evaluate(setup.model, setup.reader, data, device=setup.device, precision=setup.precision)


def _measure_before(setup: _Setup, trainer: Trainer) -> dict[str, Any] | None:
    """Held-out information of the model that training starts from; a resumed run reads what was measured then."""
    path = setup.config.folder / BEFORE_FILE
    if int(trainer.state.timestamp.batch) > 0:
        return json.loads(path.read_text(encoding='utf-8')) if path.is_file() else None
    before = information(_evaluate(setup, setup.primary_split), len(setup.data.label_names))
    if dist.get_global_rank() == 0:
        write_json(path, before)
    return before


def _teacher_facts(algorithms: list[Algorithm]) -> dict[str, Any] | None:
    facts = [a.teacher_facts for a in algorithms if isinstance(a, KnowledgeDistillation)]
    return next((fact for fact in facts if fact), None)


def _write_folder(
    setup: _Setup, before: dict[str, Any] | None, after: dict[str, Evaluation], timing: Timing
) -> RunResults:
    config, data, primary = setup.config, setup.data, after[setup.primary_split]
    measured = {'before': before, 'after': information(primary, len(data.label_names))}
    results = RunResults(
        run_name=config.run_name,
        task=config.task,
        seed=config.seed,
        metric=data.task.primary_metric,
        scores={split: score(data.task, part.logits, part.labels) for split, part in after.items()},
        cmi={
            when: {space: Information(**values) for space, values in spaces.items()}
            for when, spaces in measured.items()
            if spaces is not None
        },  # pyright: ignore[reportArgumentType]
        timing=timing,
        num_examples={
            'train': len(data.train),
            'unlabelled': 0 if data.unlabelled is None else len(data.unlabelled),
            **{split: len(rows) for split, rows in data.eval_splits.items()},
        },
        majority=data.constant_answer,
        data_fingerprint=data.fingerprint,
        versions=versions(),
        git=git_state(),
        teacher=_teacher_facts(setup.algorithms),
        notes=list(data.notes),
        config=config.resolved(),
    )

    def rebuild() -> HuggingFaceModel:
        return build_composer_model(*build_model(config.model, data.label_names), peft=config.peft)

    export_model(
        setup.model,
        config.folder / 'model',
        rebuild=None if config.fsdp is None else rebuild,
        max_length=config.data.max_length,
        sample=sample_of(data.eval_splits[setup.primary_split], primary),
        tolerance=1e-2 if setup.precision is Precision.FP32 else 0.1,
    )
    if dist.get_global_rank() == 0:
        for split, part in after.items():
            write_predictions(config.folder / f'predictions_{split}.csv', part)
            write_features(config.folder / f'features_{split}.npz', part, data.label_names)
        plot_run(
            config.folder / 'cmi.png',
            title=f'{config.run_name} ({config.task}, seed {config.seed})',
            history=read_history(config.folder / HISTORY_FILE),
            after=primary,
            label_names=data.label_names,
            score_key=setup.score_key,
            score_name=data.task.primary_metric,
            information=results.model_dump()['cmi'],
        )
        write_model_card(config.folder / 'model' / 'README.md', results, data.label_names)
        # Last: a folder with results.json is a finished one.
        write_json(config.folder / RESULTS_FILE, results.model_dump(mode='json'))
    dist.barrier()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return results
