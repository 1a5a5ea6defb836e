"""What these scripts share: turns, quartiles, facts about a measurement, one process, a CSV and a table."""

from __future__ import annotations

import csv
import datetime
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

PACKAGES = ('torch', 'mosaicml', 'transformers', 'composer-cmi')


class Ended(NamedTuple):
    """A process that has ended: wall clock of its begin and end, both in seconds, and what it used."""

    code: int
    begun: float
    ended: float
    processor_seconds: float
    peak_mib: float
    output: str

    @property
    def seconds(self) -> float:
        return self.ended - self.begun


def run(command: Sequence[str], threads: int | None = None, folder: Path | None = None) -> Ended:
    """Run a command as a user would, with so many threads; `peak_mib` is of this process and those it waited for."""
    numbers = {} if threads is None else dict.fromkeys(('OMP_NUM_THREADS', 'MKL_NUM_THREADS'), str(threads))
    options: Any = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True, 'errors': 'replace'}
    begun = time.time()
    process = subprocess.Popen(command, env={**os.environ, **numbers}, cwd=folder, **options)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    ended = time.time()
    process.returncode = os.waitstatus_to_exitcode(status)
    used, peak = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024
    return Ended(process.returncode, begun, ended, used, peak, output)


def turns(names: Iterable[str], repeat: int) -> list[str]:
    """The names in an order that rotates with the repeats: what else the machine does falls on all alike."""
    names = [*names]
    first = repeat % len(names)
    return names[first:] + names[:first]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Of one value thrice that value."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method='inclusive')
    return low, middle, high


def spread(values: Sequence[float], form: str = '.2f') -> str:
    """`median (first .. third quartile)`, or `-` for no values."""
    if not values:
        return '-'
    low, middle, high = (format(value, form) for value in quartiles(values))
    return f'{middle} ({low} .. {high})'


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ''


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def facts(device: str, threads: int) -> dict[str, Any]:
    """The columns that every measurement has, behind its own."""
    machine = f'{platform.machine()}, {cores()} cores'
    if device == 'cuda':
        import torch

        machine = torch.cuda.get_device_name()
    return {
        'device': device,
        'machine': machine,
        'threads': threads,
        'load_average': f'{os.getloadavg()[0]:.1f}',
        'date': f'{datetime.date.today():%Y-%m-%d}',
        'python': platform.python_version(),
        **{package: installed(package) for package in PACKAGES},
        'command': ' '.join([f'benchmarks/{Path(sys.argv[0]).name}', *sys.argv[1:]]),
    }


def write(path: Path, rows: Sequence[Mapping[str, Any]], *, more: bool = False) -> None:
    """Write the rows to a CSV, behind those that are there if there are `more`; never half of them."""
    kept: list[Mapping[str, Any]] = []
    if more and path.is_file():
        with path.open(newline='', encoding='utf-8') as file:
            kept = [*csv.DictReader(file)]
    everything = [*kept, *rows]
    columns = [*dict.fromkeys(name for row in everything for name in row)]
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    with aside.open('w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, columns, lineterminator='\n', restval='')
        writer.writeheader()
        writer.writerows(everything)
    os.replace(aside, path)


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """As Markdown, to be copied into a page."""
    return '\n'.join(f'| {" | ".join(line)} |' for line in [header, ['---'] * len(header), *lines])
