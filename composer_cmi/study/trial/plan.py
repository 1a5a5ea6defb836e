"""Which recipes a trial compares, and how many of them fit into the time: pure functions of what was seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from composer_cmi.errors import ConfigError
from composer_cmi.study.trial.look import Look

__all__ = [
    'AVERAGED',
    'BATCH',
    'CONTROL',
    'TUNING_SEEDS',
    'UNEQUAL',
    'Pace',
    'Plan',
    'Recipe',
    'plan_trial',
    'rates',
    'recipes',
    'wanted_steps',
]

CONTROL = 'ce_tuned'
AVERAGED = 4
BATCH = 32
TUNING_SEEDS = (1000, 1001)
_SEEDS = (8, 7, 6, 5)  # below five nothing is claimed
UNEQUAL = 3.0  # the largest class over the smallest
_FEWEST_STEPS = 48
# A forward pass over a row against a training step over it.
_FORWARD = 1 / 3
# A plan that just fits would not: runs differ.
_MARGIN = 1.1


class Pace(NamedTuple):
    """Seconds of a run as measured on this machine, with as many runs beside it as the trial will have.

    Attributes:
        overhead: Start, reading, evaluation, results.
        step: One training step.
        jobs: Runs at a time.
    """

    overhead: float
    step: float
    jobs: int


class Recipe(NamedTuple):
    """One arm of the study.

    Attributes:
        name: The arm's.
        words: What it is, for a reader.
        arm: Its section of the study file.
        length: Its training steps as a multiple of the longer tuned training.
        passes: Rows that a teacher reads for one run.
    """

    name: str
    words: str
    arm: dict[str, Any]
    length: float = 1.0
    passes: int = 0


@dataclass(frozen=True)
class Plan:
    """What will be run.

    Attributes:
        seeds: Paired repeats of every recipe.
        steps: Training steps of the longer of the two lengths that are tuned.
        recipes: What is compared, plain cross-entropy first.
        left_out: Names of recipes that did not fit.
        runs: All trainings, those of tuning included.
        minutes: What they will take.
        whole: Minutes with which training would not have been cut short; None where it is not.
    """

    seeds: int
    steps: int
    recipes: tuple[Recipe, ...]
    left_out: tuple[str, ...]
    runs: int
    minutes: float
    whole: float | None = None

    @property
    def cut(self) -> str:
        """What the recommendation does not say where training was cut short, in a sentence; else empty."""
        if self.whole is None:
            return ''
        return (
            f'Training is cut to {self.steps} steps to fit the time, so this is about models that are hardly trained: '
            f'with --minutes {self.whole:.0f} they train to the end.'
        )

    @property
    def short(self) -> int:
        """Training steps of the shorter of the two lengths."""
        return _short(self.steps)


def _short(steps: int) -> int:
    return max(round(0.6 * steps), 1)


def wanted_steps(rows: int) -> int:
    """Training steps of the longer length: ten epochs of a thousand rows or fewer, two of many."""
    epochs = 10 if rows <= 1000 else 4 if rows <= 10_000 else 2
    return max(96, -(-epochs * rows // BATCH))


def rates(width: int) -> list[float]:
    """The two learning rates that are tuned, by the model's width."""
    return [1e-4, 2e-4] if width < 512 else [2e-5, 5e-5]


def recipes(look: Look, steps: int, teacher: str | None = None, cache: str = 'logits') -> list[Recipe]:
    """All recipes that these data and this model allow, first those that are always compared, then by their order.

    Args:
        look: data and model.
        steps: training steps of the longer length.
        teacher: a classifier of the user's, to distil from.
        cache: folder for teachers' logits.
    """
    low, high = rates(look.width)
    short, long = f'{_short(steps)}ba', f'{steps}ba'
    texts = look.rows + look.unlabelled
    # Students that read all the text train twice as long, at the higher rate: they cannot be tuned on their own.
    all_text = {'optimizer.lr': high, 'train.max_duration': f'{2 * steps}ba'}
    # The tuned values are those of the rows with labels, and the rows without are only a teacher's to label.
    labelled_only = {'data.unlabelled': None} if look.unlabelled else {}

    def tuned(name: str, words: str, changes: dict[str, Any], passes: int = 0) -> Recipe:
        return Recipe(name, words, {'set': {**labelled_only, **changes}, 'tuned_as': CONTROL}, passes=passes)

    def distilled(source: str) -> dict[str, Any]:
        # A weak teacher is a result here, not a mistake.
        section = {'teacher': source, 'alpha': 0.7, 'temperature': 2, 'allow_weak_teacher': True}
        return {'algorithms.knowledge_distillation': {**section, 'cache': cache}}

    average = f'arm:{CONTROL}@{AVERAGED}'
    found = [
        Recipe('ce', 'cross-entropy', {'set': {**labelled_only}}, length=0.6),
        Recipe(
            CONTROL,
            'cross-entropy, length and rate tuned',
            {
                'set': {**labelled_only},
                'tune': {'optimizer.lr': [low, high], 'train.max_duration': [short, long]},
            },
        ),
        tuned(
            'average', f'the average of {AVERAGED} tuned models, distilled into one', distilled(average),
            AVERAGED * look.rows,
        ),
    ]  # fmt: skip
    if look.unlabelled:
        found.append(
            Recipe(
                'average_all_text', f'the average of {AVERAGED}, distilled on the text without labels too',
                {**all_text, **distilled(average)}, length=2.0, passes=AVERAGED * texts,
            )
        )  # fmt: skip
    if teacher:
        section = {**distilled(teacher), **(all_text if look.unlabelled else {})}
        words = f'a student of {teacher}'
        if look.unlabelled:
            found.append(Recipe('student', f'{words}, on all the text', section, length=2.0, passes=texts))
        else:
            found.append(tuned('student', words, section, look.rows))
    if look.imbalance >= UNEQUAL:
        found.append(
            tuned('class_weights', 'classes weighted against their numbers', {'train.class_weights': 'balanced'})
        )
    found.append(tuned('smoothing', 'smoothed labels (0.1)', {'train.label_smoothing': 0.1}))
    found.append(tuned('cmi_min', 'minimum CMI, the default term', {'algorithms.cmi_regularization': {}}))
    if look.dropout:
        twice = {f'model.config_overrides.{key}': round(min(2 * value, 0.5), 4) for key, value in look.dropout.items()}
        found.append(tuned('dropout', 'twice the dropout', twice))
    return found


def plan_trial(look: Look, pace: Pace, minutes: float, teacher: str | None = None, cache: str = 'logits') -> Plan:
    """The most that fits: first training whole, then recipes in their order, then seeds.

    Raises:
        ConfigError: not even tuned cross-entropy against the average, and against what the text without labels and
            the teacher were given for, fits with five seeds and training cut short.
    """
    steps = wanted_steps(look.rows)
    always = 3 + bool(look.unlabelled) + bool(teacher)
    whole = None
    while True:
        everything = recipes(look, steps, teacher, cache)
        least = _plan(everything[:always], (), min(_SEEDS), steps, pace)
        if least.minutes <= minutes:
            return replace(_filled(everything, least, minutes, pace), whole=whole)
        whole = whole or math.ceil(least.minutes)
        if steps <= _FEWEST_STEPS:
            raise ConfigError(
                f'--minutes {minutes:g} is too short: the smallest comparison, {least.runs} trainings of at most '
                f'{steps} steps, takes {least.minutes:.0f} minutes here; give --minutes {least.minutes + 1:.0f}, or a '
                'smaller model.'
            )
        steps = max(steps // 2, _FEWEST_STEPS)


def _filled(everything: Sequence[Recipe], plan: Plan, minutes: float, pace: Pace) -> Plan:
    chosen, seeds = list(plan.recipes), plan.seeds
    for recipe in everything[len(chosen) :]:
        if _plan([*chosen, recipe], (), seeds, plan.steps, pace).minutes <= minutes:
            chosen.append(recipe)
    left_out = tuple(recipe.name for recipe in everything if recipe not in chosen)
    plans = (_plan(chosen, left_out, each, plan.steps, pace) for each in _SEEDS)
    return next(each for each in plans if each.minutes <= minutes or each.seeds == min(_SEEDS))


def _plan(chosen: Sequence[Recipe], left_out: tuple[str, ...], seeds: int, steps: int, pace: Pace) -> Plan:
    tries = 4 * len(TUNING_SEEDS)
    seconds = tries * (pace.overhead + pace.step * 0.8 * steps)
    for recipe in chosen:
        reading = recipe.passes / BATCH * pace.step * _FORWARD
        seconds += seeds * (pace.overhead + pace.step * recipe.length * steps + reading)
    runs = tries + seeds * len(chosen)
    return Plan(seeds, steps, tuple(chosen), left_out, runs, _MARGIN * seconds / pace.jobs / 60)
