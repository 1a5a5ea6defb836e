"""The arguments of the CMI terms with their defaults; what they mean stands in `composer_cmi.algorithms.cmi`."""

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal, get_args

from composer_cmi.centroids import CentroidMode
from composer_cmi.terms.ranges import Temperature, Weight

__all__ = ['Form', 'MaximizationArguments', 'RegularizationArguments', 'Space']

Space = Literal['features', 'logits']
Form = Literal['scaled', 'plain', 'relative']


@dataclass(repr=False, eq=False)
class RegularizationArguments:
    """Of `composer_cmi.CMIRegularization`, and what both signs of the term share.

    Raises:
        ValueError: for values out of range.
    """

    sign: ClassVar[int] = 1
    max_cmi = max_growth = None

    weight: Weight = 0.05
    _: KW_ONLY
    space: Space = 'features'
    form: Form = 'scaled'
    start: str | Any = '0.3dur'  # Composer takes its own Time too
    ramp: str | Any = '0dur'
    temperature: Temperature = 1.0
    centroids: CentroidMode = 'ema'
    decay: float = 0.9
    feature_module: str | None = None
    feature_position: Literal['first', 'last'] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise ValueError(f'weight must be at least 0, got {self.weight}; the sign is chosen by the class.')
        if not 0 < self.temperature < math.inf:
            raise ValueError(f'temperature must be positive, got {self.temperature}.')
        for name, value, choices in (('space', self.space, Space), ('form', self.form, Form)):
            if value not in get_args(choices):
                raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}, got '{value}'.")
        if self.max_cmi is not None and not self.max_cmi > 0:
            raise ValueError(f'max_cmi must be positive (nats), got {self.max_cmi}.')
        if self.max_growth is not None and not self.max_growth > 1:
            raise ValueError(f'max_growth must be above 1 (times the CMI at the start), got {self.max_growth}.')
        self.weight, self.temperature = float(self.weight), float(self.temperature)


@dataclass(repr=False, eq=False)
class MaximizationArguments(RegularizationArguments):
    """Of `composer_cmi.CMIMaximization`."""

    sign: ClassVar[int] = -1

    weight: Weight = 0.2
    _: KW_ONLY
    space: Space = 'logits'
    form: Form = 'plain'
    decay: float = 0.5
    max_cmi: float | None = None
    max_growth: float | None = None
