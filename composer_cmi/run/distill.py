"""A run's teacher: checked on the evaluation split and read over the training text before the student starts."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from composer.core import Precision, get_precision_context
from composer.devices import Device
from composer.utils import dist
from torch import Tensor

from composer_cmi import functional as cmi_f
from composer_cmi.algorithms.distillation import KnowledgeDistillation
from composer_cmi.data.batches import Collator
from composer_cmi.data.encoding import tokenizer_fingerprint
from composer_cmi.data.rows.machine import taking_turns
from composer_cmi.data.splits import Split
from composer_cmi.data.task_data import TaskData, concatenate, tokenize
from composer_cmi.run.outputs.results import load_results
from composer_cmi.teachers.by_text import of_rows
from composer_cmi.teachers.compatibility import check_numbers, label_order
from composer_cmi.teachers.forward import PiecesOfPass, inputs_fingerprint, open_or_pass, rows_bar, run_teacher
from composer_cmi.teachers.logit_cache import CacheKey, LogitCache
from composer_cmi.teachers.pretrained import check_fit
from composer_cmi.teachers.teacher import Teacher

__all__ = ['prepare_distillation']

log = logging.getLogger(__name__)


def prepare_distillation(
    algorithm: KnowledgeDistillation,
    data: TaskData,
    tokenizer: Any,
    *,
    max_length: int,
    device: Device,
    precision: Precision,
    batch_size: int = 128,
    cache_dir: str | None = None,
    progress_bar: bool = False,
) -> None:
    """Load the teacher of `algorithm`, check and print its accuracy, and fill its cache of logits; all ranks call it.

    To be called once, between the construction of the algorithm from its YAML section and that of the Trainer. With
    `cache` set, the teacher reads the text by its own tokenizer, over all training rows, those without labels too, and
    the algorithm then holds an open `LogitCache`; of several ranks or runs one computes and the others wait at a file
    lock. Without, the teacher reads the student's batches in every step and must share its vocabulary. The algorithm's
    `teacher_facts` go into `results.json`. No random number is drawn.

    Args:
        algorithm: Not yet part of a Trainer.
        data: The run's data.
        tokenizer: The student's.
        max_length: Tokens that a text is cut to.
        device: Where the teacher runs.
        precision: What it runs in, that of the run.
        batch_size: Rows that it reads at a time.
        cache_dir: Where tokenised text is kept.
        progress_bar: Whether one is shown.

    Raises:
        ValueError: The teacher does not fit the task, or is not better than naming the commonest class always.
        FileNotFoundError: There is no such teacher.
    """
    teacher = algorithm.load_teacher()
    if teacher is None:
        if isinstance(algorithm.cache, LogitCache) and algorithm.cache.by_text:
            _take_answers(algorithm, algorithm.cache, data)
        return  # of another finished cache file the teacher is not here to be checked
    algorithm.teacher = teacher
    check_numbers(teacher.num_labels, len(data.label_names))
    order = label_order(
        teacher.label_names,
        data.label_names,
        assume_same_labels=algorithm.assume_same_labels,
        names=('teacher', 'task'),
    )
    folder = algorithm.cache if isinstance(algorithm.cache, (str, Path)) else None
    reads_own_text = algorithm.cache is not None and teacher.tokenizer is not None
    own_tokenizer = teacher.tokenizer if reads_own_text else tokenizer
    teacher.check_vocabulary(own_tokenizer)
    for member in teacher.members:
        what = f'the teacher {member.source}'
        check_fit(member.module, own_tokenizer, max_length, what=what, may_turn=reads_own_text)
    collate = Collator(own_tokenizer)

    def logits_of(split: Split) -> LogitCache:
        rows = tokenize(split, own_tokenizer, max_length=max_length, cache_dir=cache_dir)
        key = CacheKey(
            teacher=teacher.fingerprint,
            data=inputs_fingerprint(rows, collate),
            task=data.task.name,
            tokenizer=tokenizer_fingerprint(own_tokenizer),
            max_length=max_length,
            precision=precision.value,
        )

        def run(kept: PiecesOfPass | None = None) -> tuple[Tensor, Tensor]:
            teacher.to(device.tensor_to_device(torch.zeros(())).device)
            with rows_bar(f'Teacher {teacher.source}', progress_bar) as progress:
                return run_teacher(
                    teacher,
                    rows,
                    collate,
                    batch_size=batch_size,
                    context=lambda: get_precision_context(precision),
                    kept=kept,
                    progress=progress,
                )

        names = teacher.label_names
        if folder is None:
            return LogitCache(*run(), key=key, label_names=names)
        with taking_turns():
            return open_or_pass(folder, key, run, batch_size=batch_size, label_names=names)

    _check_accuracy(algorithm, teacher, data, order, logits_of)
    if folder is not None:
        algorithm.cache = logits_of(concatenate(data.train, data.unlabelled))
        if dist.get_global_rank() == 0:
            print(f'Teacher: logits of {len(algorithm.cache):,} training rows are in {folder}.')


def _take_answers(algorithm: KnowledgeDistillation, cache: LogitCache, data: TaskData) -> None:
    """Find the answers to this run's texts, and check them on the rows with labels."""
    rows = concatenate(data.train, data.unlabelled)
    check_numbers(cache.num_labels, len(data.label_names))
    table = of_rows(cache, torch.from_numpy(rows.example_ids), rows.rows())
    algorithm.cache = table
    same = algorithm.assume_same_labels
    order = label_order(table.label_names, data.label_names, assume_same_labels=same, names=('logit cache', 'task'))
    labels = torch.from_numpy(data.train.labels)
    logits = table.reordered(order).lookup(torch.from_numpy(data.train.example_ids))
    counts = data.counts['train']
    majority = max(counts[name] for name in data.label_names) / len(data.train)
    facts = {'fingerprint': cache.key.teacher, 'cached': True}
    _tell_accuracy(algorithm, cache.key.teacher, 'train', _accuracy(logits, labels), majority, facts)


def _check_accuracy(
    algorithm: KnowledgeDistillation, teacher: Teacher, data: TaskData, order: list[int] | None, logits_of: Any
) -> None:
    name, split = next(iter(data.eval_splits.items()))
    labels = torch.from_numpy(split.labels)
    logits = logits_of(split).reordered(order).lookup(torch.from_numpy(split.example_ids))
    stats = cmi_f.class_statistics(cmi_f.log_distribution(logits), labels, logits.shape[1])
    facts = {
        'fingerprint': teacher.fingerprint,
        'cmi_logits': float(cmi_f.conditional_mutual_information(stats)),
        'relative_cmi_logits': float(cmi_f.relative_cmi(stats)),
        'cached': algorithm.cache is not None,
        **_run_facts(teacher),
    }
    _tell_accuracy(algorithm, teacher.source, name, _accuracy(logits, labels), data.majority[name], facts)


def _tell_accuracy(
    algorithm: KnowledgeDistillation, source: str, split: str, accuracy: float, majority: float, facts: dict[str, Any]
) -> None:
    algorithm.teacher_facts = {'source': source, 'split': split, 'accuracy': accuracy, 'majority': majority, **facts}
    if dist.get_global_rank() == 0:
        print(f'Teacher {source}: accuracy {accuracy:.4f} on {split} (majority {majority:.4f}).')
    if accuracy <= majority and not algorithm.allow_weak_teacher:
        raise ValueError(
            f'The teacher {source} has accuracy {accuracy:.4f} on {split}, no better than always naming the '
            f'commonest class ({majority:.4f}): train it first, or pass allow_weak_teacher=True.'
        )


def _run_facts(teacher: Teacher) -> dict[str, float]:
    """What the run that trained the teacher measured of its features; nothing for a teacher from elsewhere."""
    results = load_results(teacher.source) if len(teacher.members) == 1 else None
    features = results.cmi.get('after', {}).get('features') if results is not None else None
    return {} if features is None else {'cmi_features': features.cmi, 'relative_cmi_features': features.relative_cmi}


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    known = labels >= 0
    return (logits.argmax(-1) == labels)[known].double().mean().item()
