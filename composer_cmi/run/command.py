"""One YAML file as a command: ``composer train.py FILE.yaml``, ``python -m composer_cmi FILE.yaml``."""

from __future__ import annotations

import os
import sys

from composer_cmi.errors import ConfigError, needs

__all__ = ['fail', 'main', 'run_file']


def run_file(yaml_file: str, overrides: list[str]) -> int:
    """Run a YAML file with overrides; returns the exit code, after printing one sentence about a user's error."""
    try:
        # Here and not above: it takes seconds, and a question for help should not.
        with needs('run', 'A run from a YAML file'):
            from composer_cmi.run.arms import run_all
            from composer_cmi.run.config import load_config
        run_all(load_config(yaml_file, overrides))
    except ConfigError as error:
        return fail(str(error))
    return 0


def fail(sentence: str) -> int:
    """Print a sentence about what the user can mend; returns the exit code for it."""
    rank = os.environ.get('RANK', '0')
    # The launcher shows the other ranks' words only when they fail, and an error may be theirs alone.
    print(f'composer-cmi{f", rank {rank}" if rank != "0" else ""}: {sentence}', file=sys.stderr)
    return 2


def main() -> None:
    """Entry of ``train.py`` and ``python -m composer_cmi``: a YAML file, then ``key.sub=value ...``."""
    if len(sys.argv) < 2 or sys.argv[1] in ('-h', '--help'):
        print('usage: composer [-n RANKS] -m composer_cmi FILE.yaml [key.sub=value ...]', file=sys.stderr)
        raise SystemExit(0 if len(sys.argv) > 1 else 2)
    raise SystemExit(run_file(sys.argv[1], sys.argv[2:]))
