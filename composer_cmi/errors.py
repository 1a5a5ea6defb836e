"""What is raised when a user's configuration cannot be run."""

from __future__ import annotations

__all__ = ['ConfigError']


class ConfigError(ValueError):
    """A configuration that cannot be run; one sentence: what, where, and what would be right."""
