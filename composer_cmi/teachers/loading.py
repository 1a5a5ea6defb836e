"""Where a trained classifier is read from: a Hugging Face folder or hub name, a run folder, a Composer checkpoint."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from torch import nn

__all__ = ['load_classifier']


def load_classifier(spec: str | Path) -> tuple[nn.Module, Any]:
    """Read a trained sequence classifier and its tokenizer (None where it is not stored).

    Args:
        spec: A folder with `config.json`; a finished run folder (`results.json` and `model/`); a Composer checkpoint
            (`.pt`, written from a `HuggingFaceModel`); otherwise a name on the Hugging Face hub.

    Raises:
        FileNotFoundError: `spec` looks like a path and nothing is there.
        ValueError: What is there is not a trained classifier.
    """
    path = Path(spec).expanduser()
    if path.is_file():
        return _from_checkpoint(path)
    if path.is_dir():
        return _from_pretrained(str(_model_folder(path)))
    if isinstance(spec, Path) or _looks_like_path(str(spec)):
        raise FileNotFoundError(f'There is no teacher at {spec}: no such file or folder.')
    return _from_pretrained(str(spec))


def _looks_like_path(spec: str) -> bool:
    # A hub name is 'name' or 'owner/name'.
    return spec.startswith(('.', '/', '~')) or spec.count('/') > 1 or spec.endswith('.pt')


def _model_folder(path: Path) -> Path:
    if (path / 'config.json').is_file():
        return path
    if (path / 'model' / 'config.json').is_file():
        if (path / 'config.yaml').is_file() and not (path / 'results.json').is_file():
            raise ValueError(f'The run in {path} is not finished (it has no results.json): finish it first.')
        return path / 'model'
    if (path / 'adapter_config.json').is_file():
        raise ValueError(f'{path} holds adapters only: merge them into the model and save that, then name its folder.')
    if (path / 'config.yaml').is_file():
        raise ValueError(f'The run in {path} has no exported model: finish it, or name one of its checkpoint files.')
    raise ValueError(
        f'{path} is no teacher: it has neither config.json (a Hugging Face model) nor model/config.json (a run folder).'
    )


def _from_pretrained(name: str) -> tuple[nn.Module, Any]:
    from transformers import AutoModelForSequenceClassification

    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(name, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise ValueError(f'Cannot read the teacher {name!r}: {_first_sentence(error)}') from error
    if info['missing_keys'] or info['mismatched_keys']:
        # transformers draws missing weights at random and only warns: a bare encoder would teach noise.
        missing = ', '.join(sorted(info['missing_keys'])[:3]) or 'some shapes differ'
        raise ValueError(
            f'{name} is no trained classifier, weights are missing in it ({missing}): fine-tune it first, then distil.'
        )
    return model, _tokenizer(name)


def _tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception:  # a folder without one raises whatever its model type's tokenizer stumbles over
        return None


def _from_checkpoint(path: Path) -> tuple[nn.Module, Any]:
    from composer.models import HuggingFaceModel
    from composer.utils.checkpoint import safe_torch_load

    try:
        saved = safe_torch_load(path)
        state = saved['state']
        weights, hf_state = state['model'], state['integrations']['huggingface']
    except Exception as error:
        raise ValueError(
            f'{path} is no Composer checkpoint of a HuggingFaceModel ({type(error).__name__}): name a .pt file that '
            'Composer saved, or a Hugging Face folder.'
        ) from error
    if 'peft_config' in hf_state['model']:
        raise ValueError(f'{path} holds adapters: merge them, save the model in a folder, and name that folder.')
    model = HuggingFaceModel.load_huggingface_model_from_saved_state(hf_state, saved, None, None)
    prefix = 'model.'
    model.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items()}, strict=True)
    with tempfile.TemporaryDirectory() as folder:
        # Composer's own default is a new folder in the working directory, which is left behind.
        tokenizer = HuggingFaceModel.load_huggingface_tokenizer_from_saved_state(hf_state, tokenizer_save_dir=folder)
    return model, tokenizer


def _first_sentence(error: Exception) -> str:
    text = ' '.join(str(error).split())
    return text.split('. ')[0].rstrip('.') + '.'
