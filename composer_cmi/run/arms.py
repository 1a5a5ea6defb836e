"""Several arms of one run, each from the same seed, and the table that sets them side by side."""

from __future__ import annotations

import sys
import time
from collections.abc import Hashable, Mapping
from typing import Any

from composer.devices import Device
from composer.utils import dist
from rich.console import Console
from rich.table import Table

from composer_cmi.data.task_data import TaskData
from composer_cmi.errors import ConfigError
from composer_cmi.run.config import arm_configs
from composer_cmi.run.config.schema import RunConfig
from composer_cmi.run.outputs.folder import from_rank_zero
from composer_cmi.run.outputs.identity import fingerprints
from composer_cmi.run.outputs.results import RunResults
from composer_cmi.run.parts.rehearsal import model_key, rehearse, rehearse_model
from composer_cmi.run.ranks import start_device
from composer_cmi.run.train import load_data, look_up, train_run
from composer_cmi.text import for_rich

__all__ = ['results_table', 'run_all']


def run_all(config: RunConfig, began: float | None = None) -> dict[str, RunResults]:
    """Run every arm that has not finished before, in order, and print one table. All ranks call it.

    Args:
        config: One run, or several arms of it.
        began: When the process began (``time.time()``), from which the time before the first step counts; or now.

    Raises:
        ConfigError: in one sentence, before the first training, for whatever cannot be run.
    """
    began = time.time() if began is None else began
    arms = arm_configs(config)
    device = start_device(config.train.device)
    # A file has no width: leave room for many arms.
    width = None if sys.stdout.isatty() else 160
    console = Console(file=sys.stdout, width=width, highlight=False, soft_wrap=True, quiet=dist.get_global_rank() != 0)
    # Everything that can be refused is refused before the first arm trains.
    datasets = _load_all(arms)
    done = {name: look_up(arm, _inputs(arm, datasets[name])) for name, arm in arms.items()}
    _rehearse_later({name: arm for name, arm in arms.items() if done[name] is None}, datasets)
    results = {}
    shown = ''
    for name, arm in arms.items():
        finished = done[name]
        if finished is not None:
            console.print(for_rich(name, 'bold'), for_rich(f': finished before, in {arm.folder}'), sep='')
        else:
            shown = _introduce(console, name, arm, datasets[name], device, shown)
        # A finished one is compared once more: an arm before it may have been a part of it, and has changed.
        results[name] = train_run(arm, datasets.pop(name), began)
        began = time.time()
    console.print()
    title = f'{config.run_name}: {config.task}; held-out information in nats, before -> after training'
    console.print(results_table(results, title=title))
    where = for_rich(config.folder, 'bold')
    console.print('Run folder: ', where, ' (each with results.json, cmi.png, model/, predictions)', sep='')
    return results


def _load_all(arms: Mapping[str, RunConfig]) -> dict[str, TaskData]:
    # Arms of one data section share what is read.
    read: dict[tuple[Any, ...], TaskData] = {}
    found = {}
    for name, arm in arms.items():
        key = (arm.task, arm.data.model_dump_json(), arm.calibrate)
        if key not in read:
            read[key] = load_data(arm)
        found[name] = read[key]
    return found


def _rehearse_later(arms: Mapping[str, RunConfig], datasets: Mapping[str, TaskData]) -> None:
    # The first one is refused, if at all, before it trains.
    built: set[Hashable] = {None}
    for place, (name, arm) in enumerate(arms.items()):
        model = model_key(arm, datasets[name])
        try:
            if place:
                rehearse(arm, datasets[name])
            if place and model not in built:
                rehearse_model(arm, datasets[name])
        except ConfigError as error:
            raise ConfigError(f'arm {name}: {error}') from error
        built.add(model)


def _inputs(arm: RunConfig, data: TaskData) -> dict[str, str]:
    return from_rank_zero(lambda: fingerprints(arm, data))


def _introduce(console: Console, name: str, arm: RunConfig, data: TaskData, device: Device, shown: str) -> str:
    """Say what is about to run; the data only where they differ from the ones before. Returns what was said of them."""
    description = data.describe()
    if description != shown:
        console.print(description, markup=False, emoji=False)
    algorithms = ', '.join(f'{key}({_arguments(kwargs)})' for key, kwargs in arm.algorithms.items()) or 'none'
    what = f': {arm.model.name_or_path}, {arm.train.max_duration}, seed {arm.seed}, '
    machine = f'{dist.get_world_size()} x {device.name}; algorithms: {algorithms}'
    console.print('\n', for_rich(name, 'bold'), for_rich(what + machine), sep='')
    return description


def _arguments(kwargs: Mapping[str, Any]) -> str:
    return ', '.join(f'{key}={value}' for key, value in kwargs.items())


def results_table(results: Mapping[str, RunResults], title: str = '') -> Table:
    """One column an arm: scores, held-out information before and after training, time."""
    table = Table(title=for_rich(title, 'italic'), title_justify='left')
    table.add_column('')
    for name in results:
        table.add_column(for_rich(name), justify='right')
    for label, values in _rows(results):
        if label == '':
            table.add_section()
        else:
            table.add_row(for_rich(label), *values)
    return table


def _rows(results: Mapping[str, RunResults]) -> list[tuple[str, list[str]]]:
    runs = list(results.values())
    rows: list[tuple[str, list[str]]] = []
    splits = dict.fromkeys(split for run in runs for split in run.scores)
    for split in splits:
        names = dict.fromkeys(name for run in runs for name in run.scores.get(split, {}))
        for name in names:
            rows.append((f'{split} {name}', [_number(run.scores.get(split, {}).get(name), '.4f') for run in runs]))
    for space in ('features', 'logits'):
        rows.append(('', []))
        for key, symbol in (('cmi', 'CMI'), ('mutual_information', 'I(X;Z)'), ('relative_cmi', 'rho')):
            rows.append((f'{symbol}, {space}', [_before_after(run, space, key) for run in runs]))
    if any(run.calibration for run in runs):
        rows.append(('', []))
        values = [run.calibration and run.calibration.temperature for run in runs]
        rows.append(('temperature, in the scores above', [_number(value, '.3g') for value in values]))
        for split in splits:
            for key in ('nll', 'ece', 'brier'):
                changes = [_calibrated(run, split, key) for run in runs]
                rows.append((f'{split} {key}, without -> with it', changes))
    if any(run.teacher for run in runs):
        rows.append(('', []))
        keys = dict.fromkeys(key for run in runs for key, value in (run.teacher or {}).items() if _is_number(value))
        rows += [(f'teacher {key}', [_number((run.teacher or {}).get(key), '.4g') for run in runs]) for key in keys]
    rows.append(('', []))
    rows.append(('steps', [str(run.timing.steps) for run in runs]))
    if any(run.selection for run in runs):
        rows.append(('step that is kept, a selection', [_selected(run) for run in runs]))
    rows.append(('training, seconds', [f'{run.timing.train_seconds:.1f}' for run in runs]))
    rows.append(('seconds a step', [f'{run.timing.seconds_per_step:.3f}' for run in runs]))
    for key, label in (('before_seconds', 'before the first step'), ('after_seconds', 'after the last step')):
        if any(getattr(run.timing, key) is not None for run in runs):
            rows.append((f'{label}, seconds', [_number(getattr(run.timing, key), '.1f') for run in runs]))
    return rows


def _before_after(run: RunResults, space: Any, key: str) -> str:
    parts = [getattr(run.cmi[when][space], key) if when in run.cmi else None for when in ('before', 'after')]
    return ' -> '.join(_number(part, '.3g') for part in parts)


def _calibrated(run: RunResults, split: str, key: str) -> str:
    parts = run.calibration.splits.get(split) if run.calibration is not None else None
    return '-' if parts is None else ' -> '.join(_number(getattr(parts[w], key), '.4f') for w in ('before', 'after'))


def _selected(run: RunResults) -> str:
    chosen = run.selection
    return '-' if chosen is None else f'{chosen.step}, by {chosen.split} {chosen.metric}'


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: float | None, spec: str) -> str:
    return '-' if value is None else format(value, spec)
