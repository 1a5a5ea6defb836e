from __future__ import annotations

import catalogue
import pytest
from composer.algorithms import SWA, GradientClipping
from composer.core import Algorithm

from composer_cmi import registry
from composer_cmi.algorithms import CMIRegularization


@pytest.fixture
def _restored():
    before = dict(catalogue.REGISTRY)
    yield
    catalogue.REGISTRY.clear()
    catalogue.REGISTRY.update(before)


def test_own_algorithms_and_composers_are_found_by_name():
    assert registry.get_algorithm('cmi_regularization') is CMIRegularization
    assert registry.get_algorithm('gradient_clipping') is GradientClipping
    assert registry.get_algorithm('swa') is SWA


def test_every_composer_algorithm_has_a_snake_case_name():
    found = registry.composer_algorithms()
    assert len(found) >= 28
    assert all(name == name.lower() and issubclass(cls, Algorithm) for name, cls in found.items())


@pytest.mark.parametrize(
    ('get', 'name', 'suggestion'),
    [
        (registry.get_algorithm, 'cmi_regularisation', 'cmi_regularization'),
        (registry.get_algorithm, 'gradient_cliping', 'gradient_clipping'),
        (registry.get_task, 'mrcp', 'mrpc'),
        (registry.get_model, 'embeded:minilm', 'embedded:minilm'),
    ],
)
def test_an_unknown_name_lists_the_known_and_suggests_the_nearest(get, name, suggestion):
    with pytest.raises(
        ValueError, match=rf"Unknown \w+ '{name}'\. Did you mean '{suggestion}'\? Known: .*{suggestion}"
    ):
        get(name)


def test_a_name_like_nothing_known_gets_no_suggestion():
    with pytest.raises(ValueError, match=r"Unknown task 'xyzzyx'\. Known: "):
        registry.get_task('xyzzyx')


@pytest.mark.usefixtures('_restored')
def test_a_users_file_registers_by_decorator_and_is_imported_once(tmp_path):
    file = tmp_path / 'my_plugin.py'
    file.write_text(
        'from composer.core import Algorithm\n'
        'from composer_cmi.registry import register_algorithm\n'
        "@register_algorithm('test_registry_mine')\n"
        'class Mine(Algorithm):\n'
        "    '''Does nothing.'''\n"
        '    def match(self, event, state): return False\n'
        '    def apply(self, event, state, logger): pass\n'
    )
    registry.import_user_code([file])
    first = registry.get_algorithm('test_registry_mine')
    registry.import_user_code([file])
    assert registry.get_algorithm('test_registry_mine') is first
    assert registry.describe(first) == 'Does nothing.'
    assert 'test_registry_mine' in registry.known_algorithms()


@pytest.mark.usefixtures('_restored')
def test_a_taken_name_is_refused():
    with pytest.raises(ValueError, match="'cmi_regularization' is taken by composer_cmi.algorithms.cmi.CMIRegulari"):
        registry.register_algorithm('cmi_regularization')(GradientClipping)


def test_a_missing_or_broken_user_file_is_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'code_paths: there is no Python file'):
        registry.import_user_code([tmp_path / 'none.py'])
    broken = tmp_path / 'broken.py'
    broken.write_text('import nothing_of_this_name\n')
    with pytest.raises(ValueError, match=r"failed to import: ModuleNotFoundError: No module named 'nothing_of"):
        registry.import_user_code([broken])


def test_entries_of_other_packages_are_found_by_entry_point(tmp_path, monkeypatch):
    folder = tmp_path / 'other-1.0.dist-info'
    folder.mkdir()
    (folder / 'METADATA').write_text('Metadata-Version: 2.1\nName: other\nVersion: 1.0\n')
    (folder / 'entry_points.txt').write_text('[composer_cmi_tasks]\nother_task = other_package:task\n')
    (tmp_path / 'other_package.py').write_text('task = object()\n')
    monkeypatch.syspath_prepend(tmp_path)
    import importlib.metadata

    # catalogue reads the installed packages once, when it is imported.
    monkeypatch.setattr(catalogue, 'AVAILABLE_ENTRY_POINTS', importlib.metadata.entry_points())
    import other_package  # pyright: ignore[reportMissingImports]

    assert 'other_task' in registry.known_tasks()
    assert registry.get_task('other_task') is other_package.task


def test_a_file_of_tasks_that_is_read_twice_registers_equal_tasks(tmp_path):
    """From two folders, as a starting file and its copy are; with functions and partial ones in them."""
    code = (
        'from functools import partial\nfrom composer_cmi.data.tasks import Task\n'
        'from composer_cmi.registry import register_task\n'
        'def rows(name): return {}\n'
        "register_task('test_twice')(Task('test_twice', '', ('text',), ('a', 'b'), load=partial(rows, VALUE)))\n"
    )
    for folder, value in (('one', '"x"'), ('two', '"x"')):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / 'twice.py').write_text(code.replace('VALUE', value))
        registry.import_user_code([tmp_path / folder / 'twice.py'])
    (tmp_path / 'twice.py').write_text(code.replace('VALUE', '"y"'))
    with pytest.raises(ValueError, match='taken by another Task'):
        registry.import_user_code([tmp_path / 'twice.py'])
