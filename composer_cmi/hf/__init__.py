"""The same terms in Hugging Face's `transformers.Trainer`, without Composer."""

from composer_cmi.errors import needs

with needs('hf', 'composer_cmi.hf'):
    from composer_cmi.hf.trainer import CMITrainer

__all__ = ['CMITrainer']
