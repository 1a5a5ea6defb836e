"""What a user or a machine does to a run ends in one sentence and a known exit code; nothing that was found is lost."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from composer_cmi.errors import ConfigError
from composer_cmi.run.command import run_file, tell
from composer_cmi.run.outputs.history import HistoryLogger, read_history
from composer_cmi.run.outputs.results import load_results
from composer_cmi.run.ranks import check_environment
from fault_tools import in_a_fork, interrupted, make_faulty, start_fork
from run_tools import make_all, predictions

ROOT = Path(__file__).parents[1]


def one_line(captured: str) -> str:
    assert captured.count('\n') == 1 and 'Traceback' not in captured, captured
    return captured


@pytest.mark.parametrize(('signal', 'code'), [('SIGINT', 130), ('SIGTERM', 143)])
def test_promise_20_an_interruption_says_how_far_it_got_and_how_to_go_on(tmp_path, capsys, signal, code):
    path, flag = make_faulty(tmp_path, fault={'what': signal})
    flag.touch()
    assert run_file(path, []) == code
    assert 'tiny is at step 8 of 9: the same command goes on' in one_line(capsys.readouterr().err)
    # What was logged after the last checkpoint is there too.
    assert [row['step'] for row in read_history(tmp_path / 'runs' / 'tiny' / 'history.csv')] == list(range(8))
    assert run_file(path, []) == 0
    assert run_file(path, ['run_name=whole']) == 0
    folders = [tmp_path / 'runs' / name for name in ('tiny', 'whole')]
    assert predictions(folders[0]) == predictions(folders[1])
    assert read_history(folders[0] / 'history.csv') == read_history(folders[1] / 'history.csv')


def test_promise_20_divergence_is_named_with_its_step_and_leaves_no_checkpoint_of_it(tmp_path, capsys):
    path, flag = make_faulty(tmp_path, fault={'what': 'nan', 'batch': 4})
    flag.touch()
    assert run_file(path, []) == 2
    assert 'Training has diverged at step 4' in one_line(capsys.readouterr().err)
    assert [file.name for file in (tmp_path / 'runs' / 'tiny' / 'checkpoints').glob('ep*')] == ['ep1-ba3-rank0.pt']


@pytest.mark.parametrize(
    ('override', 'words'),
    [
        ('train.device=gpu', 'train.device'),
        ('train.device=mps', 'train.device'),
        (f'run_name={"n" * 300}', 'use at most 200'),
        ('output_dir={root}/run.yaml', 'Not a directory'),
        ('output_dir=/proc/nothing', 'No such file or directory'),
    ],
)
def test_promise_20_devices_and_paths_that_are_not_there(tmp_path, capsys, override, words):
    if override == 'train.device=gpu' and torch.cuda.is_available():
        pytest.skip('there is one')
    path = str(make_all(tmp_path))
    assert run_file(path, [override.format(root=tmp_path)]) == 2
    assert words in one_line(capsys.readouterr().err)


@pytest.mark.parametrize(
    'environ',
    [
        {'WORLD_SIZE': '2'},
        {'WORLD_SIZE': '2', 'RANK': '0', 'LOCAL_RANK': '0'},
        {'RANK': '1'},
        {'LOCAL_RANK': '3'},
        {'NODE_RANK': '1'},
        {'LOCAL_WORLD_SIZE': '2'},
        {'WORLD_SIZE': '0'},
        {'WORLD_SIZE': 'two'},
        {'WORLD_SIZE': '2', 'RANK': '2', 'LOCAL_RANK': '0', 'LOCAL_WORLD_SIZE': '2', 'NODE_RANK': '0'}
        | {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': '1'},
    ],
)
def test_promise_20_left_over_variables_of_a_launcher_are_refused(environ):
    with pytest.raises(ConfigError, match='unset WORLD_SIZE'):
        check_environment(environ)


def test_promise_20_what_launchers_set_is_accepted():
    check_environment({})
    names = ('RANK', 'LOCAL_RANK', 'LOCAL_WORLD_SIZE', 'NODE_RANK', 'MASTER_ADDR', 'MASTER_PORT')
    check_environment({'WORLD_SIZE': '4', **dict(zip(names, ('3', '1', '2', '1', 'node1', '29500'), strict=True))})
    check_environment({'WORLD_SIZE': '1', **dict(zip(names, ('0', '0', '1', '0', 'node1', '29500'), strict=True))})


@pytest.mark.slow
def test_promise_20_variables_that_look_whole_do_not_hang_without_a_launcher(tmp_path):
    names = {'WORLD_SIZE': '2', 'RANK': '0', 'LOCAL_RANK': '0', 'LOCAL_WORLD_SIZE': '2', 'NODE_RANK': '0'}
    environment = {**os.environ, **names, 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': '29471', 'OMP_NUM_THREADS': '1'}
    command = [sys.executable, '-m', 'composer_cmi', str(make_all(tmp_path))]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=150)
    assert done.returncode == 2
    assert 'unset WORLD_SIZE' in done.stderr and 'Traceback' not in done.stderr


@pytest.mark.parametrize('size', [0, 300, 2_000, 20_000, 40_000])
def test_promise_20_a_full_disk_is_one_sentence_and_the_run_goes_on_later(tmp_path, size):
    path = str(make_all(tmp_path))
    code, said = in_a_fork(path, before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))
    assert code == 2
    assert 'File too large' in said and 'the same command goes on' in said and 'Traceback' not in said, said
    assert not (tmp_path / 'runs' / 'tiny' / 'results.json').exists()
    assert run_file(path, []) == 0
    assert not [*(tmp_path / 'runs').rglob('*.tmp')]


def test_promise_20_the_unexpected_leaves_its_traceback_in_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ZeroDivisionError) as raised:
        1 / 0  # noqa: B018
    assert tell(raised.value) == 70
    assert f'Unexpected ZeroDivisionError: division by zero. The traceback is in {tmp_path}/error.txt.' in one_line(
        capsys.readouterr().err
    )
    assert '1 / 0' in (tmp_path / 'error.txt').read_text()


def test_promise_20b_a_command_that_trains_nothing_speaks_of_no_checkpoint():
    _, wait = start_fork(lambda: tell(KeyboardInterrupt()))
    assert wait() == (130, 'composer-cmi: Interrupted: the same command goes on.\n')


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_promise_20_errors_of_the_machine_name_the_path(number, capsys):
    assert tell(OSError(number, os.strerror(number), '/a/path')) == 2
    assert f'{os.strerror(number)}: /a/path' in one_line(capsys.readouterr().err)


def test_promise_18_results_first_then_what_may_fail(tmp_path):
    path = str(make_all(tmp_path))
    folder = tmp_path / 'runs' / 'tiny'
    (folder / 'cmi.png').mkdir(parents=True)  # nothing can be written under that name
    with pytest.warns(UserWarning, match=r'cmi\.png could not be made .* the same command tries again'):
        assert run_file(path, []) == 0
    assert load_results(folder) is not None and (folder / 'model' / 'README.md').is_file()
    (folder / 'cmi.png').rmdir()
    (folder / 'model' / 'README.md').unlink()
    when = (folder / 'results.json').stat().st_mtime_ns
    assert run_file(path, []) == 0
    assert (folder / 'cmi.png').read_bytes().startswith(b'\x89PNG') and (folder / 'model' / 'README.md').is_file()
    assert (folder / 'results.json').stat().st_mtime_ns == when


def test_promise_16c_leftovers_of_killed_processes_are_swept_up(tmp_path):
    path, folder = interrupted(tmp_path)
    (folder / '.model.123.tmp').mkdir()
    (folder / '.model.123.tmp' / 'model.safetensors').write_bytes(b'gigabytes')
    (folder / '.results.json.123.tmp').write_text('{')
    half = folder / 'checkpoints' / 'ep3-ba9-rank0.pt'
    half.write_bytes(b'PK half of it')
    assert run_file(path, []) == 0
    assert not half.exists() and not [*folder.rglob('*.tmp')]
    assert [file.name for file in (folder / 'checkpoints').glob('ep*')] == ['ep2-ba9-rank0.pt']


def test_promise_16c_a_run_killed_after_its_last_checkpoint_has_all_rows(tmp_path):
    path, _ = make_faulty(tmp_path, fault={'batch': 9}, checkpoint={'save_interval': '9ba'})
    assert run_file(path, ['run_name=whole']) == 0
    assert run_file(path, []) == 0
    folder = tmp_path / 'runs' / 'tiny'
    # As a kill leaves it between the last checkpoint and the last evaluation.
    for name in ('results.json', 'history.csv'):
        (folder / name).unlink()
    with pytest.warns(UserWarning, match='has lost or changed rows'):
        assert run_file(path, []) == 0
    last, whole = (
        read_history(path.parent / 'history.csv')[-1] for path in (folder / 'x', folder.parent / 'whole' / 'x')
    )
    names = ['step', *(name for name in whole if name.startswith('metrics/'))]
    assert 'metrics/dev/Accuracy' in names and whole['step'] == 9
    assert [last[name] for name in names] == [whole[name] for name in names]


def test_promise_16c_history_is_appended_and_a_checkpoint_does_not_carry_it(tmp_path):
    history = HistoryLogger(tmp_path / 'history.csv')

    def train(first: int, last: int) -> float:
        begin = time.process_time()
        for step in range(first, last):
            history.log_metrics({'loss/train/total': torch.tensor(0.5), 'cmi/cmi': step / 7}, step=step)
            if step % 100 == 99:
                history.flush()
        return time.process_time() - begin

    early = train(0, 2_000)
    inode = (tmp_path / 'history.csv').stat().st_ino
    train(2_000, 20_000)
    assert train(20_000, 22_000) < 3 * early + 0.1
    assert (tmp_path / 'history.csv').stat().st_ino == inode  # not written anew
    assert len(str(history.state_dict())) < 500
    history.finish()
    rows = read_history(tmp_path / 'history.csv')
    assert [row['step'] for row in rows] == list(range(22_000)) and rows[-1]['cmi/cmi'] == pytest.approx(21_999 / 7)


def test_promise_16c_a_resumed_history_keeps_the_rows_that_the_checkpoint_knew(tmp_path):
    path = tmp_path / 'history.csv'
    first = HistoryLogger(path)
    for step in range(5):
        first.log_metrics({'loss': step / 10}, step=step)
    saved = first.state_dict()
    for step in range(5, 9):
        first.log_metrics({'loss': -1.0, 'late': 1.0}, step=step)  # a new column: the file is written anew
    first.finish()
    path.write_text(path.read_text() + '9,-1')  # and killed in the middle of a row
    second = HistoryLogger(path)
    second.load_state_dict(saved)
    for step in range(5, 7):
        second.log_metrics({'loss': step / 10}, step=step)
    second.finish()
    assert read_history(path) == [{'step': step, 'loss': step / 10} for step in range(7)]


def test_promise_18_braces_in_a_path_are_no_placeholders_of_composers(tmp_path, monkeypatch):
    (tmp_path / 'a{rank}b{1}{{c').mkdir()
    monkeypatch.chdir(tmp_path / 'a{rank}b{1}{{c')  # in a configuration such a path is refused
    path, folder = interrupted(Path('here'))
    assert [file.name for file in (folder / 'checkpoints').glob('ep*')] == ['ep2-ba6-rank0.pt']
    assert run_file(path, []) == 0
    assert [child.name for child in tmp_path.iterdir()] == ['a{rank}b{1}{{c']
