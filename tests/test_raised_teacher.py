"""A teacher's CMI raised by temperatures between its stored logits and the student: numbers, bounds, both hosts."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import entropy

import toys
from composer_cmi import functional as cmi_f
from composer_cmi.algorithms import KnowledgeDistillation
from composer_cmi.teachers.average import raise_cmi, with_temperatures
from composer_cmi.teachers.logit_cache import CacheKey, LogitCache
from distillation_tools import SAME, teacher_bert, train
from hf_tools import Rows, away, bert, trainer, update


def test_literal_numbers():
    """Two classes, two rows each, logits 4 and 8 apart: their CMI by hand, and where the best temperature puts it."""
    logits = torch.tensor([[4.0, 0.0], [8.0, 0.0], [0.0, 4.0], [0.0, 8.0]])
    labels = torch.tensor([0, 0, 1, 1])
    torch.testing.assert_close(with_temperatures(logits[:1], [1.0, 4.0]), torch.tensor([[2.0, -0.5]]))

    def by_hand(scale: float) -> float:
        p = [1 / (1 + math.exp(-scale * gap)) for gap in (4, 8)]
        mean = sum(p) / 2
        return float(entropy([mean, 1 - mean]) - np.mean([entropy([each, 1 - each]) for each in p]))

    found = raise_cmi(logits, labels, temperature=2.0, loss_of_accuracy=0.0)
    assert found.cmi[0] == pytest.approx(by_hand(1 / 2), rel=1e-6)
    assert found.cmi[1] == pytest.approx(max(by_hand(scale / 2) for scale in np.linspace(0.1, 1, 2000)), rel=1e-5)
    # Half the sum of the two inverse temperatures is the one scale that there is: by the grid 0.8042.
    assert found.cmi == pytest.approx((0.022274, 0.023888), abs=1e-6)
    assert sum(1 / each for each in found.temperatures) / 2 == pytest.approx(0.8042, abs=1e-3)
    assert found.accuracy == (1.0, 1.0)


def drawn(rows: int = 200, classes: int = 4, sharp: float = 12.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are nearly always right, and surer of it the larger `sharp` is."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (rows,), generator=generator)
    noise = torch.randn(rows, classes, generator=generator)
    return sharp * (torch.nn.functional.one_hot(labels, classes) + 0.25 * noise), labels


@pytest.mark.parametrize('sharp', [0.1, 3.0, 12.0, 60.0])
@pytest.mark.parametrize('classes', [2, 5])
def test_cmi_never_falls_and_accuracy_no_further_than_it_may(classes, sharp):
    logits, labels = drawn(classes=classes, sharp=sharp)
    kept = [raise_cmi(logits, labels, temperature=2.0, loss_of_accuracy=loss) for loss in (0.0, 0.02, 0.5)]
    for loss, found in zip((0.0, 0.02, 0.5), kept, strict=True):
        assert found.cmi[1] >= found.cmi[0] and found.accuracy[1] >= found.accuracy[0] - loss - 1e-9
        assert all(1 <= each <= 10 + 1e-9 for each in found.temperatures)
        log_f = cmi_f.log_distribution(with_temperatures(logits.double(), found.temperatures), 2.0)
        stats = cmi_f.class_statistics(log_f, labels, classes)
        assert float(cmi_f.conditional_mutual_information(stats)) == pytest.approx(found.cmi[1], rel=1e-9)
    assert kept[0].cmi[1] <= kept[1].cmi[1] <= kept[2].cmi[1]
    if sharp == 60.0 and classes == 5:  # surer than is of any use to a student
        assert kept[2].cmi[1] > 1.2 * kept[2].cmi[0] and max(kept[2].temperatures) > 2


def test_a_teacher_that_errs_much_is_left_as_it_is():
    """Sharper logits would raise its CMI by its errors, softer ones lower it."""
    logits, labels = drawn(sharp=2.0)
    assert raise_cmi(logits, labels.roll(1), temperature=2.0, loss_of_accuracy=0.1).temperatures == [1.0] * 4


def test_rows_without_labels_shifts_and_their_order_change_nothing():
    logits, labels = drawn()
    found = raise_cmi(logits, labels, temperature=1.0, loss_of_accuracy=0.01)
    more = torch.cat([logits, 9 * torch.randn(50, 4)]), torch.cat([labels, torch.full((50,), -100)])
    assert raise_cmi(*more, temperature=1.0, loss_of_accuracy=0.01) == found
    shifted = raise_cmi(logits + torch.randn(200, 1), labels, temperature=1.0, loss_of_accuracy=0.01)
    assert shifted.temperatures == pytest.approx(found.temperatures, rel=1e-3)
    with pytest.raises(ValueError, match='fitted on labelled training rows, and there are none'):
        raise_cmi(logits, torch.full((200,), -100), temperature=1.0, loss_of_accuracy=0.0)


def sure(rows) -> LogitCache:
    """The stored logits of a teacher that is right and too sure of it."""
    labels = rows.labels.clamp(min=0)
    noise = torch.randn(len(rows), 3, generator=torch.Generator().manual_seed(1))
    logits = 12 * (torch.nn.functional.one_hot(labels, 3) + 0.25 * noise)
    return LogitCache(torch.arange(len(rows)), logits, key=CacheKey('teacher', 'data'))


def distilled(table: LogitCache | Path, **options) -> KnowledgeDistillation:
    return KnowledgeDistillation(cache=table, alpha=0.6, **SAME, **options)


def test_a_student_learns_from_the_raised_logits_however_a_batch_is_cut(tmp_path, caplog):
    data = toys.Sentences(48, unlabelled=8)
    table = sure(data)
    found = raise_cmi(table.logits[:40], data.labels[:40], temperature=2.0, loss_of_accuracy=0.05)
    by_hand = LogitCache(table.example_ids, with_temperatures(table.logits, found.temperatures), key=table.key)
    expected = train([distilled(by_hand)], data, model=toys.tiny_bert())[0]
    assert not torch.allclose(expected, train([distilled(table)], data, model=toys.tiny_bert())[0], atol=1e-3)
    file = table.save(tmp_path / 'logits.safetensors')
    with caplog.at_level(logging.INFO):
        assert torch.equal(train([distilled(file, raise_cmi=0.05)], data, model=toys.tiny_bert())[0], expected)
    (cmi, now), (right, still) = found.cmi, found.accuracy
    said = f'CMI of its stored logits raised from {cmi:.4f} to {now:.4f} nats, accuracy {right:.4f} to {still:.4f}, on the labelled'
    assert caplog.text.count(said) == 1 and now > cmi
    # What is stored, and what was given, stay the teacher's: another student reads the same.
    assert torch.equal(LogitCache.open(file).logits, table.logits)
    kept = table.logits.clone()
    cut = train([distilled(table, raise_cmi=0.05)], data, model=toys.tiny_bert(), device_train_microbatch_size=3)[0]
    torch.testing.assert_close(cut, expected, atol=5e-6, rtol=1e-5)
    assert torch.equal(table.logits, kept)


def test_a_resumed_run_has_the_temperatures_that_it_began_with(tmp_path):
    data = toys.Sentences(64, unlabelled=20)
    table = sure(data)

    def fit(folder: str, rows=data, **options) -> tuple[torch.Tensor, KnowledgeDistillation]:
        model, algorithm = toys.tiny_bert(dropout=0.1), distilled(table, raise_cmi=0.02)
        saving = {'save_folder': str(tmp_path / folder), 'save_interval': '1ba', 'save_num_checkpoints_to_keep': -1}
        run = toys.trainer(model, rows, [algorithm], max_duration='6ba', **{**saving, **options})
        run.fit()
        run.close()
        return toys.weights(model), algorithm

    whole, first = fit('whole')
    checkpoint = str(next((tmp_path / 'whole').glob('ep0-ba3-*.pt')))
    again, second = fit('again', load_path=checkpoint)
    assert torch.equal(again, whole)
    assert second.state_dict()['raised'] == first.state_dict()['raised']
    # Kept, and not fitted anew: on other labels it would be another one.
    other = toys.Sentences(64, unlabelled=20)
    other.labels = other.labels.flip(0)
    assert fit('other', other, load_path=checkpoint)[1].state_dict()['raised'] == first.state_dict()['raised']
    with pytest.raises(ValueError, match=r'raise_cmi=0.02, this run asks for 0.5'):
        distilled(table, raise_cmi=0.5).load_state_dict(first.state_dict())


def test_the_hf_trainer_raises_it_too(tmp_path):
    rows = Rows(22, unlabelled=5)

    def taught(accumulation: int, **more):
        section = {'cache': sure(rows), 'alpha': 0.8, 'assume_same_labels': True, **more}
        run = trainer(tmp_path, accumulation=accumulation, model=bert(), rows=rows, knowledge_distillation=section)
        run.train()
        return run

    one, cut = (taught(number, raise_cmi=0.1) for number in (1, 4))
    assert away(update(cut.model, bert()), update(one.model, bert())) < 2e-5
    raised = one._distillation.raised
    assert raised['cmi'][1] > raised['cmi'][0] and cut._distillation.raised == raised
    plain = taught(1)
    assert away(update(plain.model, bert()), update(one.model, bert())) > 1e-3


def test_without_stored_logits_it_is_refused():
    with pytest.raises(ValueError, match=r'raise_cmi is fitted on .* which only a cache has: set `cache` to a folder'):
        KnowledgeDistillation(teacher_bert(), raise_cmi=0.01, **SAME)
    for wrong in (-0.1, 1.5):
        with pytest.raises(ValueError, match='raise_cmi'):
            KnowledgeDistillation(teacher_bert(), cache='logits', raise_cmi=wrong)
