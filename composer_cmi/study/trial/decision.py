"""What a user should take, and in which words: from the comparisons of a study, by verdicts alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from composer_cmi.study.findings.analysis import Comparison
from composer_cmi.study.findings.crossed import crossed
from composer_cmi.study.findings.predictions import SCALED_NLL
from composer_cmi.study.findings.study import SCORE, Study
from composer_cmi.study.findings.tables import interval, signed
from composer_cmi.study.trial.plan import AVERAGED, CONTROL, Recipe

__all__ = ['Decision', 'decide']

_LEVEL = 0.05


class Decision(NamedTuple):
    """What is recommended.

    Attributes:
        arm: The recipe's name, or None where no model is better than a constant answer.
        sentences: The recommendation, with its interval and its cost.
        notes: What else a reader should know, a sentence each.
    """

    arm: str | None
    sentences: list[str]
    notes: list[str]


def decide(study: Study, found: Mapping[str, Sequence[Comparison]], recipes: Sequence[Recipe]) -> Decision:
    """The recipe with the largest proven gain in score over tuned cross-entropy; that one itself where none is proven.

    Args:
        study: the runs of one setting.
        found: `analysis.compare(study)`.
        recipes: what was compared.
    """
    table = study.tables[0]
    words = dict.fromkeys(study.arms, '') | {recipe.name: recipe.words for recipe in recipes}
    words = {arm: told or arm for arm, told in words.items()}  # an arm that a user has added to the study
    mine = {each.arm: each for each in found[SCORE] if each.baseline == CONTROL and each.table == table.name}
    if not _beats_constant(study):
        best = max(_mean_score(study, arm) for arm in study.arms)
        return Decision(
            None,
            [
                'Nothing is recommended: no recipe is proven better than always giving one answer '
                f'({table.majority:.1f} {table.metric}, the best mean of a recipe is {best:.1f}).',
                'Look at the labels first: more of them, or whether the text says them at all.',
            ],
            [],
        )
    gains = sorted((each for each in mine.values() if each.verdict == 'gain'), key=lambda each: -each.difference.mean)
    notes = [_note(each, words) for each in gains[1:]]
    notes += [_note(each, words) for each in mine.values() if each.verdict == 'loss']
    notes += _probabilities(found, table.name, words)
    control = f'tuned cross-entropy ({_mean_score(study, CONTROL):.1f} {table.metric} on {table.rows} rows)'
    if gains:
        best = gains[0]
        sentences = [
            f'Take {words[best.arm]}: {signed(best.difference.mean, best.kind)} points over {control}, 95 % interval '
            f'{interval(*best.interval, best.kind)} over {best.rests_on}, {best.difference.n} seeds.',
            _cost(study, best.arm),
        ]
        if len(mine) > 1:
            notes.append(f'It is the best of {len(mine)} that were tried, so expect a little less than its mean.')
        return Decision(best.arm, sentences, notes)
    others = 'the other recipe' if len(mine) == 1 else f'any of the {len(mine)} other recipes'
    detectable = [each.detectable for each in mine.values() if math.isfinite(each.detectable)]
    sentences = [
        f'Take {control}: there is no evidence that {others} is better on these data.',
        _cost(study, CONTROL),
    ]
    if detectable:
        notes.append(
            f'A gain of {max(detectable):.1f} points would have been seen in four of five such trials; a smaller one '
            'may be there unseen.'
        )
    if table.apart:
        notes.append(f'The score decides nothing here: {table.apart}.')
    return Decision(CONTROL, sentences, notes)


def _mean_score(study: Study, arm: str) -> float:
    table = study.tables[0]
    return float(np.mean([run.score(table.split, table.metric) for run in study.of(table.setting, arm).values()]))


def _beats_constant(study: Study) -> bool:
    """Whether some recipe's score is above the best constant answer's beyond chance, over seeds and rows."""
    table = study.tables[0]
    for arm in study.arms:
        runs = list(study.of(table.setting, arm).values())
        rows = [run.rows(table.split, table.metric) for run in runs]
        if not runs:
            continue
        if any(each is None for each in rows):  # without predictions nothing speaks against the scores
            return _mean_score(study, arm) > table.majority
        over = crossed(np.array(rows) - table.majority)
        if over.low > 0 and over.p < _LEVEL / len(study.arms):
            return True
    return False


def _note(each: Comparison, words: Mapping[str, str]) -> str:
    kind = 'is better too' if each.verdict == 'gain' else 'is WORSE'
    mean, bounds = signed(each.difference.mean, each.kind), interval(*each.interval, each.kind)
    told = words[each.arm]
    return f'{told[:1].upper()}{told[1:]} {kind}: {mean} points, {bounds}.'


def _probabilities(found: Mapping[str, Sequence[Comparison]], table: str, words: Mapping[str, str]) -> list[str]:
    notes = []
    for metric, name in (('nll', 'as they are'), (SCALED_NLL, 'after one temperature')):
        mine = [c for c in found[metric] if (c.baseline, c.table, c.verdict) == (CONTROL, table, 'gain')]
        for best in sorted(mine, key=lambda each: each.difference.mean)[:1]:
            bounds = interval(*best.interval, best.kind)
            notes.append(
                f'Probabilities {name} are better with {words[best.arm]}: '
                f'{signed(best.difference.mean, best.kind)} nats, {bounds}.'
            )
    return notes


def _cost(study: Study, arm: str) -> str:
    def seconds(name: str) -> float:
        runs = study.of(study.tables[0].setting, name).values()
        return float(np.mean([run.results.timing.total_seconds for run in runs]))

    own = seconds(arm)
    if not arm.startswith('average'):
        return (
            f'One training takes {own:.0f} s on this machine; the model is as large and as fast as any of the others.'
        )
    return (
        f'One model costs {AVERAGED} trainings of {seconds(CONTROL):.0f} s and its own of {own:.0f} s on this '
        'machine; once trained it is as large and as fast as a single one.'
    )
