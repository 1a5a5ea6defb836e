"""Whether a student can learn from a teacher: the same classes by name, the same vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from composer_cmi.class_names import look_alike

__all__ = ['check_numbers', 'check_same_vocabulary', 'label_names_of', 'label_order', 'num_labels_of']


def label_names_of(model: nn.Module) -> tuple[str, ...] | None:
    """Class names in the order of the logits by `config.id2label`; None where there are none but `LABEL_0`, ...."""
    names = getattr(getattr(model, 'config', None), 'id2label', None)
    if not names:
        return None
    ordered = tuple(str(names[i]) for i in sorted(names))
    default = all(name.casefold() == f'label_{i}' for i, name in enumerate(ordered))
    return None if default else ordered


def num_labels_of(model: nn.Module) -> int | None:
    """Number of classes by `config.num_labels` or `num_classes`; None where the model does not say."""
    declared = getattr(getattr(model, 'config', None), 'num_labels', getattr(model, 'num_classes', None))
    return None if declared is None else int(declared)


def label_order(
    teacher: Sequence[str] | None,
    student: Sequence[str] | None,
    *,
    assume_same_labels: bool = False,
    names: tuple[str, str] = ('teacher', 'student'),
) -> list[int] | None:
    """Where each of the student's classes stands in the teacher's logits: compared by name, as far as it can be seen.

    Args:
        teacher: The teacher's class names in the order of its logits; None where it has none of its own.
        student: The student's.
        assume_same_labels: Take classes without names to be in the same order.
        names: What the two are called in an error.

    Returns:
        `order`, so that `teacher_logits[:, order]` stands in the student's order; None where nothing is to be moved.

    Raises:
        ValueError: The sets of names differ, or one side has no names and nobody vouched for the order.
    """
    if teacher is None or student is None:
        if assume_same_labels:
            return None
        nameless = ' and '.join(name for name, given in zip(names, (teacher, student), strict=True) if given is None)
        raise ValueError(
            f'Cannot compare class names, the {nameless} has only default ones (LABEL_0, ...): set id2label in its '
            'config, or pass assume_same_labels=True if the classes are known to be in the same order.'
        )
    where = {look_alike(name): i for i, name in enumerate(teacher)}
    wanted = [look_alike(name) for name in student]
    if set(where) != set(wanted) or len(where) != len(teacher) or len(wanted) != len(teacher):
        raise ValueError(
            f'The {names[0]} and the {names[1]} have different classes, {list(teacher)} and {list(student)}: '
            'a student can only learn the classes of its teacher.'
        )
    order = [where[name] for name in wanted]
    return None if order == sorted(order) else order


def check_numbers(teacher: int | None, student: int | None) -> None:
    """Compare the numbers of classes, where they are known."""
    if student == 1:
        raise ValueError('The student has one output (regression): a softmax over it means nothing, nothing to distil.')
    if teacher is not None and student is not None and teacher != student:
        raise ValueError(f'The teacher has {teacher} classes, the student {student}: they must have the same.')


def check_same_vocabulary(teacher: Any, student: Any) -> None:
    """Refuse a teacher that would read the student's token ids as other words.

    Args:
        teacher: Its tokenizer, or None where it is not known (then nothing can be compared).
        student: The tokenizer that made the batches, or None.

    Raises:
        ValueError: The vocabularies differ.
    """
    if teacher is None or student is None:
        return
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours == theirs:
        return
    differing = sum(theirs.get(token) != i for token, i in ours.items())
    raise ValueError(
        f"The teacher's tokenizer has another vocabulary than the student's ({len(theirs)} and {len(ours)} tokens, "
        f'{differing} of the latter unknown to the teacher or with another id): set `cache` to a folder in the YAML of '
        'a run, where the teacher then reads the text by its own tokenizer, or take a teacher of the same vocabulary.'
    )
