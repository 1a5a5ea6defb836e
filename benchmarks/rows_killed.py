"""Rows by the million end to end: a run that distils them from a cached teacher, killed in the teacher's pass, goes on.

    python benchmarks/rows_killed.py [--rows 1000000] [--ranks 2]

The files of `scaling_rows.py` and a run of 30 steps. The first process is ended by SIGKILL when it has stored half of
the pieces of the teacher's answers; the second is the same command. Printed and written: how many pieces the first
left, whether the second took them as they were, seconds of both, and the memory of the second, of all its processes
together, above that of the same run of 1,000 rows (anonymous: what nobody can take back; PSS: mapped files too, once).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import yaml

from measuring import facts, write
from scaling_rows import make_files, memory

_PIECE = 4096  # rows of a piece of the teacher's pass


def make_run(folder: Path) -> Path:
    """Its YAML file."""
    settings = {
        'task': 'custom',
        'run_name': 'many',
        'output_dir': str(folder / 'runs'),
        'model': {'name_or_path': str(folder / 'model')},
        'data': {'path': str(folder), 'unlabelled': str(folder / 'more.txt'), 'max_length': 32,
                 'cache_dir': str(folder / 'tokens')},
        'train': {'max_duration': '30ba', 'batch_size': 32, 'eval_interval': '0ba', 'device': 'cpu',
                  'progress_bar': False},
        'algorithms': {'knowledge_distillation': {'teacher': str(folder / 'model'), 'cache': str(folder / 'logits'),
                                                  'allow_weak_teacher': True}},
    }  # fmt: skip
    path = folder / 'run.yaml'
    path.write_text(yaml.safe_dump(settings), encoding='utf-8')
    return path


def pieces(folder: Path) -> dict[str, int]:
    """Of the teacher's pass: when each was written."""
    return {path.name: path.stat().st_mtime_ns for path in (folder / 'logits').glob('*.pass/*.safetensors')}


def together(process: int) -> tuple[int, int]:
    """Anonymous and proportional memory of a process and all that come from it, bytes."""
    sizes = [(0, 0)]
    for each in (psutil.Process(process), *psutil.Process(process).children(recursive=True)):
        with contextlib.suppress(OSError, KeyError):  # it has just ended
            sizes.append(memory(each.pid))
    return sum(own for own, _ in sizes), sum(shared for _, shared in sizes)


def kill(process: int) -> None:
    """SIGKILL for it and for all that come from it."""
    for each in (psutil.Process(process), *psutil.Process(process).children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()


def go(path: Path, ranks: int, threads: int, until: int | None = None) -> tuple[int, float, list[int], dict[str, int]]:
    """Run the file, to its end or until so many pieces are there: exit status, seconds, highest memory, pieces."""
    launcher = ['-m', 'composer.cli.launcher', '-n', str(ranks)] if ranks > 1 else []
    log = path.with_name(f'log-{"whole" if until is None else "killed"}.txt')
    begun, highest, seen = time.perf_counter(), [0, 0], {}
    with log.open('w') as out:
        process = subprocess.Popen(
            [sys.executable, *launcher, '-m', 'composer_cmi', str(path)],
            env={**os.environ, 'OMP_NUM_THREADS': str(threads)},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        while process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                highest = [max(pair) for pair in zip(highest, together(process.pid), strict=True)]
            seen |= {name: when for name, when in pieces(path.parent).items() if name not in seen}
            if until is not None and len(seen) >= until:
                kill(process.pid)
                process.wait()
            time.sleep(0.1)
    if process.returncode and until is None:
        raise SystemExit(log.read_text(encoding='utf-8')[-3000:])
    return process.returncode, time.perf_counter() - begun, highest, seen


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument('--rows', type=int, default=1_000_000)
    options.add_argument('--ranks', type=int, default=1)
    options.add_argument('--threads', type=int, default=1, help='of each rank')
    options.add_argument('--out', type=Path, default=Path(__file__).with_suffix('.csv'))
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as few, tempfile.TemporaryDirectory() as name:
        make_files(Path(few), 1000)
        *_, bare, _ = go(make_run(Path(few)), arguments.ranks, arguments.threads)
        folder = Path(name)
        make_files(folder, arguments.rows)
        path = make_run(folder)
        half = max(1, arguments.rows // _PIECE // 2)
        status, before, _, left = go(path, arguments.ranks, arguments.threads, until=half)
        print(f'killed after {before:.0f} s with {len(left)} pieces stored (exit status {status})', flush=True)
        _, after, highest, found = go(path, arguments.ranks, arguments.threads)
        kept = sum(found.get(piece) == when for piece, when in left.items())
    risen = [high - low for high, low in zip(highest, bare, strict=True)]
    row = {
        'rows': arguments.rows,
        'ranks': arguments.ranks,
        'pieces_stored': len(left),
        'pieces_kept': kept,
        'seconds_killed': f'{before:.1f}',
        'seconds_continued': f'{after:.1f}',
        'own_bytes': risen[0],
        'machine_bytes': risen[1],
    }
    write(arguments.out, [{**row, **facts('cpu', arguments.threads)}], more=True)
    print(f'continued in {after:.0f} s; {kept} of {len(left)} pieces were taken as they were')
    print(f'above a run of 1,000 rows: {risen[0] / 1e6:.0f} MB of its own, {risen[1] / 1e6:.0f} MB with mapped files')


if __name__ == '__main__':
    main()
