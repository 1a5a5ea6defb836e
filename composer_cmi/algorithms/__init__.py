"""Composer algorithms: CMI for classifiers, CMI for teachers, and distillation."""

from composer_cmi.errors import needs

with needs('composer', 'composer_cmi.algorithms'):
    from composer_cmi.algorithms.cmi import CMIMaximization, CMIRegularization
    from composer_cmi.algorithms.controls import NormPenalty, RDrop, SupervisedContrast
    from composer_cmi.algorithms.distillation import KnowledgeDistillation
    from composer_cmi.algorithms.resume import warn_about_dropped_states

__all__ = [
    'CMIMaximization',
    'CMIRegularization',
    'KnowledgeDistillation',
    'NormPenalty',
    'RDrop',
    'SupervisedContrast',
]

warn_about_dropped_states()
