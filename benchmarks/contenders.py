"""What people would run instead of the main job, one program each: `python contenders.py NAME JOB.json`.

    trainer           transformers.Trainer as run_glue does it: every row padded to the maximal length
    trainer-dynamic   the same with a collator that pads to the longest row of a batch
    plain             a loop of one's own over our batches
    composer          Composer without us over our batches

Each tokenises, trains, scores dev and saves the model. Optimizer and schedule are those of our runs: AdamW, linear
warm-up over a tenth of the steps, then linear decay. Imports stand where a program of its own would have them.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from typing import Any

from job import Job


def load(job: Job) -> tuple[Any, Any]:
    """Model and tokenizer."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(job.seed)
    names = dict(enumerate(job.label_names))
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    classes = {'num_labels': len(names), 'id2label': names, 'label2id': {name: i for i, name in names.items()}}
    # A head for another task is made anew, as in run_glue.
    model = AutoModelForSequenceClassification.from_pretrained(job.model, **classes, ignore_mismatched_sizes=True)
    if job.keep_layers is not None:
        encoder = model.bert.encoder
        encoder.layer = torch.nn.ModuleList([encoder.layer[i] for i in job.keep_layers])
        model.config.num_hidden_layers = len(job.keep_layers)
    return model.to(job.device), tokenizer


def optimizer_of(model: Any, job: Job) -> tuple[Any, Any]:
    """AdamW and its schedule."""
    import torch
    from transformers import get_linear_schedule_with_warmup

    decayed = [p for name, p in model.named_parameters() if p.ndim > 1]
    others = [p for name, p in model.named_parameters() if p.ndim <= 1]
    groups = [{'params': decayed, 'weight_decay': 0.01}, {'params': others, 'weight_decay': 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=job.lr, eps=1e-6, fused=True)
    return optimizer, get_linear_schedule_with_warmup(optimizer, job.steps // 10, job.steps)


def autocast(job: Job) -> Any:
    import torch

    return torch.autocast(job.device, torch.bfloat16) if job.precision == 'bf16' else contextlib.nullcontext()


def tokens(job: Job, split: str, tokenizer: Any) -> list[dict[str, Any]]:
    """Rows as the tokenizer's own collator takes them."""
    texts, labels = job.rows(split)
    ids = tokenizer(texts, truncation=True, max_length=job.max_length)['input_ids']
    return [{'input_ids': each, 'labels': label} for each, label in zip(ids, labels, strict=True)]


def finish(model: Any, tokenizer: Any, job: Job, folder: str, stamps: Any) -> None:
    """Score dev in batches of like length, and save."""
    import torch

    rows = sorted(tokens(job, 'dev', tokenizer), key=lambda row: len(row['input_ids']))
    right = 0
    model.eval()
    for start in range(0, len(rows), 128):
        batch = tokenizer.pad(rows[start : start + 128], return_tensors='pt').to(job.device)
        labels = batch.pop('labels')
        with torch.no_grad(), autocast(job):
            right += int((model(**batch).logits.argmax(-1) == labels).sum())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    stamps.write(accuracy=right / len(rows))


def plain(job: Job, folder: str) -> None:
    stamps = job.stamps
    model, tokenizer = load(job)
    rows = tokens(job, 'train', tokenizer)
    optimizer, schedule = optimizer_of(model, job)
    model.train()
    stamps.begin()
    for numbers in job.batches:
        batch = tokenizer.pad([rows[i] for i in numbers], return_tensors='pt').to(job.device)
        with autocast(job):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    stamps.end()
    finish(model, tokenizer, job, folder, stamps)


def composer(job: Job, folder: str) -> None:
    from composer import Callback, Trainer
    from composer.models import HuggingFaceModel
    from torch.utils.data import DataLoader

    stamps = job.stamps
    model, tokenizer = load(job)
    rows = tokens(job, 'train', tokenizer)
    optimizer, schedule = optimizer_of(model, job)

    class Clock(Callback):
        def epoch_start(self, state: Any, logger: Any) -> None:
            stamps.begin()

        def fit_end(self, state: Any, logger: Any) -> None:
            stamps.end()

    def collate(batch: list[Any]) -> Any:
        return tokenizer.pad(batch, return_tensors='pt')

    trainer = Trainer(
        model=HuggingFaceModel(model, tokenizer, use_logits=True),
        train_dataloader=DataLoader(rows, batch_sampler=job.batches, collate_fn=collate),  # pyright: ignore
        optimizers=optimizer,
        schedulers=schedule,
        step_schedulers_every_batch=True,
        device_train_microbatch_size=job.batch_size,
        max_duration=f'{job.steps}ba',
        device='gpu' if job.device == 'cuda' else 'cpu',
        precision='amp_bf16' if job.precision == 'bf16' else 'fp32',
        callbacks=[Clock()],
        progress_bar=False,
        seed=job.seed,
    )
    trainer.fit()
    trainer.close()
    finish(model, tokenizer, job, folder, stamps)


def training_arguments(job: Job, folder: str) -> dict[str, Any]:
    """Of transformers' Trainer: as run_glue has them, what is not the job's."""
    return {
        'output_dir': folder,
        'per_device_train_batch_size': job.batch_size,
        'max_steps': job.steps,
        'learning_rate': job.lr,
        'weight_decay': 0.01,
        'warmup_steps': job.steps // 10,
        'seed': job.seed,
        'bf16': job.precision == 'bf16',
        'use_cpu': job.device == 'cpu',
        'save_strategy': 'no',
        'report_to': [],
        'disable_tqdm': True,
    }


def clock(stamps: Any) -> Any:
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            stamps.begin()

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            stamps.end()

    return Clock()


def trainer(job: Job, folder: str, dynamic: bool = False) -> None:
    from datasets import Dataset
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments, default_data_collator

    stamps = job.stamps
    model, tokenizer = load(job)

    def encode(rows: Any) -> Any:
        padding = False if dynamic else 'max_length'
        return tokenizer(rows['text'], padding=padding, max_length=job.max_length, truncation=True)

    splits = {}
    for split in ('train', 'dev'):
        texts, labels = job.rows(split)
        rows = Dataset.from_dict({'text': texts, 'label': labels})
        splits[split] = rows.map(encode, batched=True, remove_columns=['text'])
    worker = Trainer(
        model=model,
        args=TrainingArguments(**training_arguments(job, folder)),
        train_dataset=splits['train'],
        eval_dataset=splits['dev'],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer) if dynamic else default_data_collator,
        compute_metrics=lambda found: {'accuracy': float((found[0].argmax(-1) == found[1]).mean())},
        callbacks=[clock(stamps)],
    )
    worker.train()
    scores = worker.evaluate()
    worker.save_model()
    stamps.write(accuracy=scores['eval_accuracy'])


CONTENDERS = {
    'trainer': trainer,
    'trainer-dynamic': lambda job, folder: trainer(job, folder, dynamic=True),
    'plain': plain,
    'composer': composer,
}

if __name__ == '__main__':
    name, path, *folder = sys.argv[1:]
    with tempfile.TemporaryDirectory() as somewhere:
        CONTENDERS[name](Job.read(path), folder[0] if folder else somewhere)
