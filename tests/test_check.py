"""`composer-cmi check`: what a run would see, on one screen, and all that is wrong at once, without Composer."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
from rich.console import Console
from typer.testing import CliRunner

from composer_cmi.cli import app
from composer_cmi.data.check import check_data, render


def shown(findings) -> str:
    console = Console(file=io.StringIO(), width=120)
    render(findings, console)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.fixture
def folder(tmp_path):
    rows = ['a b c,x', 'A  b c,y', 'd,x', 'e f g h i,y', 'l,x', 'm,y', 'n,x', 'o,y', 'p,x', 'q,y', 'r,x']
    (tmp_path / 'train.csv').write_text('\n'.join(['text,label', *rows]))
    (tmp_path / 'dev.csv').write_text('text,label\nd,y\nnew [b]text[/b],x\n')
    return tmp_path


def test_what_a_run_would_see(folder):
    found = check_data(folder, max_length=4)
    assert found.faults == []
    assert found.repeated == {'train': 1, 'dev': 0}
    assert found.conflicting == {'train': 1, 'dev': 0}
    assert found.lengths['train'].words == (1, 5, 5)
    assert found.lengths['train'].characters == (1, 9, 9)
    assert found.lengths['train'].cut == 1
    text = shown(found)
    assert '1 of the 2 rows of dev are in train too (1 with another label)' in text
    assert '1 different texts stand under more than one class' in text
    assert 'over 4 words' in text and 'a constant answer scores 50.00% accuracy' in text
    assert text.strip().split('\n')[-1].startswith('Next: ')


def test_tokens_are_those_of_the_model(folder, tmp_path_factory):
    from transformers import BertTokenizerFast

    words = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *'abcdefghi']
    model = tmp_path_factory.mktemp('model')
    (model / 'vocab.txt').write_text('\n'.join(words))
    BertTokenizerFast(str(model / 'vocab.txt')).save_pretrained(model)
    found = check_data(folder, model=str(model), max_length=4)
    assert found.lengths['train'].tokens == (3, 7, 7)
    assert found.lengths['train'].cut == 3
    assert 'cut at 4 tokens' in shown(found)
    with pytest.raises(ValueError, match='its tokenizer cannot be loaded'):
        check_data(folder, model=str(folder))


@pytest.mark.parametrize('classes', [2, 12, 50, 200])
def test_any_number_of_classes_fits_a_screen(tmp_path, classes):
    names = [f'[red]class {i}[/red]' for i in range(classes)]
    rows = [f'text {i} {j},{names[i]}' for i in range(classes) for j in range(8)]
    (tmp_path / 'own.csv').write_text('\n'.join(['text,label', *rows]))
    text = shown(check_data(tmp_path / 'own.csv'))
    assert len(text.split('\n')) < 45
    visible = sum(name in text for name in names)
    assert visible == classes if classes <= 60 else visible >= 50 and f'... {classes - 59} more' in text


def test_all_faults_at_once_and_the_exit_code(tmp_path):
    (tmp_path / 'own.csv').write_text('text,label\ncut\n,x\nb,\nc,[red]y[/red]\n')
    result = CliRunner().invoke(app, ['check', str(tmp_path / 'own.csv')])
    assert result.exit_code == 2
    assert [f'line {i}' in result.output for i in (2, 3, 4)] == [True] * 3
    result = CliRunner().invoke(app, ['check', str(tmp_path / 'absent')])
    assert result.exit_code == 2 and result.exception.__class__ is SystemExit
    (tmp_path / 'own.csv').write_text('q,a,y\n' + ''.join(f'q{i},a{i},{i % 2}\n' for i in range(40)))
    options = ['--text-column', 'q', '--text-column', 'a', '--label-column', 'y']
    assert CliRunner().invoke(app, ['check', str(tmp_path / 'own.csv'), *options]).exit_code == 0


def test_checking_loads_neither_tokenizers_nor_batches(folder):
    # The registry comes first: what it needs is its own affair.
    code = (
        'import sys, composer_cmi.registry; before = set(sys.modules); '
        f'from composer_cmi.data.check import check_data; check_data({str(folder)!r}); new = set(sys.modules) - before; '
        "print(sorted(m for m in new if m.split('.')[0] in ('torch', 'composer', 'transformers', 'datasets') "
        "or m in ('composer_cmi.data.batches', 'composer_cmi.data.encoding')))"
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == '[]'
