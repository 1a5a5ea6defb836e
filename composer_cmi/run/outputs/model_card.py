"""The ``README.md`` beside an exported model: what it was trained on, how, and what it scored."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from composer_cmi.data.glue import GLUE_HUB
from composer_cmi.data.tasks import get_task
from composer_cmi.run.calibrate.reliability import describe
from composer_cmi.run.models import EMBEDDED_HUB_NAME, embedded_minilm
from composer_cmi.run.outputs.files import write_text
from composer_cmi.run.outputs.results import RunResults
from composer_cmi.text import for_markdown, for_markdown_code, visible

__all__ = ['card_data', 'model_card', 'write_model_card']

CITATION = """\
@misc{sivakaran2025leveraging,
  title = {Leveraging Conditional Mutual Information to Improve Large Language Model Fine-Tuning For Classification},
  author = {Thanushon Sivakaran and En-Hui Yang},
  year = {2025},
  eprint = {2502.11258},
  archivePrefix = {arXiv}
}"""


_OURS = 'composer-cmi'
# All that may be there: what is not listed the library puts in any order.
_ORDER = ['library_name', 'pipeline_tag', 'tags', 'license', 'license_name', 'license_link', 'language', 'base_model']
_ORDER += ['datasets', 'metrics', 'model_name', 'eval_results']


def write_model_card(path: str | Path, results: RunResults, label_names: Sequence[str]) -> None:
    """Write :func:`model_card` to a file."""
    write_text(path, model_card(results, label_names))


def model_card(results: RunResults, label_names: Sequence[str]) -> str:
    """Markdown with the front matter that the Hugging Face Hub reads."""
    config, train = results.config, results.config['train']
    algorithms = config['algorithms'] or {'none': {}}
    recipe = {
        'model': config['model']['name_or_path'],
        'algorithms': '; '.join(f'{name} {_arguments(kwargs)}'.strip() for name, kwargs in algorithms.items()),
        'duration': f'{train["max_duration"]} ({results.timing.steps} steps of {train["batch_size"]} rows)',
        'learning rate': f'{config["optimizer"]["lr"]:g}, warm-up {config["scheduler"]["warmup"]}, then linear decay',
        'seed': results.seed,
        'training rows': results.num_examples['train'],
        'rows without labels': results.num_examples.get('unlabelled', 0),
        'maximum length': config['data']['max_length'],
    }
    recipe = {name: for_markdown(value, start=False) for name, value in recipe.items()}
    recipe['data fingerprint'] = for_markdown_code(results.data_fingerprint)
    parts = [
        f'---\n{card_data(results).to_yaml(original_order=_ORDER)}\n---',
        f'# {for_markdown(results.run_name)}',
        f'A text classifier for the task {for_markdown_code(results.task)}, fine-tuned with composer-cmi. '
        f'Classes: {", ".join(map(for_markdown_code, label_names))}.',
        '## Use\n\n```python\nfrom transformers import pipeline\n\n'
        "classify = pipeline('text-classification', model='path/to/this/folder')\n"
        f"print(classify('...', truncation=True))  # cut to {config['data']['max_length']} tokens, as in training\n```",
        '## Scores\n\nOne run, one seed; shares in [0, 1], NLL in nats.\n\n' + _scores(results),
        *([f'## Calibration\n\n{_calibration(results)}'] if results.calibration else []),
        '## Information\n\nOn the first evaluation split, in nats. CMI = I(X;Z|Y) is the spread of the clusters, '
        'rho = CMI / I(X;Z).\n\n' + _information(results),
        '## Recipe\n\n' + '\n'.join(f'* {name}: {value}' for name, value in recipe.items()),
        *(['## Notes\n\n' + '\n'.join(f'* {for_markdown(note)}' for note in results.notes)] if results.notes else []),
        *([f'## Teacher\n\n{for_markdown(_arguments(results.teacher))}'] if results.teacher else []),
        '## Versions\n\n' + for_markdown(', '.join(f'{name} {version}' for name, version in results.versions.items())),
        f'## Citation\n\n```bibtex\n{CITATION}\n```',
    ]
    return '\n\n'.join(parts) + '\n'


def card_data(results: RunResults) -> ModelCardData:
    """What the Hugging Face Hub reads of a card; licence and language are the base model's, where its card has them."""
    hub, config = _hub_set(results.task), results.config
    name = config['model']['name_or_path']
    base = _base_card(name)
    own = Path(config['data'].get('path') or results.task).name
    scores = [
        EvalResult(
            task_type='text-classification',
            task_name='Text Classification',
            dataset_type=hub[0] if hub else visible(results.task),
            dataset_name=hub[1] if hub else visible(own),
            dataset_config=hub[1] if hub else None,
            dataset_split=visible(split),
            metric_type=metric,
            metric_value=value,
        )
        for split, values in results.scores.items()
        for metric, value in values.items()
    ]
    return ModelCardData(
        library_name='transformers',
        pipeline_tag='text-classification',
        tags=[_OURS, 'conditional-mutual-information', results.task],
        license=base.get('license'),
        license_name=base.get('license_name'),
        license_link=base.get('license_link'),
        language=base.get('language') or ('en' if hub and hub[0] == GLUE_HUB else None),
        base_model=base.get('base_model'),
        datasets=[hub[0]] if hub else None,
        metrics=[results.metric],
        model_name=visible(results.run_name),
        eval_results=scores,
    )


def _hub_set(task: str) -> tuple[str, str] | None:
    """Repository and configuration of a task's data on the Hub."""
    try:
        return get_task(task).hub
    except ValueError:  # of a plugin that is not here
        return None


def _base_card(name: str) -> dict[str, Any]:
    """What is known of the model that training started from: a folder's own card, a hub name by itself."""
    if name == 'embedded:minilm':
        return {**_front_matter(embedded_minilm(())), 'base_model': EMBEDDED_HUB_NAME}
    path = Path(name)
    if path.is_dir():
        found = _front_matter(path if (path / 'config.json').is_file() else path / 'model')
        # Of a run of ours what it started from is known; where a folder from elsewhere stands on the Hub is not.
        return found if _OURS in found.get('tags', ()) else {**found, 'base_model': None}
    return {'base_model': name} if re.fullmatch(r'\w[\w.-]*(/[\w.-]+)?', name, re.ASCII) else {}


def _front_matter(folder: Path) -> dict[str, Any]:
    if not (folder / 'README.md').is_file():
        return {}  # the library would ask the Hub
    try:
        found = ModelCard.load(folder / 'README.md', ignore_metadata_errors=True).data.to_dict()
    except Exception:  # whatever a stranger's file holds
        return {}
    kept = ('license', 'license_name', 'license_link', 'language', 'base_model', 'tags')
    return {key: value for key, value in found.items() if key in kept and _is_text(value)}


def _is_text(value: Any) -> bool:
    return all(isinstance(each, str) and each.isprintable() for each in (value if isinstance(value, list) else [value]))


def _arguments(kwargs: Any) -> str:
    return ', '.join(f'{key}={value}' for key, value in (kwargs or {}).items())


def _scores(results: RunResults) -> str:
    names = list(dict.fromkeys(name for scores in results.scores.values() for name in scores))
    rows = [['split', 'rows', *names, 'majority class']]
    for split, scores in results.scores.items():
        values = [f'{scores[name]:.4f}' if name in scores else '' for name in names]
        majority = results.majority.get(split)
        rows.append([split, str(results.num_examples[split]), *values, '' if majority is None else f'{majority:.4f}'])
    return _table(rows)


def _calibration(results: RunResults) -> str:
    return '\n'.join(f'* {for_markdown(line)}' for line in describe(results.calibration)) if results.calibration else ''


def _information(results: RunResults) -> str:
    rows = [['', 'space', 'CMI', 'I(X;Z)', 'rho']]
    for when, spaces in results.cmi.items():
        for space, values in spaces.items():
            numbers = (values.cmi, values.mutual_information, values.relative_cmi)
            rows.append([f'{when} training', space, *(f'{number:.4g}' for number in numbers)])
    return _table(rows)


def _table(rows: list[list[str]]) -> str:
    lines = ['| ' + ' | '.join(for_markdown(cell, start=False) for cell in row) + ' |' for row in rows]
    lines.insert(1, '|' + '---|' * len(rows[0]))
    return '\n'.join(lines)
