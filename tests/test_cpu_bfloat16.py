"""`train.precision: amp_bf16` on a CPU: training in bfloat16, everything that is reported in fp32."""

from __future__ import annotations

import pytest
import torch
from composer.devices import DeviceCPU
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from composer_cmi.run.command import run_file
from composer_cmi.run.config.schema import TrainConfig
from composer_cmi.run.parts.classifier import build_composer_model
from composer_cmi.run.parts.notes import slow_bfloat16
from run_tools import make_all, make_model, predictions


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
    """The same classifier in bfloat16 and in fp32, and a batch."""
    folder = str(make_model(tmp_path_factory.mktemp('bfloat16') / 'model'))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    models = [AutoModelForSequenceClassification.from_pretrained(folder) for _ in range(2)]
    built = [build_composer_model(m, tokenizer, bfloat16=k == 0) for k, m in enumerate(models)]
    texts = ['heavy rain over the hills', 'bake the bread in butter', 'fog and frost', 'a ripe tomato and cheese']
    batch = dict(tokenizer(texts, padding=True, return_tensors='pt'))
    return built, {**batch, 'labels': torch.tensor([0, 1, 0, 1])}


def step(model, batch):
    model.train().zero_grad()
    outputs = model(dict(batch))
    loss = model.loss(outputs, batch)
    loss.backward()
    return outputs['logits'], loss, torch.cat([p.grad.flatten() for p in model.parameters()])


def test_training_is_in_bfloat16_and_its_loss_and_gradients_are_not(pair):
    (low, full), batch = pair
    seen = []
    hook = low.model.classifier.register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    (logits, loss, gradient), (exact, _, exact_gradient) = step(low, batch), step(full, batch)
    hook.remove()
    assert seen == [torch.bfloat16]
    assert {logits.dtype, loss.dtype, gradient.dtype} == {torch.float32}
    assert 0 < (logits - exact).abs().max() < 0.02
    assert torch.cosine_similarity(gradient, exact_gradient, dim=0) > 0.98
    assert not torch.equal(gradient, exact_gradient)


def test_evaluation_is_in_fp32(pair):
    (low, full), batch = pair
    with torch.no_grad():
        found, exact = (model.eval()(dict(batch))['logits'] for model in (low, full))
    assert torch.equal(found, exact)


def test_microbatches_of_any_size_find_the_same_up_to_rounding(pair):
    (low, _), batch = pair
    *_, whole = step(low, batch)
    parts = [{name: values[k : k + 2] for name, values in batch.items()} for k in (0, 2)]
    apart = sum(step(low, part)[-1] for part in parts) / 2
    assert torch.cosine_similarity(whole, apart, dim=0) > 0.999


def test_a_run_reports_what_its_exported_model_says(tmp_path):
    assert run_file(str(make_all(tmp_path)), ['train.precision=amp_bf16']) == 0
    folder = tmp_path / 'runs' / 'tiny'
    rows = predictions(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder / 'model')
    model = AutoModelForSequenceClassification.from_pretrained(folder / 'model')
    texts = [line.split('\t')[0] for line in (tmp_path / 'data' / 'dev.tsv').read_text().splitlines()[1:]]
    with torch.no_grad():
        logits = model(**tokenizer(texts, padding=True, return_tensors='pt')).logits
    told = {row['example_id']: float(row['logit_0']) for row in rows}
    assert [told[str(k)] for k in range(len(texts))] == pytest.approx(logits[:, 0].tolist(), abs=1e-5)


def test_a_processor_without_bfloat16_is_told_that_it_loses_time(monkeypatch):
    asked = TrainConfig(max_duration='1ep', precision='amp_bf16')
    monkeypatch.setattr('platform.machine', lambda: 'x86_64')
    monkeypatch.setattr(torch.cpu, '_is_avx512_bf16_supported', lambda: False)  # a mock of an older processor
    assert 'slower' in slow_bfloat16(asked, DeviceCPU())[0]
    assert slow_bfloat16(TrainConfig(max_duration='1ep'), DeviceCPU()) == []
    monkeypatch.setattr(torch.cpu, '_is_avx512_bf16_supported', lambda: True)
    assert slow_bfloat16(asked, DeviceCPU()) == []
