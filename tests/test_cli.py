"""What the command line prints; whole runs by it are in test_run_folder.py, submissions in test_submission.py."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import composer_cmi
from composer_cmi import registry
from composer_cmi.cli import app
from composer_cmi.run.config import DataConfig, load_config
from composer_cmi.run.loggers import known_loggers
from composer_cmi.run.parts.by_name import known_algorithms, known_callbacks
from composer_cmi.starters import STARTERS
from composer_cmi.study.config import load_study

ROOT = Path(__file__).parents[1]


def test_the_list_has_one_line_an_entry_and_says_why_stsb_is_refused():
    result = CliRunner().invoke(app, ['list'])
    assert result.exit_code == 0, result.exception
    entries = [line.strip().split('  ', 1) for line in result.stdout.splitlines() if line.startswith('  ')]
    known = [registry.known_tasks(), known_algorithms(), registry.known_models()]
    known += [known_loggers(), known_callbacks()]
    assert [name for name, _ in entries] == [name for kind in known for name in kind]
    summaries = {name: summary.strip() for name, summary in entries}
    assert all(summaries.values())
    assert summaries['stsb'].startswith(
        'Task stsb is refused: STS-B asks for a similarity between 0 and 5, a regression'
    )
    assert summaries['cola'] == 'GLUE CoLA: is the sentence acceptable English? (Matthews correlation)'
    # Composer's docstring breaks its sentence over two lines and has a link in it.
    assert summaries['sam'].startswith(
        'Adds sharpness-aware minimization (Foret et al, 2020) by wrapping an existing optimizer'
    )


@pytest.mark.parametrize('kind', ['tasks', 'algorithms', 'models', 'loggers', 'callbacks'])
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


def invoke(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_help_and_version_load_nothing_heavy():
    heavy = ('torch', 'composer', 'transformers', 'datasets', 'numpy', 'matplotlib', 'scipy', 'yaml')
    code = (
        'import sys\nfrom composer_cmi.cli import app\n'
        'for ask in (["--help"], ["init", "--help"], ["run", "--help"], ["--version"]):\n'
        '    try: app(ask)\n'
        '    except SystemExit as done: assert not done.code\n'
        f'print([name for name in {heavy} if name in sys.modules])'
    )
    printed = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[-2:] == [f'composer-cmi {composer_cmi.__version__}', '[]']
    assert '--install-completion' in printed


def test_the_collector_rests_while_a_process_begins_and_passes_over_what_stays():
    code = (
        'import gc\nfrom composer_cmi.run.command import imports\n'
        'with imports("run", "A run"):\n    print(gc.isenabled())\n    stays = [{}]\n'
        'print(gc.isenabled(), gc.get_freeze_count() > 1000, gc.get_referrers(stays[0]))\n'
        'count = gc.get_freeze_count()\nimport sys\nsys.modules["torch"] = None\n'  # as if somebody else had loaded it
        'with imports("run", "A run"):\n    print(gc.isenabled())\nprint(gc.get_freeze_count() == count)'
    )
    printed = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    # What is frozen is no longer looked through: the list that refers to it is not found.
    assert printed.splitlines() == ['False', 'True True []', 'True', 'True']


@pytest.mark.parametrize('kind', STARTERS)
def test_init_writes_files_that_load_and_overwrites_none(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    done = invoke('init', kind, 'new')
    assert done.exit_code == 0, done.output
    *written, following = done.stdout.splitlines()
    assert sorted(written) == sorted(str(path) for path in Path('new').rglob('*') if path.is_file())
    # The command that it ends with is true there: what a file names is found from the folder.
    folder, command, main = re.fullmatch(r'Next: cd (\S+) && composer-cmi (\w+) (\S+)', following).groups()
    monkeypatch.chdir(folder)
    for file in Path().rglob('*.yaml'):
        if 'arms:' in file.read_text() and command == 'sweep':
            load_study(str(file))
        else:
            load_config(file)
    before = Path(main).read_bytes()
    again = invoke('init', kind)
    assert again.exit_code == 2
    assert again.stderr.startswith(f'composer-cmi: init does not overwrite: {main}')
    assert len(again.stderr.strip().splitlines()) == 1
    assert Path(main).read_bytes() == before


def test_init_writes_all_of_a_kind_or_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('demo_distill.yaml').write_text('mine')
    assert 'demo_distill.yaml is there already' in invoke('init', 'demo').stderr
    assert [path.name for path in Path().iterdir()] == ['demo_distill.yaml']
    assert invoke('init', 'demo', 'demo_distill.yaml/x').stderr.startswith('composer-cmi: init cannot write')
    assert "There are no files for 'stduy'. Did you mean 'study'?" in invoke('init', 'stduy').stderr


def test_the_file_for_own_data_explains_every_key_of_data():
    text = (ROOT / 'yamls' / 'custom.yaml').read_text()
    section = text.split('\ndata:\n')[1].split('\n\n')[0]
    explained = re.findall(r'^  (\w+):.*#', section, re.MULTILINE)
    assert sorted(explained) == sorted(DataConfig.model_fields)


def test_every_shipped_file_is_written_by_a_kind_or_is_a_study_of_ours():
    shipped = {f'yamls/{path.name}' for path in (ROOT / 'yamls').iterdir()}
    assert shipped == {source for files in STARTERS.values() for source in files.values() if 'yamls' in source}


def test_files_that_help_and_comments_name_exist(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for kind in STARTERS:
        assert invoke('init', kind).exit_code == 0
    texts = [invoke(command, '--help').stdout for command in ('init', 'run', 'sweep', 'report', 'submit', 'list')]
    for root in (tmp_path, ROOT):
        named = set()
        for text in [*texts, *(file.read_text() for file in tmp_path.rglob('*.yaml'))]:
            named |= set(re.findall(r'(?:yamls|studies)/\w+\.\w+', text))
            if root == tmp_path:
                named |= set(re.findall(r'composer-cmi (?:run|sweep) (\S+\.yaml)', text))
        assert named
        assert not [name for name in named if not (root / name).exists() and not (ROOT / name).exists()]


@pytest.mark.parametrize(
    ('name', 'blocked', 'sentence'),
    [
        ('run', 'composer', "A run from a YAML file needs the package 'composer', which is not installed"),
        ('list', 'composer', "The list of models needs the package 'composer', which is not installed"),
        ('report', 'matplotlib', "A study's report needs the package 'matplotlib', which is not installed"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(name, blocked, sentence):
    code = (
        'import sys\n'
        f'sys.modules[{blocked!r}] = None\n'  # what Python itself does for a package that must not be found
        'from composer_cmi.cli import app\n'
        f'app([{name!r}, "models"])'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"{sentence}: pip install 'composer-cmi[run]'." in done.stderr
    assert 'Traceback' not in done.stderr
