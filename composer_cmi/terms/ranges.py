"""The ranges of the terms' arguments, as types that a signature shows and `composer_cmi.arguments` checks."""

from typing import Annotated

from annotated_types import Ge, Gt, Interval, Le

__all__ = ['Separation', 'Share', 'Temperature', 'Weight']

Weight = Separation = Annotated[float, Ge(0), Le(1e4)]
Temperature = Annotated[float, Gt(0), Le(1e4)]
Share = Annotated[float, Interval(ge=0, le=1)]
