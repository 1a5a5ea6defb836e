"""A new user with an empty folder, a CSV and README: its own commands, in real processes, to a model in use."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from doc_tools import ROOT, blocks, make_reviews

README = ROOT / 'README.md'


def section(name: str) -> list[tuple[str, str]]:
    """Language and text of the blocks of a section."""
    text = README.read_text(encoding='utf-8')
    start = text[: text.index(f'\n## {name}\n')].count('\n') + 1
    following = re.search(r'\n## ', text[text.index(f'\n## {name}\n') + 1 :])
    end = start + text[text.index(f'\n## {name}\n') + 1 :][: following.start() if following else None].count('\n') + 1
    return [(block.language, block.text) for block in blocks(README) if start < block.line <= end]


def test_from_an_empty_folder_to_a_model_of_ones_own_csv(tmp_path):
    make_reviews(tmp_path)
    found = section('Your own CSV')
    commands = [line for language, text in found if language == 'bash' for line in text.splitlines()]
    assert [' '.join(line.split()[:2]) for line in commands] == [
        f'composer-cmi {name}' for name in ('check', 'init', 'run')
    ]
    outputs = []
    for command in commands:
        _, *arguments = shlex.split(command)
        # `-m composer_cmi.cli` is what the entry point `composer-cmi` calls.
        extra = ['model.name_or_path=tiny', 'train.progress_bar=false'] if arguments[0] == 'run' else []
        if arguments[0] == 'run':
            edited = Path(tmp_path, 'custom.yaml')
            assert 'path: my_data ' in edited.read_text(), 'README says to set path:'
            edited.write_text(edited.read_text().replace('path: my_data ', 'path: reviews.csv '))
            arguments = [argument for argument in arguments if not argument.startswith('data.path=')]
        outputs.append(run(['-m', 'composer_cmi.cli', *arguments, *extra], tmp_path))
    assert '2 classes' in outputs[0] and 'Next: train on it' in outputs[0]
    assert 'custom.yaml' in outputs[1]
    assert re.search(r'mincmi', outputs[2])
    script = next(text for language, text in found if language == 'python')
    assert re.search(r"'label': '(good|bad)'", run(['-c', script], tmp_path))


def run(arguments: list[str], folder: Path) -> str:
    path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
    environment = {**os.environ, 'PYTHONPATH': path, 'COLUMNS': '120'}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
