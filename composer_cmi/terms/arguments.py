"""The arguments of the CMI terms with their defaults; what they mean stands in `composer_cmi.algorithms.cmi`."""

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal, get_args

from composer_cmi.centroids import CentroidMode
from composer_cmi.terms.ranges import Separation, Temperature, Weight

__all__ = ['CMIArguments', 'MaximizationArguments', 'RegularizationArguments', 'Space']

Space = Literal['features', 'logits', 'centered']
Form = Literal['scaled', 'plain', 'relative']
MinimizedForm = Literal['scaled', 'plain', 'relative', 'normalized', 'contrastive']
# Of unit vectors a few hundred wide it gives distributions of moderate sharpness (arXiv 2601.02543 tempers them too).
_CENTERED_TEMPERATURE = 0.05
_TAU = 0.1


@dataclass(repr=False, eq=False)
class CMIArguments:
    """What both signs of the term share.

    Raises:
        ValueError: for values out of range, and for those that mean nothing together.
    """

    sign: ClassVar[int] = 1
    forms: ClassVar[Any] = Form
    separation = 0.0
    tau = max_cmi = max_growth = None

    weight: Weight = 0.05
    _: KW_ONLY
    space: Space = 'features'
    form: Form = 'scaled'
    start: str | Any = '0.3dur'  # Composer takes its own Time too
    ramp: str | Any = '0dur'
    temperature: Temperature | list[Temperature] | None = None
    centroids: CentroidMode = 'ema'
    decay: float = 0.9
    feature_module: str | None = None
    feature_position: Literal['first', 'last'] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise ValueError(f'weight must be at least 0, got {self.weight}; the sign is chosen by the class.')
        for name, value, choices in (('space', self.space, Space), ('form', self.form, self.forms)):
            if value not in get_args(choices):
                raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}, got '{value}'.")
        if self.max_cmi is not None and not self.max_cmi > 0:
            raise ValueError(f'max_cmi must be positive (nats), got {self.max_cmi}.')
        if self.max_growth is not None and not self.max_growth > 1:
            raise ValueError(f'max_growth must be above 1 (times the CMI at the start), got {self.max_growth}.')
        if self.space == 'centered' and self.centroids == 'fixed':
            raise ValueError(
                "space='centered' cannot be combined with centroids='fixed', whose one pass would need the mean of the "
                "features before it: use centroids='ema'."
            )
        self.weight, self.temperature = float(self.weight), self._temperatures()

    def _temperatures(self) -> float | list[float]:
        given = self.temperature
        if given is None:
            return _CENTERED_TEMPERATURE if self.space == 'centered' else 1.0
        values = [*given] if isinstance(given, list | tuple) else [given]
        if not values or not all(0 < value < math.inf for value in values):
            raise ValueError(f'temperature must be positive, or a list of positive numbers, got {given}.')
        return float(values[0]) if len(values) == 1 else [float(value) for value in values]


@dataclass(repr=False, eq=False)
class RegularizationArguments(CMIArguments):
    """Of `composer_cmi.CMIRegularization`."""

    forms: ClassVar[Any] = MinimizedForm

    _: KW_ONLY
    form: MinimizedForm = 'scaled'
    separation: Separation = 0.0
    tau: Temperature | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.separation < math.inf:
            raise ValueError(f'separation must be at least 0, got {self.separation}.')
        if self.separation and self.form not in ('scaled', 'plain'):
            raise ValueError(
                f"separation={self.separation} cannot be combined with form='{self.form}': it is subtracted from the "
                "CMI of form='scaled' or 'plain'."
            )
        if self.separation and not self.weight:
            raise ValueError(
                f'separation={self.separation} with weight=0 would add nothing, for weight=0 only measures: give a '
                'weight above 0.'
            )
        if self.tau is not None and self.form != 'contrastive':
            raise ValueError(
                f"tau={self.tau} means nothing with form='{self.form}': it is the temperature of form='contrastive' "
                '(that of the features is `temperature`).'
            )
        if self.tau is not None and not 0 < self.tau < math.inf:
            raise ValueError(f'tau must be positive, got {self.tau}.')
        self.separation = float(self.separation)
        if self.form == 'contrastive':
            self.tau = _TAU if self.tau is None else float(self.tau)
        super().__post_init__()


@dataclass(repr=False, eq=False)
class MaximizationArguments(CMIArguments):
    """Of `composer_cmi.CMIMaximization`."""

    sign: ClassVar[int] = -1

    weight: Weight = 0.2
    _: KW_ONLY
    space: Space = 'logits'
    form: Form = 'plain'
    decay: float = 0.5
    max_cmi: float | None = None
    max_growth: float | None = None
