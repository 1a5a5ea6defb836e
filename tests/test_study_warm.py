"""Runs forked from a warm process: own session, own log, own lock, and an end like any other process's."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from pathlib import Path

import pytest

from composer_cmi.study.execution.warm import WarmProcess


@pytest.fixture
def start(tmp_path):
    started = []

    def start(*arguments: str) -> WarmProcess:
        environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'COLUMNS': '200'}
        with (tmp_path / 'run.log').open('ab') as log, (tmp_path / 'run.lock').open('w') as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            process = WarmProcess(
                arguments, environment=environment, directory=str(tmp_path), log=log.fileno(), lock=lock.fileno()
            )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)


def locked(path: Path) -> bool:
    with path.open('w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_the_run_prints_into_its_log_and_ends_with_its_own_code(start, tmp_path):
    process = start('absent.yaml')
    assert process.poll() is None or process.poll() == 2
    process.wait(120)
    assert process.poll() == 2
    assert "composer-cmi: There is no file 'absent.yaml'" in (tmp_path / 'run.log').read_text()
    assert not locked(tmp_path / 'run.lock')


def test_a_run_has_the_imports_behind_it_and_its_collector_passes_over_them(start, tmp_path):
    (tmp_path / 'probe.py').write_text(
        'import gc, pathlib, time\n'
        "pathlib.Path('probe.txt').write_text(f'{gc.get_freeze_count()} {time.process_time()}')\n"
        "raise ValueError('enough')\n"
    )
    (tmp_path / 'run.yaml').write_text(
        'task: bbc_headlines\nrun_name: x\nmodel: {name_or_path: x}\ncode_paths: [probe.py]\n'
    )
    start('run.yaml').wait(120)
    frozen, seconds = (tmp_path / 'probe.txt').read_text().split()
    assert int(frozen) > 100_000
    assert float(seconds) < 2  # of the processor, whatever else is at work: the imports alone are five


def test_a_killed_run_gives_its_lock_back_and_says_by_what(start, tmp_path):
    (tmp_path / 'forever.py').write_text("import pathlib, time\npathlib.Path('begun').touch()\ntime.sleep(600)\n")
    (tmp_path / 'run.yaml').write_text(
        'task: bbc_headlines\nrun_name: x\nmodel: {name_or_path: x}\ncode_paths: [forever.py]\n'
    )
    process = start('run.yaml')
    deadline = time.monotonic() + 120
    while not (tmp_path / 'begun').exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # It leads a session of its own, so that a sweep can end it with all that it has started.
    assert os.getsid(process.pid) == process.pid != os.getsid(0)
    assert locked(tmp_path / 'run.lock')
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(60)
    assert process.poll() == -signal.SIGKILL
    assert not locked(tmp_path / 'run.lock')
