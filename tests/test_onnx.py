"""The exported model as ONNX gives the pipeline's answers; on a stack without transformers' exporter it says so."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from run_tools import make_model

EXPORTER = importlib.util.find_spec('transformers.exporters') is not None
RUNTIME = all(importlib.util.find_spec(name) for name in ('onnxruntime', 'onnxscript'))


@pytest.fixture(scope='module')
def model(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp('onnx') / 'model')


@pytest.mark.skipif(EXPORTER and RUNTIME, reason='all that it needs is here')
def test_without_what_it_needs_the_command_says_what_is_missing(model):
    from typer.testing import CliRunner

    from composer_cmi.cli import app

    refused = CliRunner().invoke(app, ['export', str(model)])
    assert refused.exit_code == 2 and not (model / 'onnx').exists()
    wanted = 'the exporter of transformers 5' if RUNTIME else "pip install 'composer-cmi[onnx]'"
    assert wanted in refused.stderr and refused.stderr.count('\n') == 1


@pytest.mark.skipif(not EXPORTER, reason='needs transformers 5 with its exporter (make test-modern)')
@pytest.mark.skipif(not RUNTIME, reason="needs onnxruntime and onnxscript: pip install 'composer-cmi[onnx]'")
def test_onnx_runtime_gives_the_pipelines_probabilities(model):
    import numpy as np
    import onnxruntime
    from transformers import AutoTokenizer, pipeline

    from composer_cmi.exchange.onnx_model import export_onnx

    folder = export_onnx(model)
    assert folder == model / 'onnx' and not [path for path in model.iterdir() if path.name.endswith('.tmp')]
    session = onnxruntime.InferenceSession(str(folder / 'model.onnx'), providers=['CPUExecutionProvider'])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    classify = pipeline('text-classification', model=str(model), device='cpu')
    names = classify.model.config.id2label
    singles = ['heavy rain', 'bake the bread until the crust is golden and stir the rice', 'snow', 'fog', 'hail']
    pairs = [('heavy rain', 'fresh eggs'), ('the storm moved out to sea', 'snow')]
    for texts in ([singles], [[a for a, _ in pairs], [b for _, b in pairs]]):
        inputs = tokenizer(*texts, padding=True, truncation=True, return_tensors='np')
        logits = session.run(['logits'], {name: value.astype('int64') for name, value in inputs.items()})[0]
        found = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        rows = [dict(zip(('text', 'text_pair'), row, strict=False)) for row in zip(*texts, strict=True)]
        for row, answer in zip(found, classify(rows, top_k=None, truncation=True), strict=True):
            wanted = {one['label']: one['score'] for one in answer}
            assert row == pytest.approx([wanted[names[i]] for i in range(len(row))], abs=1e-5)
