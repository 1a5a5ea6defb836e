"""How far probabilities can be believed: the numbers without and with a temperature, and a sentence of them."""

from __future__ import annotations

from collections.abc import Mapping

from composer_cmi.run.calibrate.temperature import divided
from composer_cmi.run.evaluate import Evaluation
from composer_cmi.run.outputs.results import Calibration, Reliability
from composer_cmi.run.scoring import CalibrationError, NegativeLogLikelihood, brier_score

__all__ = ['calibration_of', 'describe', 'reliability']


def reliability(evaluation: Evaluation) -> Reliability:
    """Of the labelled rows."""
    nll, ece = NegativeLogLikelihood(), CalibrationError()
    for metric in (nll, ece):
        metric.update(evaluation.logits, evaluation.labels)
    count, confidence, right = ece.sums
    return Reliability(
        nll=float(nll.compute()),
        ece=float(ece.compute()),
        brier=brier_score(evaluation.logits, evaluation.labels),
        rows=count.long().tolist(),
        confidence=(confidence / count.clamp(min=1)).tolist(),
        right=right.long().tolist(),
    )


def calibration_of(temperature: float, rows: int, raw: Mapping[str, Evaluation]) -> Calibration:
    """What a temperature changes on each split that has labels, given the answers without it."""
    return Calibration(
        temperature=temperature,
        rows=rows,
        splits={
            name: {'before': reliability(part), 'after': reliability(divided(part, temperature))}
            for name, part in raw.items()
            if bool((part.labels >= 0).any())
        },
    )


def describe(calibration: Calibration) -> list[str]:
    """A sentence for each split, for the card."""
    first = f'Temperature {calibration.temperature:.3g}, fitted on {calibration.rows:,} rows kept out of training'
    return [
        f'{first}; {name}: '
        + ', '.join(
            f'{label} {getattr(parts["before"], key):.4f} -> {getattr(parts["after"], key):.4f}'
            for key, label in (('nll', 'NLL'), ('ece', 'ECE'), ('brier', 'Brier score'))
        )
        + '.'
        for name, parts in calibration.splits.items()
    ]
