"""The package as its users have it: built, installed into empty environments outside the repository, and used there.

    make package-check                                   the core, and [run,demo] on the versions that Composer declares
    .venv/bin/python tests/package_check.py --modern     the second on today's stack, with a CPU build of torch: 2 GB, not 6

Not a test that pytest collects: it downloads and runs for a quarter of an hour.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
CPU_TORCH = ('torch==2.13.0', 'torchvision==0.16.2')
# The folder of the repository must not be found by what runs here.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}


def run(*command: str | Path, cwd: Path, fails: bool = False) -> str:
    """Run a command and show it; what it printed, or SystemExit if it did not end as it should."""
    print('$', shlex.join(map(str, command)), flush=True)
    done = subprocess.run(
        command, cwd=cwd, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    print(*done.stdout.splitlines()[-12:], sep='\n', flush=True)
    if bool(done.returncode) != fails:
        raise SystemExit(f'package-check: exit code {done.returncode} of: {shlex.join(map(str, command))}')
    return done.stdout


def environment(folder: Path) -> Path:
    run(sys.executable, '-m', 'venv', folder, cwd=folder.parent)
    return folder / 'bin'


def pip(bin_: Path, *arguments: str) -> None:
    run(bin_ / 'python', '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', *arguments, cwd=bin_)


def check_core(folder: Path, wheel: Path) -> None:
    """The wheel alone beside a torch that is there: it stays, the command line answers and says what a run would need."""
    bin_ = environment(folder / 'core')
    pip(bin_, CPU_TORCH[0])
    pip(bin_, str(wheel))
    installed = run(bin_ / 'python', '-m', 'pip', 'freeze', cwd=folder)
    assert CPU_TORCH[0] in installed and 'mosaicml' not in installed and 'transformers' not in installed
    run(bin_ / 'python', '-m', 'pip', 'check', cwd=folder)
    assert 'Usage' in run(bin_ / 'composer-cmi', '--help', cwd=folder)
    work = folder / 'core_work'
    run(bin_ / 'composer-cmi', 'init', 'custom', work, cwd=folder)
    assert "pip install 'composer-cmi[run]'" in run(bin_ / 'composer-cmi', 'run', 'custom.yaml', cwd=work, fails=True)
    run(
        bin_ / 'python', '-c', 'from composer_cmi import functional, centroids, features, metrics, teachers', cwd=folder
    )


def check_runs(folder: Path, wheel: Path, modern: bool) -> Path:
    """`init`, a run by one process and by two; returns the environment's commands."""
    bin_, wanted = environment(folder / 'run'), f'{wheel}[run,demo]'
    if modern:
        pip(bin_, '--no-deps', *CPU_TORCH)
        pip(bin_, 'uv')
        overrides = ('--override', str(ROOT / 'modern.txt'))
        run(bin_ / 'uv', 'pip', 'install', '--quiet', '--python', bin_ / 'python', *overrides, wanted, cwd=folder)
    else:
        pip(bin_, wanted)
        run(bin_ / 'python', '-m', 'pip', 'check', cwd=folder)
    work = folder / 'work'
    run(bin_ / 'composer-cmi', 'init', 'demo', work, cwd=folder)
    run(bin_ / 'composer-cmi', 'run', 'demo.yaml', cwd=work)
    launch = (bin_ / 'composer', '-n', '2', '-m', 'composer_cmi', 'demo.yaml')
    run(*launch, 'run_name=two_ranks', 'train.max_duration=2ep', cwd=work)
    for arm in ('demo_mincmi/mincmi', 'two_ranks/mincmi'):
        assert (work / 'runs' / arm / 'results.json').is_file(), arm
    return bin_


def check_sdist(folder: Path, sdist: Path, bin_: Path, tests: list[str]) -> None:
    """The tests that the sdist brings, on the sdist's own files."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder)
    source = folder / sdist.name.removesuffix('.tar.gz')
    tools = ('evaluate', 'hypothesis', 'import-linter', 'packaging', 'pytest', 'pytest-timeout', 'scikit-learn')
    pip(bin_, *tools, 'peft', 'tensorboard')
    run(bin_ / 'python', '-m', 'pytest', '-q', '-m', 'not slow', *tests, cwd=source)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--modern', action='store_true', help="today's stack by modern.txt")
    parser.add_argument('--tests', nargs='*', default=[], help='files of the sdist to run; all by default')
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix='package_check_') as name:
        folder = Path(name)
        run(sys.executable, '-m', 'uv', 'build', '--quiet', '--out-dir', folder / 'dist', ROOT, cwd=folder)
        (wheel,), (sdist,) = ((folder / 'dist').glob(pattern) for pattern in ('*.whl', '*.tar.gz'))
        check_core(folder, wheel)
        bin_ = check_runs(folder, wheel, arguments.modern)
        check_sdist(folder, sdist, bin_, arguments.tests)
    print(
        'package-check: wheel, command line, runs by one and two processes, and the tests of the sdist are as they should be'
    )


if __name__ == '__main__':
    main()
