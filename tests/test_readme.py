"""The README's own scripts run, and what it names exists."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import toys

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text(encoding='utf-8')


def example(name: str) -> str:
    found = re.search(rf'<!-- example: {name} -->\n```python\n(.*?)```', README, re.DOTALL)
    assert found, f'README.md has no example {name!r}'
    return found[1]


def quiet(code: str) -> str:
    """The reader's script on this machine: no GPU, no progress bar."""
    return code.replace('Trainer(\n', "Trainer(\n    device='cpu', precision='fp32', progress_bar=False,\n")


@pytest.mark.parametrize('name', ['huggingface'])
def test_the_examples_run(name):
    code = example(name)
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    names = {'model': toys.tiny_bert().model, 'tokenizer': None, 'train_dataloader': toys.loader(toys.Sentences(32))}
    exec(compile(quiet(code), 'README.md', 'exec'), names)
    algorithm = names['trainer'].state.algorithms[0]
    assert algorithm.class_centroids.running.cmi > 0 and algorithm.term.initial_cmi > 0
    assert torch.isfinite(toys.weights(names['trainer'].state.model)).all()
    names['trainer'].close()


def test_every_file_it_names_exists():
    named = set(re.findall(r'\b((?:yamls|studies|benchmarks|tests|docs|composer_cmi)/[\w/.]*\w\.\w+)', README))
    assert named
    assert not [path for path in named if not (ROOT / path).exists()]


def test_its_links_work_on_the_package_index_too():
    # A picture is no link: where the repository is not at hand, its words stand there.
    targets = re.findall(r'(?<!!)\[[^\]]*\]\(([^)]+)\)', README)
    assert targets and re.search(r'!\[\w.{20,}?\]\(docs/images/run\.png\)', README)
    assert all(target.startswith(('https://', '#')) for target in targets), 'the index has no other file of ours'


def test_it_is_read_in_three_minutes():
    assert len(README.splitlines()) <= 120


def test_the_extras_it_names_are_those_that_there_are():
    metadata = importlib.metadata.metadata('composer-cmi')
    named = {extra for group in re.findall(r'composer-cmi\[([\w,]+)\]', README) for extra in group.split(',')}
    rows = re.findall(r'^\| `plots`.*?\|', README, re.MULTILINE)
    named |= {extra for row in rows for extra in re.findall(r'`(\w+)`', row)}
    assert named == set(metadata.get_all('Provides-Extra') or []) - {'dev', 'docs'}


def test_the_plugin_imports_nothing_that_composer_does_not():
    heavy = ('transformers', 'datasets', 'evaluate', 'matplotlib', 'pandas', 'pydantic', 'sklearn', 'peft', 'ray')
    code = f'import sys, {{}}; print([m for m in {heavy} if m in sys.modules])'
    printed = [
        subprocess.run([sys.executable, '-c', code.format(modules)], capture_output=True, text=True, check=True).stdout
        for modules in ('composer', 'composer_cmi, composer_cmi.algorithms, composer_cmi.metrics')
    ]
    assert printed[0] == printed[1]
