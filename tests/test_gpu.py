"""What only a GPU can show: no wait for the device, mixed precision, the same weights there. More ranks: gpu_ranks.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from composer.devices import DeviceGPU

import runs
import toys
from composer_cmi.algorithms import CMIMaximization, CMIRegularization, KnowledgeDistillation

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device'),
]
GPU: dict[str, Any] = {'device': 'gpu'}


def in_fp32() -> dict[str, Any]:
    """Matrix products as on a CPU: Composer's own device rounds their factors to TF32, 10 bits, of which training makes
    a difference of 1e-3 with the sharpest of the terms.
    """
    return {'device': DeviceGPU(allow_tf32=False)}


@pytest.mark.parametrize('case', runs.CASES)
def test_same_weights_as_on_the_cpu_for_any_microbatch(case):
    weights = []
    for options in ({}, in_fp32(), {**in_fp32(), 'device_train_microbatch_size': 3}):
        model = toys.mlp()
        runs.finish(runs.trainer(runs.CASES[case](), model=model, **options))
        weights.append(toys.weights(model).cpu())
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize('case', runs.CASES)
def test_bit_identical_after_a_restart(case, tmp_path):
    options = {**GPU, 'deterministic_mode': True}
    expected = runs.finish(runs.trainer(runs.CASES[case](), tmp_path, **options))
    for batch in (3, 4, 6):
        path = str(tmp_path / f'ba{batch}-rank0.pt')
        continued = runs.finish(runs.trainer(runs.CASES[case](), load_path=path, **options))
        assert runs.differences(runs.after(expected, batch), continued) == []


@pytest.mark.parametrize('precision', ['amp_bf16', 'amp_fp16'])
@pytest.mark.parametrize('make', [CMIRegularization, CMIMaximization])
def test_mixed_precision(make, precision):
    algorithm, model = make(start='1ba'), toys.tiny_bert()
    trainer = toys.trainer(model, toys.Sentences(64), [algorithm], precision=precision, **GPU)
    trainer.fit()
    trainer.close()
    assert torch.isfinite(toys.weights(model)).all() and algorithm.class_centroids.skipped == 0
    assert 0 < algorithm.class_centroids.running.cmi <= algorithm.class_centroids.running.mutual_information


@pytest.mark.parametrize('case', runs.CASES)
def test_no_wait_for_the_device_in_a_step(case, monkeypatch):
    """CUDA itself raises at a wait while one of our handlers runs, from the third batch on."""
    for cls in (CMIRegularization, CMIMaximization, KnowledgeDistillation):
        original = cls.apply

        def apply(self: Any, event: Any, state: Any, logger: Any, _original: Any = original) -> None:
            inside = state.timestamp.batch.value > 2 and event.value not in ('fit_start', 'fit_end', 'epoch_end')
            # The pass that fixes centroids reads batches, and so waits: once in a run, at its fifth batch at the latest.
            fixing = event.value == 'batch_start' and 'fixed' in case
            torch.cuda.set_sync_debug_mode('error' if inside and not fixing else 'default')
            try:
                _original(self, event, state, logger)
            finally:
                torch.cuda.set_sync_debug_mode('default')

        monkeypatch.setattr(cls, 'apply', apply)
    trainer = runs.trainer(runs.CASES[case](), model=toys.mlp(), loggers=[], **GPU)
    trainer.fit()
    trainer.close()


def test_microbatch_size_auto():
    algorithm = CMIRegularization(start='1ba')
    options = {**GPU, 'device_train_microbatch_size': 'auto'}
    runs.finish(runs.trainer([algorithm], model=toys.mlp(), **options))
    assert algorithm.class_centroids.tables['totals'][:, 1].sum() == 16 * runs.BATCHES * runs.EPOCHS
