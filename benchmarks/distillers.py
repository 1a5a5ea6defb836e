"""What people would distil with instead, one program each: `python distillers.py NAME JOB.json`.

    trainer        transformers.Trainer with a compute_loss that asks the teacher, padded to the longest row of a batch
    txtai          txtai's HFTrainer(teacher=...)
    torchdistill   its DistillationBox and KDLoss over our batches
    plain-live     a loop of one's own over our batches, the teacher in each step
    plain-cached   the same with the teacher's logits of all rows computed before

All add `(1 - alpha) CE + alpha tau^2 KL`; what `contenders.py` says holds here too.
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

from contenders import autocast, clock, finish, load, optimizer_of, tokens, training_arguments
from job import Job


def mixed(student: Any, teacher: Any, labels: Any, job: Job) -> Any:
    """The loss of a batch from logits `[N, C]`."""
    import torch.nn.functional as F

    student, tau = student.float(), job.temperature
    soft = F.kl_div((student / tau).log_softmax(-1), (teacher.float() / tau).softmax(-1), reduction='batchmean')
    return (1 - job.alpha) * F.cross_entropy(student, labels) + job.alpha * tau**2 * soft


def load_teacher(job: Job) -> Any:
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(job.teacher).to(job.device).eval().requires_grad_(False)


def plain(job: Job, folder: str, cached: bool = False) -> None:
    import torch

    stamps = job.stamps
    (model, tokenizer), teacher = load(job), load_teacher(job)
    rows = tokens(job, 'train', tokenizer)

    def batch_of(numbers: list[int]) -> Any:
        return tokenizer.pad([rows[i] for i in numbers], return_tensors='pt').to(job.device)

    @torch.no_grad()
    def ask(batch: Any) -> Any:
        with autocast(job):
            return teacher(**{name: value for name, value in batch.items() if name != 'labels'}).logits.float()

    table = torch.empty(0)
    if cached:
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]['input_ids']))
        table = torch.empty(len(rows), len(job.label_names), device=job.device)
        for start in range(0, len(order), 64):
            numbers = order[start : start + 64]
            table[numbers] = ask(batch_of(numbers))
    optimizer, schedule = optimizer_of(model, job)
    model.train()
    stamps.begin()
    for numbers in job.batches:
        batch = batch_of(numbers)
        taught = table[numbers] if cached else ask(batch)
        labels = batch.pop('labels')
        with autocast(job):
            logits = model(**batch).logits
        mixed(logits, taught, labels, job).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    stamps.end()
    finish(model, tokenizer, job, folder, stamps)


def trainer(job: Job, folder: str) -> None:
    import torch
    from datasets import Dataset
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    stamps = job.stamps
    (model, tokenizer), teacher = load(job), load_teacher(job)

    class DistillingTrainer(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            labels = inputs.pop('labels')
            outputs = model(**inputs)
            with torch.no_grad():
                taught = teacher(**inputs).logits
            loss = mixed(outputs.logits, taught, labels, job)
            return (loss, outputs) if return_outputs else loss

    texts, labels = job.rows('train')
    rows = Dataset.from_dict({'text': texts, 'label': labels}).map(
        lambda rows: tokenizer(rows['text'], max_length=job.max_length, truncation=True),
        batched=True,
        remove_columns=['text'],
    )
    worker = DistillingTrainer(
        model=model,
        args=TrainingArguments(**training_arguments(job, folder)),
        train_dataset=rows,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[clock(stamps)],
    )
    worker.train()
    finish(model, tokenizer, job, folder, stamps)


def txtai(job: Job, folder: str) -> None:
    from txtai.pipeline.train import hftrainer  # pyright: ignore[reportMissingImports]

    stamps = job.stamps
    original = hftrainer.Trainer.train

    def train(self: Any, *args: Any, **kwargs: Any) -> Any:  # it takes no callbacks
        self.add_callback(clock(stamps))
        return original(self, *args, **kwargs)

    hftrainer.Trainer.train = train
    texts, labels = job.rows('train')
    model, tokenizer = hftrainer.HFTrainer()(
        load(job),
        [{'text': text, 'label': label} for text, label in zip(texts, labels, strict=True)],
        columns=('text', 'label'),
        maxlength=job.max_length,
        teacher=job.teacher,
        distillation=(job.temperature, job.alpha),
        **training_arguments(job, folder),
    )
    finish(model, tokenizer, job, folder, stamps)


def torchdistill(job: Job, folder: str) -> None:
    import torch
    from torchdistill.core.distillation import get_distillation_box  # pyright: ignore[reportMissingImports]
    from torchdistill.core.interfaces.registry import (  # pyright: ignore[reportMissingImports]
        register_forward_proc_func,
    )

    @register_forward_proc_func
    def forward_to_logits(model: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        return model(**batch).logits

    stamps = job.stamps
    (model, tokenizer), teacher = load(job), load_teacher(job)
    rows = tokens(job, 'train', tokenizer)
    io = {f'{who}_module_path': '.' for who in ('student', 'teacher')}
    io |= {f'{who}_module_io': 'output' for who in ('student', 'teacher')}
    loss = {'key': 'KDLoss', 'kwargs': {**io, 'temperature': job.temperature, 'alpha': 1 - job.alpha}}
    settings = {
        'num_epochs': 1,
        'teacher': {'forward_proc': 'forward_to_logits', 'requires_grad': False},
        'student': {'forward_proc': 'forward_to_logits', 'requires_grad': True},
        'optimizer': {'key': 'AdamW', 'kwargs': {'lr': job.lr, 'weight_decay': 0.01, 'fused': True}},
        'scheduler': {'key': 'LinearLR', 'kwargs': {'start_factor': 1.0, 'end_factor': 0.02, 'total_iters': job.steps},
                      'scheduling_step': 1},
        'criterion': {'key': 'WeightedSumLoss', 'kwargs': {'sub_terms': {'kd': {'criterion': loss, 'weight': 1.0}}}},
    }  # fmt: skip
    box = get_distillation_box(teacher, model, {}, settings, torch.device(job.device), None, False, 1)
    box.pre_epoch_process(epoch=0)
    stamps.begin()
    for numbers in job.batches:
        batch = tokenizer.pad([rows[i] for i in numbers], return_tensors='pt').to(job.device)
        labels = batch.pop('labels')
        with autocast(job):
            loss = box.forward_process(batch, targets=labels, supp_dict=None)
        box.post_forward_process(loss=loss)
    stamps.end()
    finish(model, tokenizer, job, folder, stamps)


DISTILLERS = {
    'trainer': trainer,
    'txtai': txtai,
    'torchdistill': torchdistill,
    'plain-live': plain,
    'plain-cached': lambda job, folder: plain(job, folder, cached=True),
}

if __name__ == '__main__':
    with tempfile.TemporaryDirectory() as somewhere:
        DISTILLERS[sys.argv[1]](Job.read(sys.argv[2]), somewhere)
