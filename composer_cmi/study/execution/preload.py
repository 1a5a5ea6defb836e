"""Importing this imports what every run needs: what the fork server begins with."""

from __future__ import annotations

from composer_cmi.run.command import imports

with imports('run', 'A run of a study'):
    import transformers.pipelines  # noqa: F401  which reads back what a run exports

    from composer_cmi.run import arms, config

__all__ = ['arms', 'config']
