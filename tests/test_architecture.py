"""The house is as its page says: layers, sizes, and doors that exist."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip('tomli')

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'composer_cmi'
FILES = sorted(PACKAGE.rglob('*.py'))


def contract() -> list[set[str]]:
    settings = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))['tool']['importlinter']
    layers = next(each for each in settings['contracts'] if each['type'] == 'layers')['layers']
    return [set(re.findall(r'composer_cmi\.(\w+)', layer)) for layer in layers]


def test_the_picture_is_the_contract():
    page = (ROOT / 'docs' / 'architecture.md').read_text(encoding='utf-8')
    picture = re.search(r'<!-- layers -->\n```\n(.*?)```', page, re.DOTALL)
    assert picture
    # The rooms stand in front of the wide gap, their description behind it.
    rooms = [set(re.findall(r'\w+', re.split(r' {4,}', line.strip())[0])) for line in picture[1].splitlines()]
    assert rooms == contract()


def test_every_room_is_in_the_contract():
    rooms = {path.stem for path in PACKAGE.glob('*.py')} - {'__init__'}
    rooms |= {path.name for path in PACKAGE.iterdir() if (path / '__init__.py').is_file()}
    assert rooms == set().union(*contract())


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_is_read_in_one_sitting(path):
    assert len(path.read_text(encoding='utf-8').splitlines()) <= 300


def test_a_folder_has_a_dozen_files_at_most():
    counts = {folder: len([*folder.glob('*.py')]) - 1 for folder in {path.parent for path in FILES}}
    assert not {str(folder): count for folder, count in counts.items() if count > 12}


def test_no_two_files_of_the_package_differ_by_one_letter():
    stems = sorted({path.stem for path in FILES})
    assert not [(a, b) for a in stems for b in stems if a != b and (a == f'{b}s' or f'{a}s' == b)]


def test_every_file_says_first_what_it_is_for():
    silent = [path for path in FILES if not path.read_text(encoding='utf-8').startswith('"""')]
    assert not silent
