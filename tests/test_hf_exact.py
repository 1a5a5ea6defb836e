"""The step of a CMITrainer is the same for any accumulation, short last steps and repeated rows included."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import Trainer

from hf_tools import Rows, away, bert, llama, trainer, update

ROOT = Path(__file__).parents[1]
# Float32 rounding over 8 steps; a wrong denominator is off by more than 0.1.
ROUNDING = 2e-5

TERMS = {
    'cross-entropy': {},
    'features': {'cmi_regularization': {'weight': 0.02, 'start': '2ba', 'ramp': '2ba'}},
    'logits': {'cmi_maximization': {'weight': 0.5, 'start': '1ba'}},
    'relative': {'cmi_regularization': {'weight': 0.05, 'form': 'relative', 'start': '1ep'}},
    'fixed': {'cmi_regularization': {'weight': 0.02, 'start': '2ba', 'centroids': 'fixed'}},
    'contrastive': {
        'cmi_regularization': {'weight': 0.1, 'form': 'contrastive', 'space': 'centered', 'tau': 0.5, 'start': '0ba'}
    },
    'normalized': {'cmi_regularization': {'form': 'normalized', 'temperature': [1.0, 2.0], 'start': '1ba'}},
    'distillation': {'knowledge_distillation': {'alpha': 0.5, 'assume_same_labels': True}},
    'relation': {'knowledge_distillation': {'alpha': 0.5, 'relation': 5.0, 'assume_same_labels': True}},
    'all': {
        'cmi_regularization': {'weight': 0.02, 'start': '2ba'},
        'knowledge_distillation': {'alpha': 0.3, 'assume_same_labels': True},
    },
}


def with_teacher(terms):
    terms = {name: dict(arguments) for name, arguments in terms.items()}
    if 'knowledge_distillation' in terms:
        terms['knowledge_distillation']['teacher'] = bert(seed=9)
    return terms


def trained(folder, accumulation, terms, make=bert, **options):
    run = trainer(folder, accumulation=accumulation, model=make(), **options, **with_teacher(terms))
    run.train()
    return run


@pytest.mark.parametrize('accumulation', [2, 4, 8])
@pytest.mark.parametrize('terms', TERMS.values(), ids=TERMS)
def test_any_accumulation_gives_the_same_update(tmp_path, terms, accumulation):
    options = {'rows': Rows(22, unlabelled=5), 'settings': {'label_smoothing_factor': 0.1}}
    one, cut = (trained(tmp_path, number, terms, **options) for number in (1, accumulation))
    assert one.state.global_step == cut.state.global_step == 4  # 16 rows and 6, twice
    assert away(update(cut.model, bert()), update(one.model, bert())) < ROUNDING
    if one._cmi:
        assert torch.equal(cut._cmi.centroids.tables['totals'], one._cmi.centroids.tables['totals'])
        # The prior of two epochs over the labelled rows: nothing is left out or counted twice.
        assert float(one._cmi.centroids.tables['totals'][:, 1].sum()) == 2 * 17
    losses = [[row['loss'] for row in run.state.log_history if 'loss' in row] for run in (one, cut)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_a_decoder_is_exact_too(tmp_path):
    terms = {'cmi_regularization': {'weight': 0.02, 'start': '1ba'}}
    one, cut = (trained(tmp_path, number, terms, llama, rows=Rows(22)) for number in (1, 4))
    assert away(update(cut.model, llama()), update(one.model, llama())) < ROUNDING


def test_without_terms_it_is_the_stock_trainer_of_one_microbatch(tmp_path):
    settings = {'label_smoothing_factor': 0.1}
    stock = trainer(tmp_path, cls=Trainer, rows=_without_ids(), settings=settings)
    stock.train()
    ours = trained(tmp_path, 4, {}, rows=Rows(22), settings=settings)
    assert away(update(ours.model, bert()), update(stock.model, bert())) < ROUNDING


def _without_ids():
    return [
        {key: value for key, value in row.items() if key != 'example_id'}
        for row in map(Rows(22).__getitem__, range(22))
    ]


def test_a_term_of_weight_zero_measures_and_changes_nothing(tmp_path):
    plain = trained(tmp_path, 2, {})
    measured = trained(tmp_path, 2, {'cmi_regularization': {'weight': 0}})
    assert torch.equal(update(plain.model, bert()), update(measured.model, bert()))
    assert measured.state.log_history[-2]['cmi/cmi'] > 0


def test_two_ranks_give_the_update_of_one(tmp_path):
    """54 rows over 2 ranks repeat rows in the last round; 20 a whole microbatch; steps and resume on ranks too."""
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2']
    environment = {**os.environ, 'PYTHONPATH': f'{ROOT}{os.pathsep}{ROOT / "tests"}', 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(
        [*command, str(ROOT / 'tests' / 'hf_ranks.py'), str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    of_two = torch.load(tmp_path / 'two.pt')
    for (rows, accumulation, name), vector in of_two.items():
        one = trained(tmp_path / 'one', 1, TERMS[name], rows=Rows(rows))
        assert away(vector['update'], update(one.model, bert())) < ROUNDING, (rows, accumulation, name)
        if one._cmi:
            assert torch.equal(vector['totals'], one._cmi.centroids.tables['totals'])
        losses = [row['loss'] for row in one.state.log_history if 'loss' in row]
        assert vector['losses'] == pytest.approx(losses, rel=1e-3)
    assert torch.load(tmp_path / 'resumed.pt') == 0.0
