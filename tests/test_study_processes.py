"""The processes of a sweep: locked by their runs, killed at random moments, shared out by Ray."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from composer_cmi.errors import ConfigError
from composer_cmi.study.config import load_study
from composer_cmi.study.execution.plan import plan_reported
from composer_cmi.study.execution.processes import LocalBackend, job_of
from composer_cmi.study.execution.sweep import Summary
from composer_cmi.study.findings.report import report
from sweep_tools import CHEAP, TUNED, TWO_ARMS, events, quiet_sweep, write_study


def test_a_run_that_another_process_is_at_is_waited_for(tmp_path):
    path = write_study(tmp_path, {**TWO_ARMS, 'seeds': 1, 'settings': {'few': {}}})
    folder = tmp_path / 'out/small/runs/few/ce/seed0'
    folder.parent.mkdir(parents=True)
    code = f'import fcntl, time\nf = open({f"{folder}.lock"!r}, "w")\nfcntl.flock(f, fcntl.LOCK_EX)\n'
    code += 'print("held", flush=True)\ntime.sleep(60)'
    holder = subprocess.Popen([sys.executable, '-S', '-c', code], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    seen: list[Counter[tuple[str, str]]] = []

    def let_go() -> None:
        _wait_for(lambda: ('end', 'runs/few/mincmi/seed0') in events(tmp_path), 60)
        time.sleep(0.5)
        seen.append(events(tmp_path))
        holder.kill()
        holder.wait()

    thread = threading.Thread(target=let_go)
    thread.start()
    try:
        summary, _ = quiet_sweep(path)
    finally:
        thread.join()
        holder.kill()
    assert summary == Summary(0, 2, {})
    assert ('start', 'runs/few/ce/seed0') not in seen[0]
    assert set(events(tmp_path).values()) == {1}


@pytest.mark.parametrize('kills', [1, pytest.param(8, marks=pytest.mark.slow)])
def test_a_killed_sweep_loses_nothing_and_does_nothing_twice(tmp_path, kills):
    """The sweep is killed at random moments, on every second one its runs too; then it is started again."""
    path = write_study(tmp_path, TUNED, seconds=0.3)
    code = f'import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n'
    code += f'from sweep_tools import quiet_sweep; from pathlib import Path; quiet_sweep(Path({str(path)!r}), jobs=3)'
    generator = random.Random(kills)
    survived_by_runs = False
    for kill in range(kills):
        begun = sum(events(tmp_path).values())
        process = subprocess.Popen([sys.executable, '-c', code])
        wanted = begun + generator.randint(1, 56 // kills)  # of 72 starts and ends
        _wait_for(lambda wanted=wanted: sum(events(tmp_path).values()) >= wanted, 120)
        time.sleep(generator.random() * 0.5)
        process.send_signal(signal.SIGKILL)
        process.wait()
        survived_by_runs |= kill % 2 == 0
        if kill % 2:
            _kill_open_runs(tmp_path)
    summary, _ = quiet_sweep(path, jobs=3)
    assert not summary.failed
    counted = events(tmp_path)
    planned = {run for event, run in counted if event == 'start'}
    assert len(planned) == 36
    assert {run for event, run in counted if event == 'end'} == planned
    assert max(count for (event, _), count in counted.items() if event == 'end') == 1
    assert survived_by_runs
    undisturbed = tmp_path / 'undisturbed'
    undisturbed.mkdir()
    quiet_sweep(write_study(undisturbed, TUNED), jobs=3)
    tables = [report(folder / 'out/small')['comparisons'].read_text() for folder in (tmp_path, undisturbed)]
    assert tables[0] == tables[1]


def _kill_open_runs(folder: Path) -> None:
    lines = [line.split() for line in (folder / 'trace').read_text().splitlines()]
    ended = {pid for event, pid, _ in lines if event == 'end'}
    for pid in {pid for event, pid, _ in lines if event == 'start'} - ended:
        command = Path(f'/proc/{pid}/cmdline')
        if command.exists() and b'cheap_run.py' in command.read_bytes():
            os.kill(int(pid), signal.SIGKILL)


def _wait_for(condition: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, 'waited in vain'
        time.sleep(0.02)


def test_the_lock_is_held_by_the_run_itself(tmp_path):
    study = load_study(write_study(tmp_path, TWO_ARMS, seconds=30))
    cell = plan_reported(study, {})[0]
    backend = LocalBackend()
    backend.submit(job_of(cell, study.base, 1, CHEAP))
    try:
        with Path(f'{cell.folder}.lock').open('w') as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # this process has closed its own descriptor of it
        assert backend.poll() == []
    finally:
        backend.stop()
    with Path(f'{cell.folder}.lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.slow
def test_ray_schedules_the_same_runs_on_two_workers(tmp_path):
    pytest.importorskip('ray', reason='the extra `ray` is not installed')
    import ray  # pyright: ignore[reportMissingImports]
    from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingImports]

    cluster = Cluster(initialize_head=True, head_node_args={'num_cpus': 0})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        path = write_study(tmp_path, {**TWO_ARMS, 'seeds': 2}, seconds=0.3)
        summary, _ = quiet_sweep(path, jobs=4, backend='ray')
        assert summary == Summary(0, 8, {})
        assert set(events(tmp_path).values()) == {1}
        summary, _ = quiet_sweep(path, jobs=4, backend='ray')
        assert summary == Summary(8, 0, {})
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_without_ray_its_backend_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'ray', None)
    with pytest.raises(ConfigError, match=r"pip install 'composer-cmi\[ray\]'"):
        quiet_sweep(write_study(tmp_path, TWO_ARMS), backend='ray')
