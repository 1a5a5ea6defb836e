"""What the command line prints; whole runs by it are in test_run_folder.py, submissions in test_submission.py."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from composer_cmi import registry
from composer_cmi.cli import app
from composer_cmi.run.loggers import known_loggers


def test_the_list_has_one_line_an_entry_and_says_why_stsb_is_refused():
    result = CliRunner().invoke(app, ['list'])
    assert result.exit_code == 0, result.exception
    entries = [line.strip().split('  ', 1) for line in result.stdout.splitlines() if line.startswith('  ')]
    known = [registry.known_tasks(), registry.known_algorithms(), registry.known_models(), known_loggers()]
    assert [name for name, _ in entries] == [name for kind in known for name in kind]
    summaries = {name: summary.strip() for name, summary in entries}
    assert all(summaries.values())
    assert summaries['stsb'].startswith(
        'Task stsb is refused: STS-B asks for a similarity between 0 and 5, a regression'
    )
    assert summaries['cola'] == 'GLUE CoLA: is the sentence acceptable English? (Matthews correlation)'
    # Composer's docstring breaks its sentence over two lines and has a link in it.
    assert summaries['cutmix'].startswith('CutMix trains the network on non-overlapping combinations of pairs of')


@pytest.mark.parametrize('kind', ['tasks', 'algorithms', 'models', 'loggers'])
def test_one_list_alone(kind):
    result = CliRunner().invoke(app, ['list', kind])
    assert result.exit_code == 0
    assert [line for line in result.stdout.splitlines() if line.endswith(':')] == [f'{kind}:']


def test_an_unknown_list_is_refused_with_the_nearest():
    result = CliRunner().invoke(app, ['list', 'taks'])
    assert result.exit_code == 2
    assert "There is no list of 'taks'. Did you mean 'tasks'?" in result.stderr


@pytest.mark.parametrize(
    ('text', 'line'),
    [
        ('One sentence. And another.', 'One sentence.'),
        ('Broken over\ntwo lines, e.g. here. More.', 'Broken over two lines, e.g. here.'),
        (
            '`SWA <https://x.org/a>`_ averages :class:`~torch.nn.Module` weights.',
            'SWA averages torch.nn.Module weights.',
        ),
        ('First paragraph\n\nsecond', 'First paragraph'),
    ],
)
def test_a_description_is_the_first_sentence_without_markup(text, line):
    assert registry.describe(text) == line
