"""What a user should be told of a run and its numbers do not show, a sentence each."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from composer.core import Algorithm, Callback
from composer.devices import Device
from composer.utils import dist
from torch import Tensor

from composer_cmi.data.task_data import TaskData
from composer_cmi.run.config.schema import RunConfig, TrainConfig
from composer_cmi.run.outputs.results import Selection
from composer_cmi.run.setup import DISTILLATION, cpu_bfloat16

__all__ = ['notes_after', 'notes_before', 'print_notes', 'readers_of_all_tokens', 'slow_bfloat16']


def notes_before(
    config: RunConfig, data: TaskData, device: Device, weights: Tensor | None, readers: Sequence[str]
) -> Iterator[str]:
    """What is known before training begins, beside what there is to say of the data.

    Args:
        config: The run's.
        data: Its rows.
        device: What it trains on.
        weights: Those of the classes in the cross-entropy `[C]`, where there are any.
        readers: What reads all tokens: `readers_of_all_tokens`.
    """
    yield from slow_bfloat16(config.train, device)
    if weights is not None:
        told = ', '.join(f'{name} {each:.3g}' for name, each in zip(data.label_names, weights.tolist(), strict=True))
        yield f'Weights of the classes in the cross-entropy: {told}.'
    if data.unlabelled is not None and DISTILLATION not in config.algorithms:
        yield (
            f'{len(data.unlabelled):,} texts without labels are not trained on: only a teacher can label them, and '
            f'algorithms.{DISTILLATION} is not listed.'
        )
    if readers:
        yield (
            f'The last layer is computed for every token, which {" and ".join(readers)} may read. A classifier of its '
            'first token trains faster without, and with other draws of dropout: compare it with arms that have it too.'
        )


def notes_after(split: str, asked: int, steps: int, selection: Selection | None) -> Iterator[str]:
    """What the end of training adds.

    Args:
        split: The evaluation split that comes first.
        asked: The steps that the file asks for.
        steps: Those that there were.
        selection: Of which evaluation the weights are, where one was chosen.
    """
    if selection is not None:
        yield (
            f'The weights are those of the best evaluation on {selection.split} by {selection.metric} '
            '(train.keep_best): a selection on rows that are reported, which flatters their scores.'
        )
    if steps < asked:
        # Without numbers of this run: a study says it once of all its runs.
        yield (
            f'Training was ended before its {asked} steps: where a callback looked at {split} for that, '
            'its length is a selection on rows that are reported.'
        )


def print_notes(notes: Iterable[str]) -> None:
    """Say them once, on the first rank."""
    for note in notes if dist.get_global_rank() == 0 else ():
        if note:
            print(note)


def slow_bfloat16(config: TrainConfig, device: Device) -> list[str]:
    """The note of a run that asks an x86 processor for bfloat16 which it does not have, and will only lose time."""
    if not cpu_bfloat16(config, device) or platform.machine() not in ('x86_64', 'AMD64'):
        return []
    if torch.cpu._is_avx512_bf16_supported():
        return []
    return ['train.precision: this processor has no bfloat16 of its own; amp_bf16 is slower on it than fp32.']


def readers_of_all_tokens(
    config: RunConfig, algorithms: Mapping[str, Algorithm], callbacks: Mapping[str, Callback]
) -> list[str]:
    """What may read more of the encoder than its head does, by key: features of a named module, code of others."""
    named = {'feature_module', 'feature_position'}
    found = [f'algorithms.{key}' for key, part in algorithms.items() if _is_foreign(part)]
    found += [f'algorithms.{key}' for key, given in config.algorithms.items() if named & {*(given or ())}]
    found += [f'callbacks.{key}' for key, part in callbacks.items() if _is_foreign(part) or key == 'activation_monitor']
    return [*dict.fromkeys(found)]


def _is_foreign(part: object) -> bool:
    return type(part).__module__.split('.')[0] not in ('composer', 'composer_cmi')
