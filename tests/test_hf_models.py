"""CMITrainer with data and models of all kinds: stored logits, LoRA, compiled, bfloat16."""

from __future__ import annotations

import pytest
import torch

from hf_tools import Rows, away, bert, trainer, update, weights
from test_hf import CMI, SAVING, kept, taught


@pytest.mark.parametrize('plain', [False, True], ids=['datasets', 'own'])
def test_cached_logits_are_those_of_the_teacher_beside_it(tmp_path, plain):
    rows = Rows(32, shift=1000)
    if not plain:
        datasets = pytest.importorskip('datasets')
        rows = datasets.Dataset.from_list([{k: v.tolist() for k, v in rows[i].items()} for i in range(32)])
    runs = [
        trainer(tmp_path / 'out', accumulation=2, rows=rows, knowledge_distillation=taught(**cache))
        for cache in ({}, {'cache': tmp_path / 'logits'}, {'cache': tmp_path / 'logits'})
    ]
    for run in runs:
        run.train()
    assert len([*(tmp_path / 'logits').glob('*.safetensors')]) == 1
    for run in runs[1:]:
        assert away(update(run.model, bert()), update(runs[0].model, bert())) < 5e-6


def test_a_cache_without_ids_is_refused_before_training(tmp_path):
    rows = [{key: row[key] for key in row if key != 'example_id'} for row in (Rows(32)[i] for i in range(32))]
    with pytest.raises(ValueError, match="The training rows have no 'example_id'"):
        trainer(tmp_path, rows=rows, knowledge_distillation=taught(cache=tmp_path / 'logits')).train()


def test_lora_trains_and_resumes_exactly(tmp_path):
    peft = pytest.importorskip('peft')

    def run(accumulation=2):
        torch.manual_seed(4)
        config = peft.LoraConfig(task_type='SEQ_CLS', r=2, target_modules=['query'], lora_dropout=0.0)
        model = peft.get_peft_model(bert(), config)
        return trainer(
            tmp_path, accumulation=accumulation, rows=Rows(32), model=model, settings=SAVING, cmi_regularization=CMI
        )

    one, cut, again = run(1), run(4), run(4)
    before = weights(one.model)
    one.train()
    cut.train()
    assert away(weights(cut.model) - before, weights(one.model) - before) < 5e-6
    again.train(resume_from_checkpoint=str(tmp_path / 'checkpoint-2'))
    assert torch.equal(kept(again), kept(cut))


def _leave_no_trace(monkeypatch):
    # transformers 4 writes its choices into the environment, where every later Trainer would read them.
    for name in (
        'MIXED_PRECISION',
        *(f'DYNAMO_{what}' for what in ('BACKEND', 'MODE', 'USE_FULLGRAPH', 'USE_DYNAMIC')),
    ):
        monkeypatch.setenv(f'ACCELERATE_{name}', '')
        monkeypatch.delenv(f'ACCELERATE_{name}')


def test_a_compiled_model_gives_the_same(tmp_path, monkeypatch):
    from accelerate.state import AcceleratorState

    _leave_no_trace(monkeypatch)
    plain = trainer(tmp_path, rows=Rows(32), cmi_regularization=CMI)
    plain.train()
    AcceleratorState._reset_state(reset_partial_state=True)
    settings = {'torch_compile': True, 'torch_compile_backend': 'eager', 'eval_strategy': 'steps', 'eval_steps': 1}
    try:
        terms = {'cmi_regularization': CMI, 'eval_dataset': Rows(16)}
        compiled = trainer(tmp_path, rows=Rows(32), settings=settings, **terms)
        compiled.evaluate()  # code compiled without hooks before training must not be taken for training
        compiled.train()
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert hasattr(compiled.model_wrapped, '_orig_mod')
    assert away(update(compiled.model, bert()), update(plain.model, bert())) < 5e-6


def test_bfloat16_autocast_keeps_the_terms_in_float32(tmp_path, monkeypatch):
    from accelerate.state import AcceleratorState

    _leave_no_trace(monkeypatch)
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        runs = [
            trainer(tmp_path, accumulation=number, rows=Rows(32), settings={'bf16': True}, cmi_regularization=CMI)
            for number in (1, 4)
        ]
        for run in runs:
            run.train()
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert away(update(runs[1].model, bert()), update(runs[0].model, bert())) < 0.02  # bfloat16 itself
