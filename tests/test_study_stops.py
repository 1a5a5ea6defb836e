"""How a sweep ends and goes on: Ctrl-C, failures, places that cannot be written, changed study files, other schedulers."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from composer_cmi.errors import ConfigError
from composer_cmi.study.execution.processes import Job, LocalBackend
from composer_cmi.study.execution.sweep import Summary
from sweep_tools import TUNED, TWO_ARMS, events, quiet_sweep, write_study

TESTS = Path(__file__).parent


def _wait_for(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, 'waited in vain'
        time.sleep(0.05)


def _is_alive(pid: int) -> bool:
    status = Path(f'/proc/{pid}/stat')
    return status.exists() and status.read_text().rsplit(')', 1)[1].split()[0] != 'Z'


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_promise_20b_ctrl_c_says_how_far_it_got_and_ends_its_runs(tmp_path, number):
    path = write_study(tmp_path, TWO_ARMS, seconds=60)
    code = f'import sys, functools; sys.path.insert(0, {str(TESTS)!r})\n'
    code += 'import composer_cmi.study.execution.sweep as module; from composer_cmi.cli import app\n'
    code += 'from sweep_tools import CHEAP\nmodule.sweep = functools.partial(module.sweep, runner=CHEAP)\n'
    code += f'app(["sweep", {str(path)!r}, "--jobs", "2"])'
    process = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    _wait_for(lambda: sum(events(tmp_path).values()) == 2)
    process.send_signal(number)
    printed, complained = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert printed.splitlines()[-1] == (
        f'Stopped: 0 of 12 runs are finished. The same command goes on: composer-cmi sweep {path}'
    )
    assert 'Traceback' not in complained
    begun = [int(line.split()[1]) for line in (tmp_path / 'trace').read_text().splitlines()]
    assert len(begun) == 2 and not any(_is_alive(pid) for pid in begun)


@pytest.mark.parametrize('send', [os.kill, pytest.param(os.killpg, marks=pytest.mark.slow)])
def test_promise_16c_ctrl_c_while_the_fork_server_starts_leaves_no_run_behind(tmp_path, send):
    (tmp_path / 'begin.py').write_text("import pathlib, time\npathlib.Path('begun').touch()\ntime.sleep(600)\n")
    run = {'task': 'bbc_headlines', 'run_name': 'x', 'model': {'name_or_path': 'x'}, 'code_paths': ['begin.py']}
    (tmp_path / 'run.yaml').write_text(yaml.safe_dump(run))
    job = tuple(Job(str(tmp_path / 'x'), None, ('run.yaml',), 1, str(tmp_path)))
    code = 'import sys, time\nfrom composer_cmi.study.execution.processes import Job, LocalBackend\n'
    code += 'backend = LocalBackend()\nprint("ready", flush=True)\ntry:\n'
    code += (
        f'    backend.submit(Job(*{job!r}))\n    time.sleep(60)\nexcept BaseException as error:\n    backend.stop()\n'
    )
    code += '    sys.exit(130 if isinstance(error, KeyboardInterrupt) else error.code)\n'
    process = subprocess.Popen(
        [sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.5)
    send(process.pid, signal.SIGINT)
    assert process.wait(60) == 130

    def gone() -> bool:
        return not any(
            _is_alive(int(each.name)) and os.getpgid(int(each.name)) == process.pid
            for each in Path('/proc').iterdir()
            if each.name.isdigit() and _is_alive(int(each.name))
        )

    _wait_for(gone)  # the server too, which would have forked the run by now
    assert process.stderr is not None and 'Traceback' not in process.stderr.read()
    assert not (tmp_path / 'begun').exists()
    with (tmp_path / 'x.lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_ending_a_run_ends_what_it_has_started(tmp_path):
    child = f'sleep 600 & echo $! > {tmp_path}/child; trap "" TERM; wait'
    backend = LocalBackend()
    backend.submit(
        Job(str(tmp_path / 'x'), ('sh', '-c', f"trap 'exit 0' TERM; (trap '' TERM; {child}) & wait"), (), 1, '.')
    )
    _wait_for(lambda: (tmp_path / 'child').exists() and (tmp_path / 'child').read_text().strip())
    backend.stop()
    _wait_for(lambda: not _is_alive(int((tmp_path / 'child').read_text())), 20)


def test_commands_print_a_line_a_run_tuning_first_and_a_scheduler_may_run_them(tmp_path, capsys):
    path = write_study(tmp_path, {**TUNED, 'name': "it's mine".replace("'", '').replace(' ', '_')})
    for expected in (12, 24, 0):
        summary, printed = quiet_sweep(path, backend='commands')
        lines = capsys.readouterr().out.splitlines()
        assert summary == Summary(0, 0, {}) and len(lines) == expected
        assert ('tuning runs; when they have finished' in printed) == (expected == 12)
        subprocess.run(['sh', '-e'], input='\n'.join(lines), text=True, check=True, cwd='/')
    assert quiet_sweep(path)[0] == Summary(36, 0, {})
    assert set(events(tmp_path).values()) == {1}


def test_commands_have_teachers_before_students(tmp_path, capsys):
    arms = {'student': {'model.name_or_path': 'arm:teacher'}, 'teacher': {'optimizer.lr': 0.01}}
    quiet_sweep(write_study(tmp_path, {**TWO_ARMS, 'arms': arms, 'seeds': 1}), backend='commands')
    lines = capsys.readouterr().out.splitlines()
    assert [line.endswith('  # needs ' + line.rsplit(' ', 1)[-1]) for line in lines] == [False] * 4 + [True] * 2
    assert [line.rsplit('/runs/', 1)[-1] for line in lines[4:]] == ['few/teacher/seed0', 'many/teacher/seed0']


def test_promise_20b_a_changed_study_is_told_and_its_runs_are_not_taken_for_the_same(tmp_path):
    quiet_sweep(write_study(tmp_path, {**TWO_ARMS, 'seeds': 1}), jobs=2)
    more = {**TWO_ARMS, 'arms': {**TWO_ARMS['arms'], 'more': {'optimizer.lr': 0.01}}, 'seeds': 2}
    summary, printed = quiet_sweep(write_study(tmp_path, more), jobs=2)
    assert (
        'changed since its last sweep: arms.more is new, seeds were [0], are [0, 1]; 4 finished runs are kept'
        in printed
    )
    assert summary == Summary(4, 8, {})
    assert 'changed since' not in quiet_sweep(write_study(tmp_path, more))[1]
    other = {**more, 'settings': {'few': {'data.train_rows': 50}}}
    with pytest.raises(
        ConfigError, match=r'few/ce, few/mincmi, few/more .* not taken for them: give the study another'
    ):
        quiet_sweep(write_study(tmp_path, other))


def test_promise_20b_the_reason_of_a_failure_is_the_last_attempts(tmp_path):
    (tmp_path / 'x.log').write_text('composer-cmi: an old reason.\n')
    for runner, reason in (
        (('false',), 'exit code 1: no output'),
        (
            ('sh', '-c', 'echo composer-cmi: a sentence.; echo some library >&2; exit 2'),
            'exit code 2: composer-cmi: a sentence.',
        ),
        (('sh', '-c', 'kill -9 $$'), 'killed by SIGKILL: no output'),
        (('true',), 'it ended without results.json: no output'),
        (('/absent/command',), 'it could not be started: '),
    ):
        backend = LocalBackend()
        backend.submit(Job(str(tmp_path / 'x'), runner, (), 1, str(tmp_path)))
        found = []
        _wait_for(lambda backend=backend, found=found: found.extend(backend.poll()) or found)
        assert found[0].state == 'failed' and found[0].message.startswith(reason)


def test_promise_20b_a_study_that_cannot_be_written_or_started_is_one_sentence(tmp_path):
    (tmp_path / 'file').touch()
    for changes, options, message in (
        ({'output_dir': str(tmp_path / 'file')}, {}, 'The study folder .*file/small cannot be written to'),
        ({}, {'jobs': 0}, '--jobs must be at least 1, got 0'),
        ({}, {'backend': 'slurm'}, "--backend must be one of local, ray, commands, got 'slurm'"),
    ):
        with pytest.raises(ConfigError, match=message):
            quiet_sweep(write_study(tmp_path, {**TWO_ARMS, **changes}), **options)
    path = write_study(tmp_path, {**TWO_ARMS, 'seeds': 1})
    (tmp_path / 'out/small').mkdir(parents=True)
    (tmp_path / 'out/small/runs').touch()
    summary, _ = quiet_sweep(path)
    assert len(summary.failed) == 4 and all('could not be started' in reason for reason in summary.failed.values())
