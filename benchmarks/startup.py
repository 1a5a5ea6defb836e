"""Processor seconds until the command line answers, and of importing the package beside torch.

    python benchmarks/startup.py [--repeats 7]

Every command is a process of its own, user and system time together; the commands take turns. Medians, and what the
bounds of the project are. Exit code 1 if one is broken.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

COMMANDS = {
    'python': ['-c', 'pass'],
    'composer-cmi --help': ['-m', 'composer_cmi.cli', '--help'],
    'import torch': ['-c', 'import torch'],
    'import torch, composer_cmi': ['-c', 'import torch, composer_cmi'],
}
HELP_LIMIT, IMPORT_LIMIT = 1.0, 0.3


def processor_seconds(command: list[str]) -> float:
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f'{command} failed')
    return usage.ru_utime + usage.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--out', type=Path, default=Path(__file__).with_suffix('.csv'))
    arguments = parser.parse_args()
    for command in COMMANDS.values():  # once for nothing: files are read and compiled
        processor_seconds(command)
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(arguments.repeats):
        for name, command in COMMANDS.items():
            seconds[name].append(processor_seconds(command))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    bounded = {
        'composer-cmi --help': (median['composer-cmi --help'], HELP_LIMIT),
        'composer_cmi beyond torch': (median['import torch, composer_cmi'] - median['import torch'], IMPORT_LIMIT),
    }
    print('| processor seconds | median | smallest .. largest |\n|---|---|---|')
    for name, values in seconds.items():
        print(f'| {name} | {median[name]:.2f} | {min(values):.2f} .. {max(values):.2f} |')
    for name, (value, limit) in bounded.items():
        print(f'{name}: {value:.2f} s, at most {limit} s: {"kept" if value < limit else "BROKEN"}')
    machine = f'{platform.machine()}, {os.cpu_count()} cores'
    with arguments.out.open('w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow(
            ['what', 'median', 'smallest', 'largest', 'limit', 'repeats', 'machine', 'python', 'torch', 'typer']
        )
        versions = [platform.python_version(), version('torch'), version('typer')]
        for name, values in seconds.items():
            limit = HELP_LIMIT if name in bounded else ''
            row = [f'{value:.3f}' for value in (median[name], min(values), max(values))]
            writer.writerow([name, *row, limit, len(values), machine, *versions])
        difference, limit = bounded['composer_cmi beyond torch']
        writer.writerow(
            ['composer_cmi beyond torch', f'{difference:.3f}', '', '', limit, arguments.repeats, machine, *versions]
        )
    return int(any(value >= limit for value, limit in bounded.values()))


if __name__ == '__main__':
    raise SystemExit(main())
