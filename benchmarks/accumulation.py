"""How large the gradient of a step is at accumulation 1, 2, 4, 8 over that at 1: ours, stock, by hand, txtai, Composer.

    python benchmarks/accumulation.py [--ranks 1 2] [--out benchmarks/accumulation.csv]

22 rows in steps of 16: the first step is full, the last has 6 rows. The learning rate is 0, so that both are measured
at the same weights; 1 is right everywhere. Each trainer is compared with itself at accumulation 1 on one rank:

    ours             CMITrainer: cross-entropy, CMI against fixed centroids, distillation
    ours, CE         CMITrainer without terms
    stock CE         transformers.Trainer
    naive KD         transformers.Trainer with the compute_loss that tutorials show: means over the microbatch
    txtai KD         what txtai's HFTrainer(teacher=...) trains with, where txtai is installed
    Composer, ours   the same terms in Composer; "accumulation" is the number of microbatches; one rank
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

from composer_cmi.hf import CMITrainer

ROWS, STEP, ACCUMULATIONS = 22, 16, (1, 2, 4, 8)
WINDOWS = ('full', 'short')
CMI: dict[str, Any] = {'weight': 0.05, 'start': '0ba', 'centroids': 'fixed'}
KD: dict[str, Any] = {'alpha': 0.5, 'temperature': 2.0, 'assume_same_labels': True}


def bert(seed: int) -> Any:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=24, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_labels=3,
        max_position_embeddings=16, initializer_range=0.2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def rows() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (ROWS,), generator=generator)
    tokens = 5 + labels[:, None] * 5 + torch.randint(5, (ROWS, 8), generator=generator)
    return [
        {'input_ids': ids, 'attention_mask': torch.ones_like(ids), 'labels': label}
        for ids, label in zip(tokens, labels, strict=True)
    ]


def gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])


class Record(TrainerCallback):
    """The gradient of each step, as the optimizer finds it."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append(gradient(kwargs['model']))


def in_transformers(cls: Any, **terms: Any) -> Callable[[int], list[Tensor]]:
    def run(accumulation: int) -> list[Tensor]:
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder, num_train_epochs=1, learning_rate=0.0, optim='sgd', max_grad_norm=0.0, data_seed=1,
                per_device_train_batch_size=max(1, STEP // accumulation // ranks()), save_strategy='no', report_to=[],
                gradient_accumulation_steps=accumulation, logging_strategy='no', disable_tqdm=True, use_cpu=True,
                dataloader_pin_memory=False,
            )  # fmt: skip
            record = Record()
            cls(bert(1), arguments, train_dataset=rows(), callbacks=[record], **terms).train()
        return record.steps

    return run


class NaiveKD(Trainer):
    """As tutorials show it."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(**inputs)
        with torch.no_grad():
            taught = TEACHER(**inputs).logits
        soft = F.kl_div((outputs.logits / 2).log_softmax(-1), (taught / 2).softmax(-1), reduction='batchmean')
        loss = 0.5 * outputs.loss + 0.5 * 4 * soft
        return (loss, outputs) if return_outputs else loss


def in_composer(accumulation: int) -> list[Tensor]:
    from composer import Callback
    from composer import Trainer as ComposerTrainer
    from composer.models import HuggingFaceModel

    from composer_cmi import CMIRegularization, KnowledgeDistillation

    class Recorder(Callback):
        steps: list[Tensor] = []

        def after_train_batch(self, state: Any, logger: Any) -> None:
            self.steps.append(gradient(state.model))

    model, recorder = bert(1), Recorder()
    recorder.steps = []
    trainer = ComposerTrainer(
        model=HuggingFaceModel(model, use_logits=True),
        train_dataloader=torch.utils.data.DataLoader(rows(), batch_size=STEP),  # pyright: ignore
        algorithms=[CMIRegularization(**CMI), KnowledgeDistillation(TEACHER, **KD)],
        optimizers=torch.optim.SGD(model.parameters(), lr=0.0),
        device_train_microbatch_size=STEP // accumulation,
        max_duration='1ep', device='cpu', precision='fp32', callbacks=[recorder], progress_bar=False,
    )  # fmt: skip
    trainer.fit()
    trainer.close()
    return recorder.steps


def contenders() -> Iterator[tuple[str, Callable[[int], list[Tensor]]]]:
    yield 'ours', in_transformers(CMITrainer, cmi_regularization=CMI, knowledge_distillation={'teacher': TEACHER, **KD})
    yield 'ours, CE', in_transformers(CMITrainer)
    yield 'stock CE', in_transformers(Trainer)
    yield 'naive KD', in_transformers(NaiveKD)
    try:
        from txtai.pipeline.train.hftrainer import DistillationTrainer  # pyright: ignore

        yield 'txtai KD', in_transformers(DistillationTrainer, teacher=TEACHER, distillation=(2.0, 0.5))
    except ImportError as error:
        print(f'txtai KD skipped: {error}')
    if ranks() == 1:
        yield 'Composer, ours', in_composer


def ranks() -> int:
    return int(os.environ.get('WORLD_SIZE', 1))


def measure(references: Path, out: Path, command: str) -> None:
    """Measure on this process's ranks; the first process writes. On one rank the references are made."""
    known = torch.load(references) if ranks() > 1 else {}
    lines = []
    for name, run in contenders():
        for accumulation in ACCUMULATIONS:
            if accumulation * ranks() > STEP:
                continue
            steps = run(accumulation)
            known.setdefault(name, steps)
            for window, found, right in zip(WINDOWS, steps, known[name], strict=True):
                lines.append(
                    {
                        'trainer': name,
                        'ranks': ranks(),
                        'accumulation': accumulation,
                        'step': window,
                        'ratio': f'{float(found @ right / (right @ right)):.4f}',
                        'largest_error': f'{float((found - right).abs().max() / right.abs().max()):.1e}',
                        **{package: installed(package) for package in ('torch', 'transformers', 'accelerate', 'txtai')},
                        'composer': installed('mosaicml') if 'Composer' in name else '',
                        'date': f'{datetime.date.today():%Y-%m-%d}',
                        'command': command,
                    }
                )
    if int(os.environ.get('RANK', 0)) == 0:
        if ranks() == 1:
            torch.save(known, references)
        write(lines, out)
    if dist.is_initialized():
        dist.destroy_process_group()


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ''


def write(lines: list[dict[str, Any]], out: Path) -> None:
    """Print the table; replace the rows of the same versions and ranks in the file."""
    print(f'transformers {lines[0]["transformers"]}, torch {lines[0]["torch"]}, ranks {ranks()}')
    print('| trainer | step | ' + ' | '.join(f'accumulation {number}' for number in ACCUMULATIONS) + ' |')
    print('|---|---|' + '---|' * len(ACCUMULATIONS))
    for name in dict.fromkeys(line['trainer'] for line in lines):
        for window in WINDOWS:
            own = [line['ratio'] for line in lines if (line['trainer'], line['step']) == (name, window)]
            print(f'| {name} | {window} | ' + ' | '.join(own) + ' |')
    kept = []
    if out.exists():
        with out.open(newline='') as file:
            same = {(line['transformers'], line['torch'], str(line['ranks'])) for line in lines}
            kept = [
                row for row in csv.DictReader(file) if (row['transformers'], row['torch'], row['ranks']) not in same
            ]
    aside = out.with_suffix('.tmp')
    with aside.open('w', newline='') as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows([*kept, *lines])
    aside.replace(out)


def main() -> None:
    """Measure on one rank, then on each number of ranks asked for, or be one of those ranks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--ranks', type=int, nargs='+', default=[1])
    parser.add_argument('--out', type=Path, default=Path(__file__).with_suffix('.csv'))
    parser.add_argument('--references', type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    command = f'benchmarks/accumulation.py --ranks {" ".join(map(str, arguments.ranks))}'
    if 'RANK' in os.environ:
        measure(arguments.references, arguments.out, command)
        return
    with tempfile.TemporaryDirectory() as folder:
        references = Path(folder, 'references.pt')
        measure(references, arguments.out, command)
        for number in set(arguments.ranks) - {1}:
            launcher = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(number)]
            own = ['--references', str(references), '--out', str(arguments.out), '--ranks', *map(str, arguments.ranks)]
            subprocess.run([*launcher, __file__, *own], check=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})


if __name__ == '__main__':
    warnings.filterwarnings('ignore')
    TEACHER = bert(9).requires_grad_(False).eval()
    main()
