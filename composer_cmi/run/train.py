"""One training run, from a checked configuration to a finished run folder."""

from __future__ import annotations

import json
import time
from typing import Any

import torch
from composer import Trainer
from composer.core import Algorithm, DataSpec, Precision
from composer.devices import DeviceCPU
from composer.models import HuggingFaceModel
from composer.utils import dist

from composer_cmi.algorithms.distillation import KnowledgeDistillation
from composer_cmi.data.rows.machine import shared
from composer_cmi.data.task_data import TaskData, load_task_data
from composer_cmi.errors import ConfigError
from composer_cmi.run.calibrate.reliability import calibration_of
from composer_cmi.run.calibrate.temperature import divided, fit_temperature
from composer_cmi.run.config.schema import RunConfig
from composer_cmi.run.evaluate import Evaluation, evaluate, information
from composer_cmi.run.models import build_model
from composer_cmi.run.outputs.export import export_model, sample_of
from composer_cmi.run.outputs.files import read_checked, write_features, write_json, write_predictions
from composer_cmi.run.outputs.folder import (
    BEFORE_FILE,
    enter_folder,
    finished_results,
    from_rank_zero,
    identity_of,
    locked,
    open_folder,
    refuse_interrupted,
)
from composer_cmi.run.outputs.history import HISTORY_FILE, HistoryLogger
from composer_cmi.run.outputs.identity import fingerprints
from composer_cmi.run.outputs.results import (
    RESULTS_FILE,
    Information,
    RunResults,
    Selection,
    Timing,
    git_state,
    versions,
)
from composer_cmi.run.outputs.views import add_views
from composer_cmi.run.parts.classifier import build_composer_model
from composer_cmi.run.parts.memory import keep_freed_memory
from composer_cmi.run.parts.notes import notes_after, print_notes
from composer_cmi.run.parts.selection import KeepBest
from composer_cmi.run.prepare import Setup, build_trainer, prepare, score_key
from composer_cmi.run.scoring import score
from composer_cmi.run.setup import user_errors

__all__ = ['load_data', 'look_up', 'train_run']


def train_run(config: RunConfig, data: TaskData | None = None, began: float | None = None) -> RunResults:
    """Train, evaluate and write the run folder; a finished folder of the same settings is read instead.

    All ranks call it. An interrupted run goes on from its last checkpoint.

    Args:
        config: One run, without arms.
        data: The task's data where the caller has read them already.
        began: When the work on this run began (``time.time()``); now, unless given.

    Raises:
        ConfigError: in one sentence, before training, for whatever cannot be run.
    """
    began = time.time() if began is None else began
    data = load_data(config) if data is None else data
    inputs = from_rank_zero(lambda: fingerprints(config, data))
    finished = look_up(config, inputs)
    if finished is None:
        with locked(config.folder):
            # Once more: the process that held the lock may have finished it.
            finished = look_up(config, inputs) or _train(config, data, inputs, began)
    if dist.get_global_rank() == 0:
        add_views(config.folder, finished, data.label_names, score_key(data))
    dist.barrier()
    return finished


def look_up(config: RunConfig, inputs: dict[str, str]) -> RunResults | None:
    """The results of this very run where it has finished; all ranks call it, rank 0 looks.

    Raises:
        ConfigError: if the folder holds another run, finished or not, or damaged results.
    """

    def look() -> RunResults | None:
        finished = finished_results(config, inputs)
        if finished is None:
            refuse_interrupted(config, identity_of(config, inputs))
        return finished

    return from_rank_zero(look)


def _train(config: RunConfig, data: TaskData, inputs: dict[str, str], began: float) -> RunResults:
    started = time.perf_counter()
    setup = prepare(config, data)
    print_notes(setup.notes)
    if not any(key.startswith('model') for key in inputs):
        # Only now that it has been loaded is the commit of a model on the hub known.
        inputs = from_rank_zero(lambda: fingerprints(config, data))
    identity = identity_of(config, inputs)
    checkpoint, described = from_rank_zero(lambda: open_folder(config, identity))
    history = HistoryLogger(config.folder / HISTORY_FILE)
    trainer, asked, steps, identified = build_trainer(setup, identity, checkpoint, history)
    if checkpoint is not None and not described and not identified:
        raise ConfigError(
            f'Nothing says which run the checkpoint {checkpoint} is of: choose another run_name, or delete the folder.'
        )
    of_unknown = checkpoint if not identified else None
    from_rank_zero(lambda: enter_folder(config, identity, of_unknown=of_unknown))
    if isinstance(setup.device, DeviceCPU):
        keep_freed_memory()
    try:
        before = _measure_before(setup, trainer)
        if int(trainer.state.timestamp.batch) < steps:
            trainer.fit()
            steps = int(trainer.state.timestamp.batch)
        elif trainer.state.evaluators and not history.logs(steps, f'metrics/{setup.primary_split}/'):
            trainer.eval()  # killed between the last checkpoint and the last evaluation
        selection = _keep_best(setup)
        after = {split: _evaluate(setup, data) for split, data in setup.eval_data.items()}
        aside = None if setup.calibration_data is None else _evaluate(setup, setup.calibration_data)
    except BaseException as error:
        step = int(trainer.state.timestamp.batch)
        error.__notes__ = [f'{config.run_name} is at step {step} of {steps}']  # pyright: ignore
        raise
    finally:
        trainer.close()  # whatever happened, the history gets its last rows
    train_seconds = trainer.state.timestamp.total_wct.total_seconds() if trainer.state.timestamp.total_wct else 0.0
    timing = Timing(
        train_seconds=train_seconds,
        steps=steps,
        seconds_per_step=train_seconds / steps,
        total_seconds=time.perf_counter() - started,
        before_seconds=None if history.first_step is None else history.first_step - began,
    )
    history.seal()
    print_notes(each.raised_words() for each in setup.algorithms if isinstance(each, KnowledgeDistillation))
    print_notes(ended := [*notes_after(setup.primary_split, asked, steps, selection)])
    setup.notes.extend(ended)
    return _write_folder(setup, inputs, before, after, aside, selection, timing, history.last_step)


def load_data(config: RunConfig) -> TaskData:
    """The task's data, as the ``data`` section cuts them; all ranks call it, those of a machine share the rows.

    Raises:
        ConfigError: in one sentence, with file and line, if they cannot be read.
    """
    with user_errors():
        return shared(lambda: load_task_data(config.task, config.data, calibrate=config.calibrate))


def _evaluate(setup: Setup, data: DataSpec) -> Evaluation:
    return evaluate(setup.model, setup.reader, data, device=setup.device, precision=setup.precision)


def _measure_before(setup: Setup, trainer: Trainer) -> dict[str, Any] | None:
    """Held-out information of the model that training starts from; a resumed run reads what was measured then."""
    path = setup.config.folder / BEFORE_FILE
    if int(trainer.state.timestamp.batch) > 0:
        remedy = 'delete it, and the run goes on without what was measured before training'
        return from_rank_zero(lambda: json.loads(read_checked(path, remedy)) if path.is_file() else None)
    measured = _evaluate(setup, setup.eval_data[setup.primary_split])
    before = information(measured, len(setup.data.label_names))
    if dist.get_global_rank() == 0:
        write_json(path, before, checked=True)
    return before


def _keep_best(setup: Setup) -> Selection | None:
    """Give the model the weights of its best evaluation, where that is asked for."""
    kept = next((callback for callback in setup.callbacks if isinstance(callback, KeepBest)), None)
    metric = setup.config.train.keep_best
    if kept is None or metric is None or kept.value is None:
        return None
    kept.restore()
    return Selection(metric=metric, split=kept.split, value=kept.value, step=kept.step, evaluations=kept.evaluations)


def _teacher_facts(algorithms: list[Algorithm]) -> dict[str, Any] | None:
    found = next((a for a in algorithms if isinstance(a, KnowledgeDistillation)), None)
    if found is None or found.teacher_facts is None:
        return None
    return {**found.teacher_facts, **({} if found.raised is None else {'raised': found.raised})}


def _write_folder(
    setup: Setup,
    inputs: dict[str, str],
    before: dict[str, Any] | None,
    after: dict[str, Evaluation],
    aside: Evaluation | None,
    selection: Selection | None,
    timing: Timing,
    last_step: float | None,
) -> RunResults:
    config, data = setup.config, setup.data
    measured = {'before': before, 'after': information(after[setup.primary_split], len(data.label_names))}
    calibration = None
    if aside is not None:
        calibration = calibration_of(fit_temperature(aside), len(aside.labels), after)
        after = {split: divided(part, calibration.temperature) for split, part in after.items()}
    with user_errors():  # logits that are not finite
        scores = {split: score(data.task, part.logits, part.labels) for split, part in after.items()}
    results = RunResults(
        run_name=config.run_name,
        task=config.task,
        seed=config.seed,
        metric=data.task.primary_metric,
        scores=scores,
        cmi={
            when: {space: Information(**values) for space, values in spaces.items()}
            for when, spaces in measured.items()
            if spaces is not None
        },  # pyright: ignore[reportArgumentType]
        timing=timing,
        num_examples={
            'train': len(data.train),
            'unlabelled': 0 if data.unlabelled is None else len(data.unlabelled),
            **({} if data.calibration is None else {'calibration': len(data.calibration)}),
            **{split: len(rows) for split, rows in data.eval_splits.items()},
        },
        majority=data.constant_answer,
        data_fingerprint=data.fingerprint,
        fingerprints=inputs,
        versions=versions(),
        git=git_state(),
        teacher=_teacher_facts(setup.algorithms),
        selection=selection,
        calibration=calibration,
        notes=[*data.notes, *setup.notes],
        config=config.resolved(),
    )

    def rebuild() -> HuggingFaceModel:
        return build_composer_model(*build_model(config.model, data.label_names), peft=config.peft)

    export_model(
        setup.model,
        config.folder / 'model',
        rebuild=None if config.fsdp is None else rebuild,
        max_length=config.data.max_length,
        sample=sample_of(data.eval_splits[setup.primary_split], after[setup.primary_split]),
        tolerance=1e-2 if setup.precision is Precision.FP32 else 0.1,
        temperature=1.0 if calibration is None else calibration.temperature,
        trust_remote_code=config.model.trust_remote_code,
    )
    if last_step is not None:
        spent = timing.model_copy(update={'after_seconds': time.time() - last_step})
        results = results.model_copy(update={'timing': spent})
    if dist.get_global_rank() == 0:
        for split, part in after.items():
            write_predictions(config.folder / f'predictions_{split}.csv', part)
            write_features(config.folder / f'features_{split}.npz', part, data.label_names)
        # Last of what counts: a folder with results.json is a finished one. Pictures of it come after.
        write_json(config.folder / RESULTS_FILE, results.model_dump(mode='json'), checked=True)
    dist.barrier()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return results
