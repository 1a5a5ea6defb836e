"""The two hosts train the same: same rows in the same order, same weights to float32 rounding."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, SequentialSampler

from composer_cmi import CMIMaximization, CMIRegularization, KnowledgeDistillation
from composer_cmi.hf import CMITrainer
from hf_tools import Rows, away, bert, trainer, update
from toys import trainer as composer_trainer


class InOrder(CMITrainer):
    def _get_train_sampler(self, *_):
        return SequentialSampler(self.train_dataset)


TERMS = {
    'cmi_regularization': (CMIRegularization, {'weight': 0.02, 'start': '0.3dur', 'ramp': '0.3dur'}),
    'contrastive': (
        CMIRegularization,
        # Not so steep that the rounding of a step grows: it is 2e-5 after eight at a temperature of 0.05.
        {'weight': 0.1, 'form': 'contrastive', 'space': 'centered', 'tau': 0.5, 'temperature': 0.5, 'start': '1ba'},
    ),
    'cmi_maximization': (CMIMaximization, {'weight': 0.2, 'start': '1ep'}),
    'knowledge_distillation': (KnowledgeDistillation, {'alpha': 0.4, 'assume_same_labels': True}),
}


@pytest.mark.parametrize(
    'names',
    [['cmi_regularization', 'knowledge_distillation'], ['contrastive'], ['cmi_maximization'], []],
    ids=lambda names: '+'.join(names),
)
def test_both_hosts_give_the_same_weights(tmp_path, names):
    from composer.models import HuggingFaceModel

    def arguments(name):
        teacher = {'teacher': bert(seed=9)} if name == 'knowledge_distillation' else {}
        return {**TERMS[name][1], **teacher}

    rows, student = Rows(54), bert()  # 16, 16, 16, 6, twice
    there = composer_trainer(
        HuggingFaceModel(student, use_logits=True),
        rows,
        [TERMS[name][0](**arguments(name)) for name in names],
        train_dataloader=DataLoader(rows, batch_size=16),
        optimizers=torch.optim.SGD(student.parameters(), lr=0.2),
        device_train_microbatch_size=4,
    )
    there.fit()
    there.close()
    terms = {name.replace('contrastive', 'cmi_regularization'): arguments(name) for name in names}
    here = trainer(tmp_path, accumulation=8, rows=rows, cls=InOrder, **terms)
    here.train()
    assert away(update(here.model, bert()), update(student, bert())) < 5e-6
