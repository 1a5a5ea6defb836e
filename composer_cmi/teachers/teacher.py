"""A frozen classifier that a student learns from: loaded once, compared with the student, run in eval mode.

`load_teacher` makes a `Teacher` from whatever holds trained weights. A `Teacher` is not an `nn.Module` and keeps its
modules in a plain tuple, so that neither the student's `state_dict`, nor FSDP or DDP, nor a checkpoint, nor a weight
average ever finds them.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from composer_cmi.batch import class_logits
from composer_cmi.teachers.average import Average, average_logits, shares_of
from composer_cmi.teachers.compatibility import check_same_vocabulary, label_names_of, label_order, num_labels_of
from composer_cmi.teachers.loading import load_classifier
from composer_cmi.teachers.pretrained import accepted_inputs, fit_padding, fit_tokenizer

__all__ = [
    'Member',
    'Teacher',
    'load_teacher',
    'weights_fingerprint',
]


def weights_fingerprint(model: nn.Module) -> str:
    """A hash of all that decides a model's logits: weights, layers, settings and the order of its classes.

    The same for the same model from a file or alive, on any device.
    """
    digest = hashlib.sha256(repr(model).encode())
    for name, tensor in sorted(model.state_dict().items()):
        value = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(f'{name} {tensor.dtype} {list(tensor.shape)}'.encode())
        digest.update(memoryview(value.view(torch.uint8).numpy()))
    settings = getattr(getattr(model, 'config', None), 'to_diff_dict', dict)()
    kept = {key: value for key, value in settings.items() if key not in _NO_SETTINGS and not key.startswith('_')}
    digest.update(json.dumps([label_names_of(model), kept], sort_keys=True, default=str).encode())
    return digest.hexdigest()


# Names, versions, what the weights and the class names say already, and what training alone looks at.
_NO_SETTINGS = {
    *('architectures', 'dtype', 'finetuning_task', 'id2label', 'label2id', 'name_or_path', 'num_labels'),
    *('problem_type', 'torch_dtype', 'transformers_version', 'use_cache'),
}


@dataclass(frozen=True)
class Member:
    """One teacher model with what belongs to it.

    Attributes:
        module: The classifier.
        tokenizer: The Hugging Face tokenizer that it was trained with, or None.
        source: Where it comes from, for messages.
        num_labels: Number of classes, where the module itself does not say.
        weight: Its part in the average, against the other members' weights.
    """

    module: nn.Module
    tokenizer: Any = None
    source: str = 'a live module'
    num_labels: int | None = None
    weight: float = 1.0

    @property
    def classes(self) -> int | None:
        """Number of classes, or None where nobody said."""
        declared = num_labels_of(self.module)
        return self.num_labels if declared is None else declared

    @cached_property
    def accepted(self) -> frozenset[str] | None:
        """Names of the keyword arguments of `forward`, without the labels; None where it takes no `input_ids`."""
        names = accepted_inputs(self.module)
        return names - {'labels', 'loss_kwargs', 'kwargs'} if 'input_ids' in names else None


class Teacher:
    """One or several frozen classifiers, averaged by their weights.

    The average is one of *logits* (the normalised geometric mean of the distributions) unless told otherwise: it
    commutes with the temperature. That of *probabilities* (the mixture: no class that one member believes in is lost)
    is taken at temperature 1, and its logarithm stands for logits; so one stored table `[N, C]` serves every
    temperature in both. Each member's classes are brought into the first one's order by name.

    Args:
        members: The models; they are frozen in place (`requires_grad_(False)`).
        assume_same_labels: Take members without class names to have the same order.
        average: Of what.

    Raises:
        ValueError: No member, or members of different classes, or a member that is no classifier, or a weight that is
            not positive.
    """

    def __init__(self, members: Sequence[Member], *, assume_same_labels: bool = False, average: Average = 'logits'):
        if not members:
            raise ValueError('At least one teacher is needed, the list is empty.')
        self.members = tuple(members)
        self.average: Average = average
        if not all(0 < member.weight < math.inf for member in members):
            raise ValueError(f'Weights of teachers must be positive, got {[member.weight for member in members]}.')
        self._shares = shares_of([member.weight for member in members])
        for member in self.members:
            _check_classifier(member)
            member.module.requires_grad_(False).eval()
            if member.tokenizer is not None:
                fit_tokenizer(member.module, member.tokenizer)
        first = self.members[0].module
        self.num_labels, self.label_names = self.members[0].classes, label_names_of(first)
        self._orders: list[Tensor | None] = [None]
        for member in self.members[1:]:
            if member.classes != self.num_labels:
                raise ValueError(
                    f'The teachers have different numbers of classes: {self.members[0].source} {self.num_labels}, '
                    f'{member.source} {member.classes}.'
                )
            names = (member.source, self.members[0].source)
            theirs = label_names_of(member.module)
            order = label_order(theirs, self.label_names, assume_same_labels=assume_same_labels, names=names)
            self._orders.append(None if order is None else torch.tensor(order))

    @property
    def source(self) -> str:
        """Where the teacher comes from, for messages."""
        return ' + '.join(member.source for member in self.members)

    @property
    def tokenizer(self) -> Any:
        """The first tokenizer that a member brought, or None."""
        return next((member.tokenizer for member in self.members if member.tokenizer is not None), None)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of weights, class names and the average; that of a single model is `weights_fingerprint` of it."""
        hashes = [weights_fingerprint(member.module) for member in self.members]
        if len(hashes) == 1:
            return hashes[0]
        if len({*self._shares}) > 1 or self.average != 'logits':
            hashes.append(json.dumps([self.average, self._shares]))
        return hashlib.sha256(''.join(hashes).encode()).hexdigest()

    def to(self, device: torch.device | str) -> Teacher:
        """Move the weights to a device; their dtype stays."""
        for member in self.members:
            member.module.to(device)
        return self

    def check_vocabulary(self, tokenizer: Any) -> None:
        """See `check_same_vocabulary`; each member is compared, and one without a tokenizer pads as this one does."""
        for member in self.members:
            check_same_vocabulary(member.tokenizer, tokenizer)
            if member.tokenizer is None and tokenizer is not None and getattr(tokenizer, 'pad_token', None) is not None:
                fit_padding(member.module, tokenizer.pad_token_id)

    @torch.no_grad()
    def logits(self, batch: Any) -> Tensor:
        """The (averaged) logits `[N, C]`, float32, on the teacher's device, without dropout and without gradient.

        Args:
            batch: A mapping with `input_ids` (labels are not looked at) or a tuple `(x, y)`. It is moved to where the
                weights are, and floating inputs to their dtype.
        """
        parts: list[Tensor] = []
        for i, member in enumerate(self.members):
            # At every call, not once: a caller that holds the module may have put it back into train mode.
            member.module.eval()
            logits = class_logits(_forward(member, batch)).float()
            if (order := self._orders[i]) is not None:
                # Copied to the device once: a list as an index would be copied, and waited for, in every step.
                self._orders[i] = order = order.to(logits.device)
                logits = logits.index_select(1, order)
            parts.append(logits)
        return average_logits(parts, self._shares, self.average)


TeacherSpec: TypeAlias = 'str | Path | nn.Module | Teacher | Sequence[str | Path | nn.Module]'


def load_teacher(
    spec: TeacherSpec,
    *,
    assume_same_labels: bool = False,
    weights: Sequence[float] | None = None,
    average: Average = 'logits',
) -> Teacher:
    """Make a `Teacher` of whatever holds trained weights; several are averaged (see `Teacher`).

    Loading draws no random numbers from the global generators: a run with a teacher keeps the data order and the
    dropout masks of a run without.

    Args:
        spec: A Hugging Face folder or hub name, a finished run folder of ours, a Composer checkpoint file, a live
            module (plain, Hugging Face or Composer), a `Teacher` (returned as it is), or a list of these.
        assume_same_labels: Take several teachers without class names to have the same order.
        weights: One for each of several teachers; equal without.
        average: Of several teachers' logits or of their probabilities.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: It holds no trained classifier, or the members do not fit together.
    """
    if isinstance(spec, Teacher):
        return spec
    specs = [spec] if isinstance(spec, (str, Path, nn.Module)) else list(spec)
    parts = [1.0] * len(specs) if weights is None else weights
    members = [replace(_load_member(one), weight=weight) for one, weight in zip(specs, parts, strict=True)]
    return Teacher(members, assume_same_labels=assume_same_labels, average=average)


def _load_member(spec: str | Path | nn.Module) -> Member:
    if _is_composer(spec, 'HuggingFaceModel'):
        return Member(spec.model, spec.tokenizer, f'a live {type(spec.model).__name__}')  # pyright: ignore
    if _is_composer(spec, 'ComposerClassifier'):
        return Member(spec.module, None, f'a live {type(spec.module).__name__}', spec.num_classes)  # pyright: ignore
    if isinstance(spec, nn.Module):
        return Member(spec, None, f'a live {type(spec).__name__}')
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        module, tokenizer = load_classifier(spec)
    return Member(module, tokenizer, str(spec))


def _is_composer(model: Any, name: str) -> bool:
    # Who has such a model has imported Composer; nobody else needs it.
    return isinstance(model, getattr(sys.modules.get('composer.models'), name, ()))


def _check_classifier(member: Member) -> None:
    config = getattr(member.module, 'config', None)
    kind = getattr(config, 'problem_type', None)
    if kind in ('regression', 'multi_label_classification') or member.classes == 1:
        raise ValueError(
            f'{member.source} is no single-label classifier ({kind or "one output"}): a softmax over its outputs means '
            'nothing, so there is nothing to distil.'
        )


def _forward(member: Member, batch: Any) -> Any:
    parameter = next(member.module.parameters(), None)

    def place(value: Any) -> Any:
        if not isinstance(value, Tensor) or parameter is None:
            return value
        return value.to(parameter.device, parameter.dtype if value.is_floating_point() else None)

    if _is_composer(member.module, 'ComposerModel'):
        items = {k: place(v) for k, v in batch.items()} if isinstance(batch, Mapping) else tuple(map(place, batch))
        return member.module(items)
    if not isinstance(batch, Mapping):
        inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
        return member.module(place(inputs))
    accepted = member.accepted
    if accepted is None:
        return member.module({key: place(value) for key, value in batch.items()})
    inputs = {key: place(value) for key, value in batch.items() if key in accepted}
    segments = _missing_segments(member, inputs)
    return member.module(**inputs, **({} if segments is None else {'token_type_ids': segments}))


def _missing_segments(member: Member, inputs: Mapping[str, Any]) -> Tensor | None:
    """`token_type_ids` for a BERT that teaches a DistilBERT, whose tokenizer leaves them out.

    Without them BERT would take both sentences of a pair for the first one, and teach worse than it knows.
    """
    config, separator = getattr(member.module, 'config', None), getattr(member.tokenizer, 'sep_token_id', None)
    wanted = 'token_type_ids' in (member.accepted or ()) and getattr(config, 'model_type', None) in _TWO_SEGMENTS
    if not wanted or 'token_type_ids' in inputs or separator is None or getattr(config, 'type_vocab_size', 0) < 2:
        return None
    is_separator = (inputs['input_ids'] == separator).long()
    # [CLS] A [SEP] B [SEP]: the second segment begins behind the first separator; padding belongs to the first.
    second = (is_separator.cumsum(-1) - is_separator).clamp(max=1)
    mask = inputs.get('attention_mask')
    return second if mask is None else second * mask.long()


# Models of BERT's own pair layout; DeBERTa, ELECTRA and MobileBERT share it.
_TWO_SEGMENTS = frozenset({'bert', 'electra', 'mobilebert', 'albert', 'convbert', 'squeezebert', 'deberta'})
