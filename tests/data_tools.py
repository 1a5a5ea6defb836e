"""Rows with given labels, and the `data` section of a run's YAML file, for tests of what is read."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from composer_cmi.data.splits import Split


def split_of(labels, first_id=0):
    texts = [f'text {i}' for i in range(len(labels))]
    return Split((texts,), np.array(labels, dtype=np.int64), first_id + np.arange(len(labels), dtype=np.int64))


def config(path, **options):
    return SimpleNamespace(path=str(path), **options)
