"""The code of the how-to pages runs as it stands there; the loop on one process and on two, with the same weights."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def example(page: str, name: str) -> str:
    text = (ROOT / 'docs' / 'howto' / page).read_text(encoding='utf-8')
    found = re.search(rf'<!-- example: {name} -->\n```python\n(.*?)```', text, re.DOTALL)
    assert found, f'{page} has no example {name!r}'
    return found[1]


def run(code: str) -> dict:
    names = {'__name__': '__main__'}
    exec(compile(code, 'example', 'exec'), names)
    return names


def test_the_plain_loop_ends_with_the_same_weights_on_one_and_two_ranks(tmp_path):
    code = example('plain-pytorch.md', 'loop')
    one = [parameter.detach() for parameter in run(code)['model'].parameters()]
    script = tmp_path / 'loop.py'
    script.write_text(f'{code}torch.save([*model.parameters()], f"{{rank}}.pt")\n', encoding='utf-8')
    launcher = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2']
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    done = subprocess.run([*launcher, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for rank in (0, 1):
        two = torch.load(tmp_path / f'{rank}.pt', weights_only=False)
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(one, two, strict=True))


def test_the_term_of_the_loop_is_at_work():
    code = example('plain-pytorch.md', 'loop')
    assert code.count('weight = 2.0') == 1
    without, with_term = (run(code.replace('weight = 2.0', f'weight = {weight}')) for weight in (0.0, 2.0))
    assert with_term['centroids'].running.cmi < 0.9 * without['centroids'].running.cmi


def test_the_trainers_example_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip('transformers')
    monkeypatch.chdir(tmp_path)
    run(example('hf-trainer.md', 'trainer'))
    printed = capsys.readouterr().out
    assert 'cmi/cmi' in printed and 'distillation/agreement' in printed
    accuracies = [float(each) for each in re.findall(r"'eval_accuracy': '?([\d.]+)", printed)]
    # Of three classes; once from the page's own print, and once from the Trainer's where it prints what it logs.
    assert len(accuracies) >= 2 and min(accuracies) > 0.6
    assert [*(tmp_path / 'logits').glob('*.safetensors')]
    assert (tmp_path / 'student' / 'checkpoint-36' / 'composer_cmi.pt').is_file()


def test_the_table_of_the_page_is_that_of_the_benchmark():
    import csv

    page = (ROOT / 'docs' / 'howto' / 'hf-trainer.md').read_text(encoding='utf-8')
    with (ROOT / 'benchmarks' / 'accumulation.csv').open(newline='', encoding='utf-8') as file:
        rows = [*csv.DictReader(file)]
    for row in rows:
        if row['trainer'].startswith('ours') or 'Composer' in row['trainer']:
            assert float(row['ratio']) == 1 and float(row['largest_error']) < 1e-5, row
    parts = re.split(r'\ntransformers (?=[\d.]+, \d rank)', page)[1:]
    assert len(parts) == 4
    for part in parts:
        version, ranks = re.match(r'([\d.]+), (\d)', part).groups()
        for name, *cells in re.findall(r'^\| (\w[^|]*?) \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$', part, re.MULTILINE)[
            1:
        ]:
            mine = [
                row for row in rows if (row['transformers'], row['ranks'], row['trainer']) == (version, ranks, name)
            ]
            for accumulation, cell in zip('1248', cells, strict=True):
                own = [f'{float(row["ratio"]):.2f}' for row in mine if row['accumulation'] == accumulation]
                assert cell == ' / '.join(own), (version, ranks, name, accumulation)
