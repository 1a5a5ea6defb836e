"""The exported model of a run, by the run's folder or by its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from composer_cmi.errors import ConfigError

__all__ = ['exported_folder', 'load_exported', 'run_settings']


def exported_folder(run: str | Path) -> Path:
    """The folder that `transformers` loads: `model/` of a finished run, or `run` itself.

    Raises:
        ConfigError: There is neither.
    """
    path = Path(run).expanduser()
    if (path / 'config.json').is_file():
        return path
    if (path / 'model' / 'config.json').is_file() and (path / 'results.json').is_file():
        return path / 'model'
    if not path.is_dir():
        raise ConfigError(f'There is no folder {str(path)!r}: name that of a finished run, or of an exported model.')
    arms = sorted(each.parent.name for each in path.glob('*/results.json'))
    if arms:
        why = f'its arms are runs, name one of them: {", ".join(arms)}'
    elif (path / 'config.yaml').is_file():
        why = 'the run in it is not finished, or its model was deleted'
    else:
        why = 'it has neither config.json nor model/config.json'
    raise ConfigError(f'{path} holds no exported model: {why}.')


def run_settings(folder: Path) -> dict[str, Any]:
    """The settings of the run that exported a model, as its folder has them; empty for a model from elsewhere."""
    import yaml

    try:
        settings = yaml.safe_load((folder.parent / 'config.yaml').read_text(encoding='utf-8'))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return settings if folder.name == 'model' and isinstance(settings, dict) else {}


def load_exported(folder: Path) -> Any:
    """A `Teacher` of one model: frozen, in eval mode, with its tokenizer.

    Raises:
        ConfigError: It is no single-label classifier of texts, or not whole.
    """
    from composer_cmi.teachers.loading import load_classifier
    from composer_cmi.teachers.teacher import Member, Teacher

    module, tokenizer = load_classifier(folder, 'model')
    if tokenizer is None:
        raise ConfigError(f'{folder} holds no tokenizer: save the one that the model was trained with beside it.')
    try:
        return Teacher([Member(module, tokenizer, str(folder))])
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(
            f'{error}'.replace('so there is nothing to distil', 'so it gives no probabilities')
        ) from error
