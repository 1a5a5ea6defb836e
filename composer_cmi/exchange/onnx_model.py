"""A run's exported model as ONNX: by transformers' own exporter, compared with the model before it is there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from composer_cmi.errors import ConfigError, naming
from composer_cmi.exchange.exported import exported_folder, load_exported
from composer_cmi.teachers.pretrained import first_sentence

__all__ = ['export_onnx']

_TEXTS = ('a', 'a few more words of another length, which is how batches come')
_TOLERANCE = 1e-4


def export_onnx(run: str | Path, out: str | Path | None = None) -> Path:
    """Write a folder with `model.onnx` (weights beside it), the tokenizer and the config.

    Its inputs are the tokenizer's, its output `logits`; rows and tokens may be of any number.

    Args:
        run: A finished run's folder, or that of an exported model.
        out: The folder, replaced as a whole; `onnx` in that of the model by default.

    Raises:
        ConfigError: There is no exported model, transformers has no exporter (before 5), the model cannot be exported,
            or ONNX Runtime gives other logits.
        ModuleNotFoundError: ONNX Runtime or the exporter's onnxscript is not installed (extra `onnx`).
    """
    # The exporter's: without it the error would name no extra of ours. The pinned environment has neither.
    import onnxruntime  # noqa: F401  # pyright: ignore[reportMissingImports]  before the work
    import onnxscript  # noqa: F401  # pyright: ignore[reportMissingImports]

    try:
        from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter  # pyright: ignore
    except ImportError as error:
        raise ConfigError(
            'ONNX is written by the exporter of transformers 5, which is not installed: `modern.txt` of the repository '
            'is an environment that has it.'
        ) from error
    folder = exported_folder(run)
    out = folder / 'onnx' if out is None else Path(out).expanduser()
    teacher = load_exported(folder)
    model, tokenizer = teacher.members[0].module, teacher.tokenizer
    inputs = dict(tokenizer(list(_TEXTS), padding=True, return_tensors='pt'))
    aside = out.with_name(f'.{out.name}.{os.getpid()}.tmp')
    try:
        with naming(aside):
            try:
                OnnxExporter().export(model, inputs, config=OnnxConfig(dynamic=True)).save_pretrained(aside)
            except Exception as error:  # whatever a model's code cannot be traced through
                raise ConfigError(f'{folder} cannot be exported to ONNX: {first_sentence(error)}') from error
            tokenizer.save_pretrained(aside)
        _compare(aside / 'model.onnx', teacher, tokenizer)
        shutil.rmtree(out, ignore_errors=True)
        os.replace(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return out


def _compare(file: Path, teacher: Any, tokenizer: Any) -> None:
    """Other numbers of rows and tokens than the model was exported with."""
    import onnxruntime  # pyright: ignore[reportMissingImports]

    session = onnxruntime.InferenceSession(str(file), providers=['CPUExecutionProvider'])
    for texts in (_TEXTS[1:], (*_TEXTS, 'three')):
        inputs = dict(tokenizer(list(texts), padding=True, return_tensors='pt'))
        found = session.run(['logits'], {name: value.numpy() for name, value in inputs.items()})[0]
        off = float((torch.from_numpy(found) - teacher.logits(inputs)).abs().max())
        if off > _TOLERANCE:
            raise ConfigError(f'ONNX Runtime answers otherwise than the model, its logits are off by {off:.3g}.')
