"""Where a trained classifier is read from: a Hugging Face folder or hub name, a run folder, a Composer checkpoint."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from composer_cmi.errors import ConfigError
from composer_cmi.features import skip_unread_tokens
from composer_cmi.teachers.pretrained import first_sentence, read_pretrained
from composer_cmi.teachers.safe_load import read_checkpoint

__all__ = ['load_classifier', 'read_tokenizer']


def load_classifier(spec: str | Path, what: str = 'teacher') -> tuple[nn.Module, Any]:
    """Read a trained sequence classifier and its tokenizer (None where it is not stored); nothing stored is run.

    Args:
        spec: A folder with `config.json`; a finished run folder (`results.json` and `model/`); a Composer checkpoint
            (`.pt`, written from a `HuggingFaceModel`); otherwise a name on the Hugging Face hub.
        what: What it is called in a message.

    Raises:
        FileNotFoundError: `spec` looks like a path and nothing is there.
        ConfigError: What is there is not a trained classifier, or not wholly there.
    """
    path = Path(spec).expanduser()
    if path.is_file():
        model, tokenizer = _from_checkpoint(path)
    elif path.is_dir():
        model, tokenizer = _from_pretrained(str(_model_folder(path)), what)
    elif isinstance(spec, Path) or _looks_like_path(str(spec)):
        raise FileNotFoundError(f'There is no teacher at {spec}: no such file or folder.')
    else:
        model, tokenizer = _from_pretrained(str(spec), what)
    skip_unread_tokens(model)  # only logits are taken from it
    return model, tokenizer


def _looks_like_path(spec: str) -> bool:
    # A hub name is 'name' or 'owner/name'.
    return spec.startswith(('.', '/', '~')) or spec.count('/') > 1 or spec.endswith('.pt')


def _model_folder(path: Path) -> Path:
    if (path / 'adapter_config.json').is_file():
        raise ConfigError(f'{path} holds adapters only: merge them into the model and save that, then name its folder.')
    if (path / 'config.json').is_file():
        return path
    if (path / 'model' / 'config.json').is_file():
        if (path / 'config.yaml').is_file() and not (path / 'results.json').is_file():
            raise ConfigError(f'The run in {path} is not finished (it has no results.json): finish it first.')
        return path / 'model'
    if (path / 'config.yaml').is_file():
        raise ConfigError(f'The run in {path} has no exported model: finish it, or name one of its checkpoint files.')
    raise ConfigError(
        f'{path} is no teacher: it has neither config.json (a Hugging Face model) nor model/config.json (a run folder).'
    )


def _from_pretrained(name: str, what: str) -> tuple[nn.Module, Any]:
    try:
        model, new = read_pretrained(name)
    except ConfigError:
        raise
    except Exception as error:  # files cut, foreign or unreadable raise whatever their reader stumbles over
        raise ConfigError(f'Cannot read the {what} {name!r}: {first_sentence(error)}') from error
    if new:
        raise ConfigError(
            f'{name} is no trained classifier, weights are missing in it ({", ".join(new[:3])}): fine-tune it first, '
            'then distil.'
        )
    return model, read_tokenizer(name)


def read_tokenizer(name: str) -> Any:
    """The tokenizer of a folder or hub name, or None where it holds none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception:  # a folder without one raises whatever its model type's tokenizer stumbles over
        return None


def _from_checkpoint(path: Path) -> tuple[nn.Module, Any]:
    """Composer's own reader unpickles the file, imports the class and writes the files that stand in it."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    saved = read_checkpoint(path)
    try:
        weights, stored = saved['state']['model'], saved['state']['integrations']['huggingface']
        content, name = dict(stored['model']['config']['content']), str(stored['model']['config']['class'])
        files = dict(stored['tokenizer'])
        adapters = 'peft_config' in stored['model']
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f'{path} is no Composer checkpoint of a HuggingFaceModel ({type(error).__name__}): name a .pt file that '
            'Composer saved, or a Hugging Face folder.'
        ) from error
    if adapters:
        raise ConfigError(f'{path} holds adapters: merge them, save the model in a folder, and name that folder.')
    try:
        model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**content))
        if type(model).__name__ != name.rsplit('.', 1)[-1]:
            raise ValueError(f'it was saved from {name}, save that in a folder')
        model.to(next(value.dtype for value in weights.values() if value.is_floating_point()))
        model.load_state_dict({key.removeprefix('model.'): value for key, value in weights.items()}, strict=True)
    except Exception as error:
        raise ConfigError(f'{path} holds no classifier of its own config: {first_sentence(error)}') from error
    return model, _stored_tokenizer(path, files)


def _stored_tokenizer(path: Path, files: dict[str, Any]) -> Any:
    if not files:
        return None
    with tempfile.TemporaryDirectory() as folder:
        for name, file in files.items():
            extension, content = file['file_extension'], file['content']
            name = name if name.endswith(extension) else name + extension
            if Path(name).name != name or extension not in ('.json', '.txt', '.jinja', '.model'):
                raise ConfigError(f'{path} holds a tokenizer file {name!r}, which is no such name: it was not written.')
            if extension == '.json':
                content = json.dumps(content)
            elif extension == '.txt':
                content = ''.join(f'{line}\n' for line in content)
            Path(folder, name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_tokenizer(folder)
