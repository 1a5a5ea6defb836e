"""Composer algorithms: CMI for classifiers, CMI for teachers, and distillation."""

from composer_cmi.algorithms.cmi import CMIMaximization, CMIRegularization

__all__ = ['CMIMaximization', 'CMIRegularization']
