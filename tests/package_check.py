"""The package as its users have it: built, installed into empty environments outside the repository, and used there.

    make package-check                                   the core, and [run,demo] on the versions that Composer declares
    .venv/bin/python tests/package_check.py --modern     the second on today's stack, with a CPU build of torch: 2 GB, not 6
    .venv/bin/python tests/package_check.py --tests      with every quick test of the sdist, not only those of what is shipped

Not a test that pytest collects: it takes some six minutes on two cores, and once more what the downloads take.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
UV = (sys.executable, '-m', 'uv')
CPU_TORCH = ('torch==2.13.0', 'torchvision==0.16.2')
# What reads the files that an sdist may lack; the others are told to be whole by being collected.
SHIPPED = ('architecture', 'cli', 'config', 'functional', 'packaging', 'readme')
# The folder of the repository must not be found by what runs here, nor an environment that is in force.
HIDDEN = ('PYTHONPATH', 'PYTHONHOME', 'VIRTUAL_ENV')
ENVIRONMENT = {**{name: value for name, value in os.environ.items() if name not in HIDDEN}, 'OMP_NUM_THREADS': '1'}


def run(*command: str | Path, cwd: Path, fails: bool = False) -> str:
    """Run a command and show it; what it printed, or SystemExit if it did not end as it should."""
    print('$', shlex.join(map(str, command)), flush=True)
    begun = time.monotonic()
    done = subprocess.run(
        command, cwd=cwd, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    print(*done.stdout.splitlines()[-12:], f'[{time.monotonic() - begun:.0f} s]', sep='\n', flush=True)
    if bool(done.returncode) != fails:
        raise SystemExit(f'package-check: exit code {done.returncode} of: {shlex.join(map(str, command))}')
    return done.stdout


def environment(folder: Path) -> Path:
    """An empty environment's folder of commands."""
    run(sys.executable, '-m', 'venv', folder, cwd=folder.parent)
    return folder / 'bin'


def pip(bin_: Path, *arguments: str) -> None:
    run(bin_ / 'python', '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', *arguments, cwd=bin_)


def uv(bin_: Path, *arguments: str) -> None:
    """As pip, with what many packages need: parallel downloads, one copy on the disk, and overrides."""
    run(*UV, 'pip', 'install', '--quiet', '--python', bin_ / 'python', *arguments, cwd=bin_)


def versions(bin_: Path) -> dict[str, str]:
    lines = run(bin_ / 'python', '-m', 'pip', 'list', '--format=freeze', cwd=bin_).splitlines()
    return dict(line.split('==', 1) for line in lines if '==' in line)


def check_core(folder: Path, wheel: Path) -> Path:
    """The wheel alone beside a torch that is there: it stays, the command line answers and says what a run would need."""
    bin_ = environment(folder / 'core')
    pip(bin_, CPU_TORCH[0])
    before = versions(bin_)
    pip(bin_, str(wheel))
    after = versions(bin_)
    assert before.items() <= after.items() and not {'mosaicml', 'transformers'} & after.keys(), after
    run(bin_ / 'python', '-m', 'pip', 'check', cwd=folder)
    assert 'Usage' in run(bin_ / 'composer-cmi', '--help', cwd=folder)
    work = folder / 'core_work'
    run(bin_ / 'composer-cmi', 'init', 'custom', work, cwd=folder)
    assert "pip install 'composer-cmi[run]'" in run(bin_ / 'composer-cmi', 'run', 'custom.yaml', cwd=work, fails=True)
    run(
        bin_ / 'python', '-c', 'from composer_cmi import functional, centroids, features, metrics, teachers', cwd=folder
    )
    return bin_


def check_runs(folder: Path, wheel: Path, core: Path, modern: bool) -> Path:
    """`init`, a run by one process and by two; returns the environment's commands."""
    wanted = f'{wheel}[run,demo]'
    if modern:
        bin_, before = core, versions(core)
        pip(bin_, '--no-deps', CPU_TORCH[1])
        uv(bin_, '--override', str(ROOT / 'modern.txt'), wanted)
        assert versions(bin_)['torch'] == before['torch']
    else:
        bin_ = environment(folder / 'run')
        uv(bin_, wanted)
        run(bin_ / 'python', '-m', 'pip', 'check', cwd=folder)
    work = folder / 'work'
    run(bin_ / 'composer-cmi', 'init', 'demo', work, cwd=folder)
    run(bin_ / 'composer-cmi', 'run', 'demo.yaml', cwd=work)
    launch = (bin_ / 'composer', '-n', '2', '-m', 'composer_cmi', 'demo.yaml')
    run(*launch, 'run_name=two_ranks', 'train.max_duration=2ep', cwd=work)
    for arm in ('demo_mincmi/mincmi', 'two_ranks/mincmi'):
        assert (work / 'runs' / arm / 'results.json').is_file(), arm
    return bin_


def check_sdist(folder: Path, sdist: Path, wheel: Path, bin_: Path, modern: bool, every: bool) -> None:
    """The tests that the sdist brings, on the sdist's own files."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder)
    source = folder / sdist.name.removesuffix('.tar.gz')
    overrides = ('--override', str(source / 'modern.txt')) if modern else ()
    uv(bin_, *overrides, f'{wheel}[run,demo,tensorboard,peft,dev]')
    pytest = (bin_ / 'python', '-m', 'pytest', '-q', '-m', 'not slow')
    if every:
        run(*pytest, cwd=source)
    else:
        run(*pytest, '--collect-only', cwd=source)
        run(*pytest, *(f'tests/test_{name}.py' for name in SHIPPED), cwd=source)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--modern', action='store_true', help="today's stack by modern.txt")
    parser.add_argument('--tests', action='store_true', help='every quick test of the sdist')
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix='package_check_') as name:
        folder = Path(name)
        run(*UV, 'build', '--quiet', '--out-dir', folder / 'dist', ROOT, cwd=folder)
        (wheel,), (sdist,) = ((folder / 'dist').glob(pattern) for pattern in ('*.whl', '*.tar.gz'))
        core = check_core(folder, wheel)
        bin_ = check_runs(folder, wheel, core, arguments.modern)
        check_sdist(folder, sdist, wheel, bin_, arguments.modern, arguments.tests)
    print('package-check: wheel, command line, runs by one and two processes, and the sdist are as they should be')


if __name__ == '__main__':
    main()
