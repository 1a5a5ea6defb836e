"""Do the study's intervals cover, and do its verdicts stay quiet where nothing is?

Simulates what the statistics are given, with arms that differ by chance alone, so that the true difference of new seeds
and new rows is 0:

* coverage: S seeds x N rows of paired answers; the share of 95 % intervals that hold 0 and their mean width in points,
  of t over seeds, t over rows, and the crossed interval that the verdicts take; also of F1 and Matthews correlation.
* claims: studies of 8 pairs, 4 metrics and 4 settings; the share with any claim.
* scaled NLL: good classifiers at several scales of their logits, beside NLL and the loss of new rows at the fitted
  temperature.

    python benchmarks/statistics_coverage.py

Prints three CSV tables in about two minutes of one thread and fails where a promise is not kept.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from composer_cmi.study.findings import statistics
from composer_cmi.study.findings.crossed import crossed
from composer_cmi.study.findings.predictions import Predictions, row_values, scaled_nll

Floats = NDArray[np.float64]


class Case(NamedTuple):
    """`rows_react` and `seeds_react`: by how much, in logits, a row or a seed suits one arm more than the other."""

    name: str
    seeds: int
    rows: int
    rows_react: float
    seeds_react: float


CASES = (
    Case('no interaction', 8, 425, 0.0, 0.0),
    Case('rows react to the arm', 8, 425, 1.0, 0.0),
    Case('rows and seeds', 8, 425, 1.0, 0.15),
    Case('rows and strong seeds', 8, 277, 1.0, 0.33),
    Case('few seeds', 5, 277, 1.0, 0.2),
    Case('many rows', 8, 2000, 1.0, 0.1),
)


def margins(case: Case, arms: int, studies: int, generator: np.random.Generator) -> Floats:
    """By how many logits each answer is right, `[studies, arms, S, N]`: rows are hard or easy for every arm alike."""

    def draw(*shape: int, scale: float) -> Any:
        return scale * generator.standard_normal((studies, *shape), dtype=np.float32) if scale else np.float32(0)

    found = draw(1, 1, case.rows, scale=2.5) + np.float32(3.0)
    found = found + draw(arms, 1, case.rows, scale=case.rows_react) + draw(arms, case.seeds, 1, scale=case.seeds_react)
    return found + draw(arms, case.seeds, case.rows, scale=1.2)


def coverage(case: Case, studies: int, generator: np.random.Generator) -> dict[str, Any]:
    """Coverage of 0 and mean width of the three intervals of a difference in accuracy."""
    found: dict[str, list[Floats]] = {}
    discordant = []
    for size in _batches(studies, 100):
        right = margins(case, 2, size, generator) > 0
        differences = 100.0 * (right[:, 0].astype(np.float64) - right[:, 1])
        discordant.append(np.mean(differences != 0))
        over_both = crossed(differences)
        for name, low, high in (
            ('seeds', *statistics.t_interval(differences.mean(-1))),
            ('rows', *statistics.t_interval(differences.mean(-2))),
            ('crossed', over_both.low, over_both.high),
        ):
            found.setdefault(name, []).append(np.stack([np.asarray(low), np.asarray(high)]))
    row: dict[str, Any] = {'case': case.name, 'metric': 'accuracy', 'seeds': case.seeds, 'rows': case.rows}
    return row | {'discordant': np.mean(discordant), **_covered(found)}


def coverage_of_influence(case: Case, metric: str, studies: int, generator: np.random.Generator) -> dict[str, Any]:
    """The same for a score that is no mean over rows; a fifth of the rows are of class 1."""
    found: dict[str, list[Floats]] = {}
    for size in _batches(studies, 100):
        right = margins(case, 2, size, generator) > 0
        labels = (generator.random((size, case.rows)) < 0.2).astype(np.int64)
        for one, truth in zip(right, labels, strict=True):
            answers = np.where(one, truth, 1 - truth)
            empty = np.zeros((case.rows, 2))
            values = [[row_values(Predictions(truth, truth, a, empty), metric) for a in arm] for arm in answers]
            arm, baseline = 100 * np.array(values, dtype=np.float64)
            over_both, over_seeds = crossed(arm - baseline), statistics.t_interval((arm - baseline).mean(-1))
            found.setdefault('seeds', []).append(np.array([[over_seeds.low], [over_seeds.high]], dtype=np.float64))
            found.setdefault('crossed', []).append(np.array([[over_both.low], [over_both.high]]))
    return {'case': case.name, 'metric': metric, 'seeds': case.seeds, 'rows': case.rows, **_covered(found)}


def _covered(found: dict[str, list[Floats]]) -> dict[str, float]:
    row: dict[str, float] = {}
    for name, parts in found.items():
        low, high = np.concatenate(parts, axis=1)
        row[f'{name}_coverage'] = float(np.mean((low <= 0) & (high >= 0)))
        row[f'{name}_width'] = float(np.mean(high - low))
    return row


def claims(studies: int, generator: np.random.Generator, pairs: int = 8, settings: int = 4) -> dict[str, Any]:
    """Share of all-null studies with any claim, as verdicts are made and by t over seeds, a pair and metric at once."""
    case = CASES[2]._replace(rows=300)
    ours = seeds_only = 0
    for size in _batches(studies, 20):
        both, alone = [], []
        for _ in range(settings):
            m = margins(case, pairs + 1, size, generator)
            # Four metrics that hang together as a study's do: accuracy, NLL, NLL at another scale, Brier's score.
            loss = np.logaddexp(np.float32(0), -m)
            brier = np.square(np.expm1(-loss))
            for values in ((m > 0).astype(np.float32), loss, np.logaddexp(np.float32(0), -m / 3), brier):
                differences = values[:, 1:].astype(np.float64) - values[:, :1]
                both.append(crossed(differences).p)
                alone.append(np.asarray(stats.ttest_1samp(differences.mean(-1), 0.0, axis=-1)[1]))
        p_both, p_alone = (np.stack(each, axis=-1) for each in (both, alone))  # [studies, pairs, settings x metrics]
        ours += sum(min(statistics.holm(p.ravel())) < 0.05 for p in p_both)
        families = p_alone.reshape(size, pairs, settings, -1).swapaxes(2, 3).reshape(size, -1, settings)
        seeds_only += sum(any(min(statistics.holm(p)) < 0.05 for p in study) for study in families)
    return {'studies': studies, 'any_claim': ours / studies, 'any_claim_seeds_a_pair_at_once': seeds_only / studies}


def scaled(rows: int, scale: float, studies: int, generator: np.random.Generator) -> dict[str, Any]:
    """Scaled NLL of a classifier that errs on 1 % of the rows and whose logits are `scale` times the right ones."""
    table = []
    for _ in range(studies):
        right = generator.normal(0, 55, rows + 5000)
        labels = (generator.random(len(right)) < 1 / (1 + np.exp(-right))).astype(np.int64)
        logits = np.stack([np.zeros(len(right)), scale * right], axis=1)
        seen, new = slice(rows), slice(rows, None)
        found = scaled_nll(logits[seen], labels[seen])
        nll, error = (mean_loss(logits[seen], labels[seen], t) for t in (1.0, None))
        temperatures = np.exp(np.linspace(-math.log(100), math.log(100), 200))
        fitted = min(temperatures, key=lambda t: mean_loss(logits[seen], labels[seen], t))
        table.append((error, nll, found, mean_loss(logits[new], labels[new], fitted)))
    error, nll, found, of_new = np.array(table).T
    row = {'rows': rows, 'scale': scale, 'error': error.mean(), 'nll': nll.mean(), 'scaled_nll': found.mean()}
    return row | {'new_rows_at_fitted': of_new.mean(), 'most_above_nll': (found - nll).max(), 'bound': 1 / rows}


def mean_loss(logits: Floats, labels: NDArray[np.int64], temperature: float | None) -> float:
    """Mean loss at a temperature; the share of wrong answers for None."""
    if temperature is None:
        return float(np.mean(logits.argmax(1) != labels))
    signed = (2 * labels - 1) * (logits[:, 1] - logits[:, 0]) / temperature
    return float(np.logaddexp(0, -signed).mean())


def _batches(total: int, size: int) -> Iterable[int]:
    return (min(size, total - begun) for begun in range(0, total, size))


def _print(rows: list[dict[str, Any]]) -> None:
    writer = csv.DictWriter(sys.stdout, list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    for row in rows:
        writer.writerow({key: f'{value:.4g}' if isinstance(value, float) else value for key, value in row.items()})
    print(flush=True)


def main() -> None:
    """Print the tables and fail where a promise is not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--studies', type=int, default=1000)
    arguments = parser.parse_args()
    generator = np.random.default_rng(0)
    covered = [coverage(case, arguments.studies, generator) for case in CASES]
    influence = [
        coverage_of_influence(CASES[2], metric, arguments.studies, generator)
        for metric in ('f1', 'macro_f1', 'matthews_correlation')
    ]
    _print([*covered, *influence])
    claimed = claims(arguments.studies, generator)
    _print([claimed])
    losses = [scaled(rows, scale, 100, generator) for rows in (200, 1000) for scale in (0.3, 1.0, 3.0)]
    _print(losses)
    kept = {
        'coverage of at least 94 % in every case': all(r['crossed_coverage'] >= 0.94 for r in (*covered, *influence)),
        'at most 5 % of studies with any claim': claimed['any_claim'] <= 0.05,
        'scaled NLL at most 1 / rows above NLL': all(row['most_above_nll'] <= row['bound'] + 1e-9 for row in losses),
    }
    for promise, holds in kept.items():
        print(f'{"kept" if holds else "NOT KEPT"}: {promise}', file=sys.stderr)
    sys.exit(0 if all(kept.values()) else 1)


if __name__ == '__main__':
    main()
