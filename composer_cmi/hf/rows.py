"""Which rows a rank has: those of a step that are its own, and its share of all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from composer_cmi.batch import class_labels, class_logits

if TYPE_CHECKING:
    from composer_cmi.hf.trainer import CMITrainer

__all__ = ['outputs_of_all_rows', 'rows_kept']


def rows_kept(trainer: CMITrainer, index: int, rows: int) -> int:
    """How many rows of this rank's microbatch `index` of the epoch are not repetitions; those stand at its end.

    accelerate deals microbatch after microbatch of the epoch's order to the ranks in turn, and fills the last round
    from the start of that order.
    """
    ranks, dataset = trainer.accelerator.num_processes, trainer.train_dataset
    if ranks == 1:
        return rows
    begins = (index * ranks + trainer.accelerator.process_index) * trainer._train_batch_size
    return max(0, min(rows, len(dataset) - begins))  # pyright: ignore


def outputs_of_all_rows(trainer: CMITrainer, without: str) -> Iterator[tuple[Any, Tensor, Tensor]]:
    """What the model gives in eval mode for this rank's share of the training rows; draws no random numbers.

    Args:
        trainer: In a training.
        without: A key that is not for the model.

    Yields:
        What the model was given, its logits `[N, C]`, the labels `[N]`.
    """
    loader: Any = trainer.callback_handler.train_dataloader
    own = torch.utils.data.DataLoader(
        loader.dataset,
        batch_size=trainer._train_batch_size,
        sampler=range(trainer.accelerator.process_index, len(loader.dataset), trainer.accelerator.num_processes),
        collate_fn=loader.collate_fn,
        generator=torch.Generator(),
    )
    model: Any = trainer.model
    training = model.training
    model.eval()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), trainer.accelerator.autocast():
        for batch in own:
            inputs = trainer._prepare_inputs({key: batch[key] for key in batch if key != without})
            labels = class_labels(inputs)
            inputs = {key: inputs[key] for key in inputs if key != 'labels'}
            yield inputs, class_logits(model(**inputs)), labels
    model.train(training)
