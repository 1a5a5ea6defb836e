"""The ``README.md`` beside an exported model: what it was trained on, how, and what it scored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from composer_cmi.run.calibrate.reliability import describe
from composer_cmi.run.outputs.files import write_text
from composer_cmi.run.outputs.results import RunResults
from composer_cmi.text import for_markdown, for_markdown_code

__all__ = ['model_card', 'write_model_card']

CITATION = """\
@misc{sivakaran2025leveraging,
  title = {Leveraging Conditional Mutual Information to Improve Large Language Model Fine-Tuning For Classification},
  author = {Thanushon Sivakaran and En-Hui Yang},
  year = {2025},
  eprint = {2502.11258},
  archivePrefix = {arXiv}
}"""


def write_model_card(path: str | Path, results: RunResults, label_names: Sequence[str]) -> None:
    """Write :func:`model_card` to a file."""
    write_text(path, model_card(results, label_names))


def model_card(results: RunResults, label_names: Sequence[str]) -> str:
    """Markdown with the front matter that the Hugging Face Hub reads."""
    config, train = results.config, results.config['train']
    front = {
        'library_name': 'transformers',
        'pipeline_tag': 'text-classification',
        'tags': ['composer-cmi', 'conditional-mutual-information', results.task],
        'metrics': [results.metric],
    }
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
        '---\n' + yaml.safe_dump(front, sort_keys=False) + '---',
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
