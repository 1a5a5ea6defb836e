"""One exact pass over an evaluation set: every example once, whatever the number of ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from composer.core import DataSpec, Precision, get_precision_context
from composer.devices import Device
from composer.models import HuggingFaceModel
from composer.utils import dist
from torch import Tensor

from composer_cmi import functional
from composer_cmi.batch import class_labels, class_logits
from composer_cmi.features import FeatureReader

__all__ = ['Evaluation', 'evaluate', 'information']


@dataclass(frozen=True)
class Evaluation:
    """What a model answers to ``N`` examples, in the order of their ids, on the CPU.

    Attributes:
        example_ids: ``[N]`` int64.
        labels: ``[N]`` int64, -100 for rows without a label.
        logits: ``[N, C]`` float32.
        features: ``[N, D]`` float32, the vectors that feed the last linear layer.
    """

    example_ids: Tensor
    labels: Tensor
    logits: Tensor
    features: Tensor

    @property
    def predictions(self) -> Tensor:
        """``[N]`` class indices."""
        return self.logits.argmax(dim=-1)


def evaluate(
    model: HuggingFaceModel,
    reader: FeatureReader,
    data: DataSpec,
    *,
    device: Device,
    precision: Precision,
) -> Evaluation:
    """Run ``model`` in eval mode over ``data``, the same answer on every rank.

    The random generators are left as they were, so that measuring does not change the training that follows.

    Args:
        model: The model itself, not its DDP wrapper: ranks may hold different numbers of rows.
        reader: Reads the features; attached here and detached again.
        data: Yields batches with ``labels`` and ``example_id``; duplicates, that pad ranks to one length, are dropped.
        device: Where the model is.
        precision: Of the forward passes.
    """
    was_training = model.training
    parts: list[tuple[Tensor, ...]] = []
    model.eval()
    reader.attach(model, always=True)
    try:
        with torch.random.fork_rng(), torch.no_grad():
            for batch in data.dataloader:
                parts.append(_forward(model, reader, device.batch_to_device(batch), precision))
    finally:
        reader.detach()
        model.train(was_training)
    columns = [torch.cat(column) for column in zip(*parts, strict=True)] if parts else None
    gathered = [columns for columns in dist.all_gather_object(columns) if columns is not None]
    ids, labels, logits, features = (torch.cat(column) for column in zip(*gathered, strict=True))
    order = _first_of_each(ids)
    return Evaluation(ids[order], labels[order], logits[order], features[order])


def _forward(model: HuggingFaceModel, reader: FeatureReader, batch: Any, precision: Precision) -> tuple[Tensor, ...]:
    # Without labels the model computes no loss, which unlabelled rows would turn into NaN.
    inputs = {key: value for key, value in batch.items() if key != 'labels'}
    with get_precision_context(precision):
        outputs = model(inputs)
    logits = class_logits(outputs)
    features = reader.read(batch, logits)
    reader.clear()
    columns = (batch['example_id'], class_labels(batch), logits.float(), features.float())
    # Copies: what is kept may be a view of all that the model has computed.
    return tuple(column.detach().cpu().clone() for column in columns)


def _first_of_each(ids: Tensor) -> Tensor:
    """Positions ``[n]`` of one row of each id, in ascending order of id."""
    order = torch.argsort(ids, stable=True)
    ascending = ids[order]
    first = torch.ones_like(ascending, dtype=torch.bool)
    first[1:] = ascending[1:] != ascending[:-1]
    return order[first]


def information(evaluation: Evaluation, num_classes: int) -> dict[str, dict[str, float]]:
    """CMI, I(X;Z) (nats) and their ratio, of the labelled rows, in both spaces (arXiv 2502.11258).

    Returns:
        ``{'features' | 'logits': {'cmi', 'mutual_information', 'relative_cmi'}}``.
    """
    labelled = evaluation.labels >= 0
    result = {}
    for space, values in (('features', evaluation.features), ('logits', evaluation.logits)):
        # CMI is a difference of entropies a thousand times larger: float32 would leave 1e-8 of noise.
        log_f = functional.log_distribution(values[labelled].double())
        stats = functional.class_statistics(log_f, evaluation.labels[labelled], num_classes)
        result[space] = {
            'cmi': functional.conditional_mutual_information(stats).item(),
            'mutual_information': functional.mutual_information(stats).item(),
            'relative_cmi': functional.relative_cmi(stats).item(),
        }
    return result
