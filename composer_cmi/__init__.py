"""Conditional mutual information for fine-tuning and distilling classifiers with MosaicML Composer."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from composer_cmi.algorithms import CMIMaximization, CMIRegularization, KnowledgeDistillation

__all__ = ['CMIMaximization', 'CMIRegularization', 'KnowledgeDistillation']
__version__ = '0.1.0'


def __getattr__(name: str) -> object:
    # On first use (PEP 562): they need Composer, and the rest of the package does not.
    if name in __all__:
        return getattr(importlib.import_module('composer_cmi.algorithms'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
