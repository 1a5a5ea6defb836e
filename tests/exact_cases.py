"""Trains every case at several microbatch sizes and saves the weights: run by test_exactness on 1, 2 and 4 ranks."""

from __future__ import annotations

import sys
from typing import Any

import torch
from composer.core import Event, State
from composer.loggers import Logger
from composer.utils import dist, get_device

import toys
from composer_cmi.algorithms import CMIMaximization, CMIRegularization, KnowledgeDistillation, NormPenalty


class UpdatedInAfterLoss(CMIRegularization):
    """The mistake: centroids that move between the microbatches of one batch."""

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        super().apply(event, state, logger)
        if event == Event.AFTER_LOSS:
            self.class_centroids.finish()
            self.class_centroids.commit()


def distillation(alpha: float = 0.7, **options: Any) -> KnowledgeDistillation:
    """A fixed random teacher."""
    teacher = toys.mlp(seed=5).module
    return KnowledgeDistillation(teacher, alpha=alpha, temperature=2.0, assume_same_labels=True, **options)


CASES = {
    'none': lambda: [],
    'default': lambda: [CMIRegularization()],
    'paper': lambda: [CMIRegularization(3.0, form='plain', start='0ba')],
    'ramp': lambda: [CMIRegularization(1.0, start='1ba', ramp='4ba')],
    'relative': lambda: [CMIRegularization(0.5, form='relative', start='1ba')],
    'logits': lambda: [CMIRegularization(0.3, space='logits', form='plain', start='0ba')],
    'fixed': lambda: [CMIRegularization(3.0, form='plain', start='2ba', centroids='fixed')],
    'centered': lambda: [CMIRegularization(0.1, space='centered', form='plain', temperature=0.5, start='1ba')],
    'separation': lambda: [CMIRegularization(3.0, form='plain', separation=1.0, start='0ba')],
    'normalized': lambda: [CMIRegularization(3.0, form='normalized', start='1ba')],
    'contrastive': lambda: [
        CMIRegularization(0.3, space='centered', form='contrastive', temperature=0.2, tau=0.5, start='0ba')
    ],
    'temperatures': lambda: [CMIRegularization(0.3, space='logits', temperature=[1.0, 4.0], start='1ba')],
    'max': lambda: [CMIMaximization(start='1ba')],
    'max features': lambda: [CMIMaximization(3.0, space='features', start='1ba')],
    'max fixed': lambda: [CMIMaximization(centroids='fixed', start='0ba')],
    'distillation': lambda: [distillation()],
    'distillation, standardized': lambda: [distillation(loss='standardized')],
    'distillation, relation': lambda: [distillation(relation=5.0)],
    'distillation, cmi': lambda: [distillation(), CASES['paper']()[0]],
    'cmi, distillation': lambda: [CASES['paper']()[0], distillation()],
    'norm penalty': lambda: [NormPenalty(0.5)],
    'norm penalty, cmi': lambda: [NormPenalty(0.5, space='logits'), CASES['paper']()[0]],
    'mistake': lambda: [UpdatedInAfterLoss(3.0, form='plain', start='0ba')],
}
SIZES = (16, 8, 4, 3)


def sizes(ranks: int) -> list[int]:
    """Microbatch sizes that make sense for one rank's share of a batch of 16."""
    return [4] if ranks == 4 else [size for size in SIZES if size <= 16 // ranks]


def train(case: str, microbatch_size: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Eight batches of 16; returns weights and centroids."""
    model, algorithms = toys.mlp().to(dtype), CASES[case]()
    data = toys.points()
    data.tensors = (data.tensors[0].to(dtype), data.tensors[1])
    trainer = toys.trainer(model, data, algorithms, device_train_microbatch_size=microbatch_size)
    trainer.fit()
    trainer.close()
    result = {'weights': toys.weights(model)}
    for algorithm in algorithms:
        if isinstance(algorithm, CMIRegularization | CMIMaximization):
            result['centroids'] = algorithm.class_centroids.reference.log_centroids
    return result


def main(path: str) -> None:
    """Save `{(case, microbatch size, dtype): result}` on rank 0, and check that the ranks agree."""
    torch.set_num_threads(1)
    dist.initialize_dist(get_device('cpu'), timeout=120)
    results = {}
    for dtype in (torch.float32, torch.float64):
        for case in CASES:
            # A microbatch never exceeds a rank's share of the batch.
            for size in sizes(dist.get_world_size()):
                result = train(case, size, dtype)
                for tensor in result.values():
                    first, *others = dist.all_gather(tensor)
                    if any(not torch.equal(first, other) for other in others):
                        raise SystemExit(f'{case}: the ranks hold different values')
                results[case, size, dtype] = result
    if dist.get_global_rank() == 0:
        torch.save(results, path)


if __name__ == '__main__':
    main(sys.argv[1])
