"""Conditional mutual information for fine-tuning and distilling classifiers with MosaicML Composer."""

from composer_cmi.algorithms import CMIMaximization, CMIRegularization, KnowledgeDistillation

__all__ = ['CMIMaximization', 'CMIRegularization', 'KnowledgeDistillation']
__version__ = '0.1.0'
