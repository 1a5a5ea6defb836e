"""The promise: the same weights for any microbatch size, any number of ranks, any order of the algorithms."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from composer.algorithms import SAM, GradientClipping

import exact_cases
import toys

HERE = Path(__file__).parent
# Each number of ranks trains every case: minutes, on a machine that does other things too.
pytestmark = pytest.mark.timeout(1500)
RANKS = (1, 2, 4)
TOLERANCE = {torch.float32: 5e-6, torch.float64: 1e-12}


def tolerance(case: str, dtype: torch.dtype) -> float:
    """A teacher's logits are float32 whatever the student is, and its last bit depends on the cut of the batch."""
    # Standardising small logits makes that bit larger.
    bit = 1e-7 if 'standardized' in case else 1e-8
    return max(TOLERANCE[dtype], bit) if 'distillation' in case else TOLERANCE[dtype]


@pytest.fixture(scope='module')
def results(tmp_path_factory) -> dict[int, dict]:
    """By number of ranks, what the cases trained."""
    folder = tmp_path_factory.mktemp('exact')
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
    for n in RANKS:
        launcher = [sys.executable, '-m', 'composer.cli.launcher', '-n', str(n)]
        command = [*launcher, str(HERE / 'exact_cases.py'), str(folder / f'{n}.pt')]
        done = subprocess.run(command, env=env, cwd=HERE, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return {n: torch.load(folder / f'{n}.pt') for n in RANKS}


def largest_difference(results: dict[int, dict], case: str, key: str, dtype: torch.dtype) -> dict[tuple, float]:
    """By (ranks, microbatch size): the largest difference to one rank and one microbatch."""
    reference = results[1][case, 16, dtype][key]
    splits = [(n, size) for n in RANKS for size in exact_cases.sizes(n)]
    return {(n, size): (results[n][case, size, dtype][key] - reference).abs().max().item() for n, size in splits}


@pytest.mark.parametrize('dtype', TOLERANCE, ids=str)
@pytest.mark.parametrize('case', [case for case in exact_cases.CASES if case != 'mistake'])
def test_same_weights_for_any_split(results, case, dtype):
    assert max(largest_difference(results, case, 'weights', dtype).values()) < tolerance(case, dtype)
    if 'centroids' in results[1][case, 16, dtype]:
        assert max(largest_difference(results, case, 'centroids', dtype).values()) < 20 * tolerance(case, dtype)


@pytest.mark.parametrize('case', [case for case in exact_cases.CASES if case not in ('none', 'mistake')])
def test_the_case_does_something(results, case):
    difference = results[1][case, 16, torch.float64]['weights'] - results[1]['none', 16, torch.float64]['weights']
    assert difference.abs().max() > 1e-4


def test_an_update_inside_after_loss_is_seen(results):
    """The comparison has to fail for the mistake that it guards against."""
    assert max(largest_difference(results, 'mistake', 'weights', torch.float64).values()) > 1e-4


def test_listing_order_does_not_matter(results):
    for key, result in results[2].items():  # (case, microbatch size, dtype)
        if key[0] == 'distillation, cmi':
            other = results[2][('cmi, distillation', *key[1:])]
            torch.testing.assert_close(other['weights'], result['weights'], atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize('partner', [lambda: GradientClipping('norm', 0.1), lambda: SAM(rho=0.05)], ids=['clip', 'sam'])
def test_partners_in_any_order(partner):
    """SAM's second closure over a batch must not count twice."""
    weights = []
    for first, size in itertools.product((True, False), (16, 4)):
        algorithms = [*exact_cases.CASES['paper'](), partner()]
        model = toys.mlp()
        listed = algorithms if first else algorithms[::-1]
        trainer = toys.trainer(model, toys.points(), listed, device_train_microbatch_size=size)
        trainer.fit()
        trainer.close()
        weights.append(toys.weights(model))
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], atol=5e-6, rtol=1e-5)


def test_a_language_model_too():
    weights = []
    for size in (16, 8, 3):
        model = toys.tiny_bert()
        algorithms = exact_cases.CASES['paper']()
        trainer = toys.trainer(model, toys.Sentences(48), algorithms, device_train_microbatch_size=size)
        trainer.fit()
        trainer.close()
        weights.append(toys.weights(model))
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], atol=5e-6, rtol=1e-5)


def test_matrix(results, capsys):
    """Prints microbatch x ranks x precision: the largest difference of a weight over all cases."""
    cases = [case for case in exact_cases.CASES if case != 'mistake']
    lines = ['precision        ranks  ' + '  '.join(f'mb {size:<6}' for size in exact_cases.SIZES)]
    for dtype in TOLERANCE:
        worst: dict[tuple, float] = {}
        for case in cases:
            for split, difference in largest_difference(results, case, 'weights', dtype).items():
                assert difference < tolerance(case, dtype)
                worst[split] = max(worst.get(split, 0.0), difference)
        for n in RANKS:
            cells = [f'{worst[n, size]:<9.1e}' if (n, size) in worst else f'{"-":<9}' for size in exact_cases.SIZES]
            lines.append(f'{dtype!s:15}  {n:5}  ' + '  '.join(cells))
    with capsys.disabled():
        print('\nlargest weight difference to 1 rank and 1 microbatch, over all cases', *lines, sep='\n')
