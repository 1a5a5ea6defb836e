"""Runs tests marked `world_size(n)` on n real ranks: all of one n in one call of Composer's launcher."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed
from composer.utils import dist, get_device

_RANKS = int(os.environ.get('WORLD_SIZE', '1'))
_STARTS = 5  # of the ranks: a failed test ends them, and those behind it want new ones
_REPORTS = os.environ.get('COMPOSER_CMI_TEST_REPORTS')  # set for the ranks only


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)  # before fixtures of modules, which may train too: sums over two threads differ in bits
    if _RANKS > 1:
        dist.initialize_dist(get_device('cpu'), timeout=120)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In the parent, the first test of n ranks waits for all of them, which a busy machine may be long about."""
    for item in items:
        if _RANKS == 1 and _wanted_ranks(item) > 1:
            item.add_marker(pytest.mark.timeout(1500))


@pytest.fixture(autouse=True)
def _one_thread():
    """Ranks share two cores; more threads only make the timing noisy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def shared_tmp_path(tmp_path: Path) -> Path:
    """A folder that all ranks see."""
    paths = [str(tmp_path)]
    dist.broadcast_object_list(paths)
    return Path(paths[0])


@pytest.fixture
def process_group(tmp_path: Path):
    """One rank that talks to itself, for DDP and FSDP2 without a launcher."""
    made = not torch.distributed.is_initialized()
    if made:
        torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    yield
    if made:
        torch.distributed.destroy_process_group()


def _wanted_ranks(item: pytest.Item) -> int:
    marker = item.get_closest_marker('world_size')
    return marker.args[0] if marker else 1


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """In the parent, a distributed test is what its ranks reported."""
    wanted = _wanted_ranks(pyfuncitem)
    if wanted == _RANKS:
        return None
    if _RANKS > 1:
        pytest.skip(f'wants {wanted} ranks')
    outcome, text = _outcomes(pyfuncitem.session, wanted).get(
        pyfuncitem.nodeid, ('failed', 'no rank reached this test')
    )
    if outcome == 'skipped':
        pytest.skip(text)
    if outcome == 'failed':
        pytest.fail(text, pytrace=False)
    return True


def _outcomes(session: pytest.Session, ranks: int) -> dict[str, tuple[str, str]]:
    cache = session.__dict__.setdefault('_outcomes_by_ranks', {})
    if ranks not in cache:
        cache[ranks] = {}  # ended by its time limit, it is not begun again for every further test
        left = [item.nodeid for item in session.items if _wanted_ranks(item) == ranks]
        for _ in range(_STARTS):
            cache[ranks] |= _run_on_ranks(left, ranks, session.config.rootpath)
            reached, left = len(left), [nodeid for nodeid in left if nodeid not in cache[ranks]]
            if not left or len(left) == reached:
                break
    return cache[ranks]


def _run_on_ranks(nodeids: list[str], ranks: int, root: Path) -> dict[str, tuple[str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, '-m', 'composer.cli.launcher', '-n', str(ranks)]
        command += ['--stdout', f'{folder}/out{{rank}}', '--stderr', f'{folder}/err{{rank}}']
        # -x: a failed rank ends, and with it the others, which would wait for it.
        command += ['-m', 'pytest', '-x', '-q', '-p', 'no:cacheprovider', *nodeids]
        env = {**os.environ, 'COMPOSER_CMI_TEST_REPORTS': folder, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
        subprocess.run(command, cwd=root, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, check=False)
        merged: dict[str, tuple[str, str]] = {}
        for rank in range(ranks):
            file = Path(folder, f'reports{rank}.jsonl')
            for line in file.read_text().splitlines() if file.exists() else []:
                nodeid, outcome, text = json.loads(line)
                if outcome != 'passed' or nodeid not in merged:
                    merged[nodeid] = (outcome, f'rank {rank} of {ranks}: {text}')
        return merged


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """In a rank: tell the parent."""
    if _REPORTS and (report.when == 'call' or report.outcome != 'passed'):
        with open(f'{_REPORTS}/reports{os.environ["RANK"]}.jsonl', 'a') as file:
            file.write(json.dumps([report.nodeid, report.outcome, str(report.longrepr or '')]) + '\n')
