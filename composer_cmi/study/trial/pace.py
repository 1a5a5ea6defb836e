"""How long a run takes here: measured by runs of a few steps, as many side by side as the trial will have."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from composer_cmi.errors import ConfigError
from composer_cmi.run.outputs.results import load_results
from composer_cmi.study.config import encode
from composer_cmi.study.execution.plan import Cell
from composer_cmi.study.execution.processes import LocalBackend, Outcome, job_of
from composer_cmi.study.trial.plan import Pace

__all__ = ['measure_pace']

_STEPS = 10
_POLL = 0.2


def measure_pace(base: Path, folder: Path, jobs: int, runner: Sequence[str] | None = None) -> Pace:
    """Run the base file for a few steps, `jobs` times at once, and take the slowest; nothing of it is kept.

    Raises:
        ConfigError: a run failed, with its own sentence.
        KeyboardInterrupt, SystemExit: on Ctrl-C and SIGTERM, after the runs are ended.
    """
    shutil.rmtree(folder, ignore_errors=True)
    engine, ended = LocalBackend(), list[Outcome]()
    try:
        for number in range(jobs):
            # Tokens are made once and kept: the runs of the study find them.
            values = {'run_name': f'seed{number}', 'output_dir': str(folder), 'seed': number}
            overrides = encode({**values, 'train.max_duration': f'{_STEPS}ba', 'train.progress_bar': False})
            cell = Cell('pace', 'ce', number, f'{folder}/seed{number}', tuple(overrides))
            engine.submit(job_of(cell, str(base), 1, runner))
        while len(ended) < jobs:
            time.sleep(_POLL)
            ended += engine.poll()
    except BaseException:
        engine.stop()
        raise
    for outcome in ended:
        if outcome.state != 'finished':
            raise ConfigError(f'The first run did not end well: {outcome.message or outcome.state}')
    results = [load_results(outcome.folder) for outcome in ended]
    timings = [each.timing for each in results if each is not None]
    step = float(np.max([timing.train_seconds / max(timing.steps, 1) for timing in timings]))
    whole = float(np.max([outcome.seconds for outcome in ended]))
    shutil.rmtree(folder, ignore_errors=True)
    return Pace(max(whole - step * _STEPS, 0.1), step, jobs)
