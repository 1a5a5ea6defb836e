"""Does every GLUE task run every recipe, from its own files and from a `datasets` cache, with the official metrics?

Runs `yamls/bert_glue_{ce,mincmi,maxcmi_teacher}.yaml` and `yamls/distilbert_glue_kd.yaml` as they are, but for a tiny
random BERT and a few hundred rows a task. The scores mean nothing; that they are there, and equal for both sources, is
what is looked at.

    python benchmarks/glue_smoke.py [--tasks rte cola] [--glue FOLDER]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from composer_cmi.data.tasks import Task
from composer_cmi.registry import get_task
from composer_cmi.run.arms import run_all
from composer_cmi.run.config import load_config
from composer_cmi.run.config.schema import RunConfig
from composer_cmi.run.models import embedded_minilm
from composer_cmi.run.outputs.results import RunResults, load_results
from glue_rows import make_glue

ROOT = Path(__file__).parents[1]
TASKS = ('cola', 'mnli', 'mrpc', 'qnli', 'qqp', 'rte', 'sst2', 'wnli')
RECIPES = ('bert_glue_ce', 'bert_glue_mincmi', 'bert_glue_maxcmi_teacher', 'distilbert_glue_kd')
TEACHER = 'bert_glue_maxcmi_teacher'
SIZES = {'train': 256, 'dev': 97, 'test': 5}


def make_model(folder: Path) -> Path:
    """A random BERT of two layers with BERT's own vocabulary, MiniLM's; wide initial weights, to learn fast."""
    tokenizer = AutoTokenizer.from_pretrained(embedded_minilm(()))
    torch.manual_seed(0)
    sizes = {'hidden_size': 48, 'num_hidden_layers': 2, 'num_attention_heads': 4, 'intermediate_size': 96}
    config = BertConfig(
        vocab_size=len(tokenizer), initializer_range=0.1, hidden_dropout_prob=0, attention_probs_dropout_prob=0, **sizes
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run_recipe(
    recipe: str, task: Task, source: Path, folder: Path, overrides: dict[str, Any] | None = None
) -> RunResults:
    """One YAML file on one task; what results.json holds afterwards."""
    output = folder / 'runs' / source.name
    changes = {'task': task.name, 'data.path': source, 'output_dir': output, 'data.cache_dir': folder / 'tokens'}
    changes |= {'model.name_or_path': folder / 'model', 'data.max_length': 64, 'optimizer.lr': 3e-3}
    changes |= {'train.device': 'cpu', 'train.progress_bar': 'false', 'train.max_duration': '4ep'}
    changes['checkpoint.save_interval'] = '4ep'
    changes |= overrides or {}
    if recipe == 'distilbert_glue_kd':
        teacher = output / _load(TEACHER, changes).run_name
        kd = {'teacher': teacher, 'cache': folder / 'logits', 'allow_weak_teacher': 'true'}
        changes |= {f'algorithms.knowledge_distillation.{key}': value for key, value in kd.items()}
        changes['model.keep_layers'] = [0]
    config = _load(recipe, changes)
    with contextlib.redirect_stdout(io.StringIO()):
        run_all(config)
    results = load_results(config.folder)
    assert results is not None
    return results


def _load(recipe: str, changes: dict[str, Any]) -> RunConfig:
    return load_config(ROOT / 'yamls' / f'{recipe}.yaml', [f'{key}={value}' for key, value in changes.items()])


def problems(task: Task, results: RunResults) -> list[str]:
    """What results.json lacks of the task's official metrics; nothing if all is well."""
    found = []
    if list(results.scores) != list(task.eval_splits):
        found.append(f'scored on {list(results.scores)}, not on {list(task.eval_splits)}')
    if results.metric != task.metrics[0]:
        found.append(f'the primary metric is {results.metric!r}, not {task.metrics[0]!r}')
    for split, scores in results.scores.items():
        if list(scores) != [*task.metrics, 'nll', 'ece']:
            found.append(f'{split} has the metrics {list(scores)}, not {[*task.metrics, "nll", "ece"]}')
        found += [f'{split} {name} is {value}' for name, value in scores.items() if not math.isfinite(value)]
    found += [f'no CMI {when} training' for when in ('before', 'after') if when not in results.cmi]
    return found


def smoke(
    folder: Path,
    tasks: Sequence[str] = TASKS,
    recipes: Sequence[str] = RECIPES,
    sources: Sequence[str] = ('files', 'datasets'),
    real: Path | None = None,
    overrides: dict[str, Any] | None = None,
) -> tuple[dict[tuple[str, str, str], RunResults], list[str]]:
    """All results by (task, source, recipe), and whatever is wrong with them, a sentence each."""
    made = make_glue(folder, [get_task(name) for name in tasks], SIZES, real)
    make_model(folder / 'model')
    results, wrong = {}, []
    for name in tasks:
        for source in (path for path in made if path.name in sources):
            for recipe in recipes:
                started = time.perf_counter()
                one = run_recipe(recipe, get_task(name), source, folder, overrides)
                results[name, source.name, recipe] = one
                wrong += [f'{name}, {source.name}, {recipe}: {text}' for text in problems(get_task(name), one)]
                spent = time.perf_counter() - started
                print(f'{name} {source.name} {recipe}: {one.timing.steps} steps, {spent:.1f} s', file=sys.stderr)
    for (name, source, recipe), one in results.items():
        if not _same(one, results.get((name, 'files', recipe), one)):
            wrong.append(f'{name}, {recipe}: from {source} it is not what it is from files')
    return results, wrong


def _same(one: RunResults, other: RunResults) -> bool:
    """Of the same rows in the same order: to the last bit the same run."""
    return (one.data_fingerprint, one.scores, one.cmi) == (other.data_fingerprint, other.scores, other.cmi)


def table(results: dict[tuple[str, str, str], RunResults]) -> Table:
    """A line a task and split: its official metrics by recipe, and whether both sources gave the same."""
    recipes = list(dict.fromkeys(recipe for _, _, recipe in results))
    shown = Table(title='GLUE smoke: a tiny random BERT, a few steps; the scores mean nothing', title_justify='left')
    for heading in ('task', 'split', 'train', 'rows', 'official metrics', *recipes, 'sources'):
        shown.add_column(heading)
    for name in dict.fromkeys(name for name, _, _ in results):
        task = get_task(name)
        sources = list(dict.fromkeys(source for task_name, source, _ in results if task_name == name))
        first = {recipe: results[name, sources[0], recipe] for recipe in recipes}
        one = first[recipes[0]]
        equal = all(_same(results[name, source, recipe], first[recipe]) for source in sources for recipe in recipes)
        for split in one.scores:
            both = (' = ' if equal else ' != ').join(sources)
            cells = [' '.join(f'{run.scores[split][m]:.3f}' for m in task.metrics) for run in first.values()]
            rows = [str(one.num_examples['train']), str(one.num_examples[split])]
            shown.add_row(name, split, *rows, ' '.join(task.metrics), *cells, both)
    return shown


def main() -> None:
    """Print the table; exit 1 where something is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--tasks', nargs='+', default=TASKS, choices=TASKS)
    parser.add_argument('--glue', type=Path, default=ROOT.parent / 'shared' / 'data' / 'glue', help='real GLUE files')
    arguments = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        results, wrong = smoke(Path(folder), arguments.tasks, real=arguments.glue)
    Console(file=sys.stdout, width=180).print(table(results))
    real = [name for name in ('CoLA', 'RTE') if (arguments.glue / name).is_dir()]
    print(f'Real rows: {", ".join(real) or "none"}; the others are made of BBC News sentences.')
    print(f'{len(results)} runs in {time.perf_counter() - started:.0f} s.', *wrong, sep='\n')
    sys.exit(1 if wrong else 0)


if __name__ == '__main__':
    main()
