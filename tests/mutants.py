"""Breaks the package in a dozen ways, one at a time, and shows that a test fails for each: prints a table.

    python tests/mutants.py

Works on a copy in a temporary folder. First the tests must pass on the copy as it is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
STEPS, CENTROIDS = 'composer_cmi/terms/steps.py', 'composer_cmi/centroids.py'
RESUME = 'tests/test_resume.py::test_any_batch_boundary'
# Name: (file, text, what stands there instead, tests that should notice).
MUTANTS: dict[str, tuple[str, str, str, tuple[str, ...]]] = {
    'state not saved': (
        STEPS,
        "'centroids': self.centroids.state_dict()",
        "'centroids': ClassCentroids(self.arguments.centroids).state_dict()",
        (f'{RESUME}[regularization]',),
    ),
    'state not restored': (
        STEPS,
        "self.centroids.load_state_dict(state['centroids'])",
        'pass',
        (f'{RESUME}[maximization]',),
    ),
    'centroids not all-reduced': (
        CENTROIDS,
        'dist.all_reduce(sums)',
        'pass',
        ('tests/test_centroids.py::test_ranks_with_different_classes_share_one_table',),
    ),
    'update moved to AFTER_LOSS': (
        STEPS,
        '        return added\n',
        '        self.centroids.finish()\n        self.centroids.commit()\n        return added\n',
        ('tests/test_partners.py::test_partner[CMIRegularization-gradient accumulation]',),
    ),
    'pending sums not reset on replay': (
        CENTROIDS,
        '"""A pass over the batch starts: its sums are zero, whatever an aborted pass left."""\n'
        '        self._pending = None',
        '"""A pass over the batch starts."""',
        ('tests/test_partners.py::test_partner[CMIRegularization-auto-microbatching, replay after out of memory]',),
    ),
    'teacher in train mode': (
        'composer_cmi/teachers/teacher.py',
        '            member.module.eval()\n',
        '            member.module.train()\n',
        ('tests/test_teacher.py::test_eval_mode_at_every_call',),
    ),
    'tau^2 dropped': (
        'composer_cmi/functional.py',
        'return temperature**2 * divergence(',
        'return divergence(',
        ('tests/test_functional.py::test_distillation_divergence_by_hand_and_scipy',),
    ),
    'own class counted in the separation': (
        'composer_cmi/functional.py',
        ' - prior[labels, None] * log_means[labels]',
        '',
        (
            'tests/test_family.py::test_separation_term_by_hand',
            'tests/test_family.py::test_gamma_is_its_definition_on_the_whole_table',
        ),
    ),
    'distributions around no mean kept': (
        CENTROIDS,
        'seen = seen & (before[-1] > 0)',
        'pass',
        ('tests/test_family.py::test_the_mean_is_that_of_what_was_seen_and_frozen_in_a_batch',),
    ),
    'a teacher raised past its bound': (
        'composer_cmi/teachers/average.py',
        'if accuracy(each) >= least)',
        ')',
        ('tests/test_raised_teacher.py::test_cmi_never_falls_and_accuracy_no_further_than_it_may',),
    ),
    'relation averaged over unknown classes': (
        'composer_cmi/terms/relation.py',
        'return (rows * known).sum(-1) / known.sum().clamp(min=1)',
        'return (rows * known).mean(-1)',
        ('tests/test_relation.py::test_a_row_is_a_mean_over_the_classes_that_are_known',),
    ),
    'sign flipped': (
        STEPS,
        'self.arguments.sign * weight)',
        '-self.arguments.sign * weight)',
        (
            'tests/test_cmi_training.py::test_the_sign_on_data[1-features]',
            'tests/test_cmi_training.py::test_the_sign_on_data[1-logits]',
        ),
    ),
}


def failed_tests(copy: Path, tests: list[str]) -> list[str]:
    """Run tests on the copy; the names of those that fail."""
    env = {**os.environ, 'PYTHONPATH': str(copy), 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '--tb=no', *tests]
    done = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f'the tests could not be run: {tests}\n{done.stdout[-2000:]}{done.stderr[-2000:]}')
    lines = [line for line in done.stdout.splitlines() if line.startswith('FAILED ')]
    return [line.removeprefix('FAILED ').split(' - ')[0].rpartition('::')[2] for line in lines]


def main() -> int:
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ('composer_cmi', 'tests'):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns('__pycache__'))
        shutil.copy(ROOT / 'pyproject.toml', copy)
        where = subprocess.run(
            [sys.executable, '-c', 'import composer_cmi; print(composer_cmi.__file__)'],
            env={**os.environ, 'PYTHONPATH': str(copy)},
            cwd=copy,
            capture_output=True,
            text=True,
            check=True,
        )
        if not where.stdout.strip().startswith(str(copy)):
            raise SystemExit(f'the copy is not what would be tested, but {where.stdout}')
        if failed := failed_tests(copy, sorted({test for *_, tests in MUTANTS.values() for test in tests})):
            raise SystemExit(f'without any mutation these fail already: {", ".join(failed)}')
        print(f'{"mutation":34}  {"seconds":>7}  noticed by', flush=True)
        for name, (file, text, instead, tests) in MUTANTS.items():
            original = (copy / file).read_text()
            if original.count(text) != 1:
                raise SystemExit(f'{name}: {file} holds {original.count(text)} times: {text}')
            (copy / file).write_text(original.replace(text, instead))
            begin = time.monotonic()
            failed = failed_tests(copy, list(tests))
            (copy / file).write_text(original)
            missed += not failed
            print(f'{name:34}  {time.monotonic() - begin:7.0f}  {", ".join(failed) or "NOBODY"}', flush=True)
    print(f'{len(MUTANTS) - missed} of {len(MUTANTS)} mutations are noticed')
    return missed


if __name__ == '__main__':
    raise SystemExit(bool(main()))
