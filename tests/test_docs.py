"""Every code block of README and docs runs, or says above it why not."""

from __future__ import annotations

import importlib.util
import json
import os
import pkgutil
import re
from pathlib import Path

import pytest
import yaml

from composer_cmi.run.config.json_schema import run_json_schema
from composer_cmi.run.config.yaml_loader import read_yaml
from composer_cmi.study.json_schema import study_json_schema
from doc_tools import METHOD_CARD, MODEL, PAGES, ROOT, SHOWN, Reader, blocks, make_reviews

# Read by the order of the navigation: the first makes the runs that the others read.
FIRST = ROOT / 'docs' / 'getting-started.md'


@pytest.fixture(scope='module')
def reader(tmp_path_factory):
    """Has followed `Your own CSV` in an empty folder, which is then the current one of every page."""
    folder = tmp_path_factory.mktemp('reader')
    make_reviews(folder)
    before = Path.cwd()
    os.chdir(folder)
    reader = Reader()
    reader.follow(FIRST)
    assert reader.names['classify']('Broke on the second day.')[0]['label'] in ('good', 'bad')
    yield reader
    os.chdir(before)


@pytest.mark.parametrize(
    'page', [page for page in PAGES if page != FIRST], ids=lambda page: str(page.relative_to(ROOT))
)
def test_every_block_of_a_page_runs(reader, page):
    if page.name == 'README.md':
        Path('custom.yaml').unlink(missing_ok=True)  # of the first page; README has it written again
    reader.follow(page)


def test_the_first_page_ends_with_a_model(reader):
    assert Path('runs/custom/mincmi/model/config.json').is_file()
    assert 'ce' in reader.printed and 'mincmi' in reader.printed


def test_the_notebook_runs(reader):
    """With the tiny model, in this process; `make notebook` executes it as it is."""
    notebook = json.loads((ROOT / 'examples' / 'own_csv.ipynb').read_text())
    names = {'__name__': 'notebook'}
    for cell in notebook['cells']:
        if cell['cell_type'] == 'code':
            assert not cell['outputs'], 'the file is kept without outputs'
            exec(''.join(cell['source']).replace(MODEL, str(Path('tiny').resolve())), names)
    assert set(names['results'].scores['dev']) >= {'accuracy', 'nll'}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_block_is_run_or_says_why_not(page):
    tests = [path.read_text(encoding='utf-8') for path in (ROOT / 'tests').glob('test_*.py')]
    for block in blocks(page):
        assert block.language in ('python', 'bash', 'yaml', *SHOWN), block.where
        if block.mark.startswith('not run'):
            assert re.fullmatch(r'not run: \w.{8,}', block.mark), f'{block.where}: a reason is wanted'
        if block.mark.startswith('example'):
            # Run by the test of its subject, which names the page and the example.
            name = f"'{block.mark.removeprefix('example: ')}'"
            assert any(page.name in text and name in text for text in tests), f'{block.where}: no test runs {name}'
    # A block that the pattern does not see would be run by nobody: indented, or with another fence.
    text = page.read_text(encoding='utf-8')
    assert len(re.findall(r'^\s*(?:```|~~~)', text, re.MULTILINE)) == 2 * len(blocks(page)), page


def nav(entries) -> list[str]:
    found = []
    for entry in entries:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            found += nav(value) if isinstance(value, list) else [value]
    return found


def test_every_page_is_in_the_navigation():
    site = yaml.safe_load((ROOT / 'mkdocs.yml').read_text())
    pages = {str(page.relative_to(ROOT / 'docs')) for page in PAGES if ROOT / 'docs' in page.parents}
    assert pages | {'method-card.md'} == set(nav(site['nav']))


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r'\]\(([^)#\s]+)', page.read_text(encoding='utf-8')):
            there = (page.parent / target).exists() or target == 'method-card.md'
            assert '://' in target or there, f'{page.relative_to(ROOT)} links to {target}'


def sections(schema):
    """The sections of a file by name, those of our algorithms too."""
    algorithms = schema['properties'].get('algorithms', {}).get('properties', {})
    return {'': schema, **schema['$defs'], **{name: entry['anyOf'][0] for name, entry in algorithms.items()}}.items()


@pytest.mark.parametrize('make', [run_json_schema, study_json_schema])
def test_every_key_of_a_file_has_a_description(make):
    schema = make()
    json.dumps(schema)
    for name, section in sections(schema):
        for key, value in section['properties'].items():
            described = value.get('description') or '$ref' in value
            assert described, f'{name}.{key} has no docstring: the reference page would have an empty cell'


def test_the_files_we_ship_fit_the_schema_for_editors():
    jsonschema = pytest.importorskip('jsonschema')
    run, study = (jsonschema.Draft202012Validator(make()) for make in (run_json_schema, study_json_schema))
    for file in [*(ROOT / 'yamls').glob('*.yaml'), *(ROOT / 'studies').glob('*.yaml')]:
        data = read_yaml(file)
        if 'task' in data or 'name' in data:
            (run if 'task' in data else study).validate(data)
    wrong = {
        'task': 'x',
        'run_name': 'y',
        'model': {'name_or_path': 'z'},
        'algorithms': {'cmi_regularization': {'wieght': 1}},
    }
    assert not run.is_valid(wrong)


def test_the_reference_page_has_every_key_once():
    pytest.importorskip('mkdocs', reason="the site's tools: make docs")
    spec = importlib.util.spec_from_file_location('hooks', ROOT / 'docs' / 'hooks.py')
    assert spec and spec.loader
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    page = hooks.schema_tables('run')
    keys = re.findall(r'^\| `(\w+)`', page, re.MULTILINE)
    assert sorted(keys) == sorted(key for _, section in sections(run_json_schema()) for key in section['properties'])


def test_the_python_reference_names_what_is_there():
    page = (ROOT / 'docs' / 'reference' / 'python.md').read_text(encoding='utf-8')
    names = re.findall(r'^::: ([\w.]+)', page, re.MULTILINE)
    assert names
    for name in names:
        assert pkgutil.resolve_name(name)


def sentences() -> list[str]:
    page = (ROOT / 'docs' / 'errors.md').read_text(encoding='utf-8')
    rows = re.findall(r'^\| (`.*?) \|', page, re.MULTILINE)
    return [part for row in rows for part in re.findall(r'`([^`]+)`', row)]


def test_the_errors_page_quotes_what_the_code_says():
    assert len(sentences()) > 30
    code = ''.join(path.read_text(encoding='utf-8') for path in (ROOT / 'composer_cmi').rglob('*.py'))
    # As the user reads it: adjacent literals are one sentence, what is filled in is a gap.
    code = re.sub(r"'\s*\n\s*f?'|\"\s*\n\s*f?\"|'\s*\n\s*f?\"|\"\s*\n\s*f?'", '', code)
    system = {'No space left on device', 'collapse', 'flip'}
    missing = [part for part in sentences() if part not in system and not said(part, code)]
    assert not missing


def said(part: str, code: str) -> bool:
    """Whether a literal of the code has this text, with anything where the text names an example."""
    pattern = re.sub(r"'[^']*'|\b\d+\b", '\0', part)
    pieces = [re.escape(piece.strip()) for piece in pattern.split('\0') if piece.strip()]
    return re.search('.{0,80}?'.join(pieces), code) is not None


def test_the_method_card_is_included_and_not_copied():
    assert METHOD_CARD.is_file() and not (ROOT / 'docs' / 'method-card.md').exists()
