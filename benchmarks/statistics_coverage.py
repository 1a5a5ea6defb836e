"""Do the study's intervals cover, and do its tests stay quiet where nothing is?

Simulates whole studies: for each seed a shared part (initialisation, data order), an own part per arm, and scores
that are counts over a finite test set, as real ones are. Prints one CSV row per effect.

    python benchmarks/statistics_coverage.py --simulations 2000 --seeds 8
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence

import numpy as np
from scipy import stats

from composer_cmi.study.findings import statistics

EFFECTS = (0.0, 0.005, 0.01, 0.02)
ROWS = 1000


def simulate(
    simulations: int = 2000, seeds: int = 8, effects: Sequence[float] = EFFECTS, seed: int = 0
) -> list[dict[str, float]]:
    """Coverage of both intervals and rate of positive findings, for each true effect.

    Args:
        simulations: studies per effect.
        seeds: paired seeds per study.
        effects: true differences between the arms, as a share of the rows.
        seed: of the simulation.
    """
    generator = np.random.default_rng(seed)
    table = []
    for effect in effects:
        shared = generator.normal(0.81, 0.015, size=(simulations, seeds))
        scores = [shared + shift + generator.normal(0, 0.008, size=shared.shape) for shift in (effect, 0.0)]
        arm, baseline = (np.round(score * ROWS) / ROWS for score in scores)
        differences = arm - baseline
        row = {'effect': effect, 'simulations': simulations, 'seeds': seeds}
        for name, interval in (
            ('t', statistics.t_interval(differences)),
            ('bootstrap', statistics.bootstrap_interval(differences)),
        ):
            row[f'{name}_coverage'] = float(np.mean((interval.low <= effect) & (effect <= interval.high)))
            row[f'{name}_width'] = float(np.mean(interval.high - np.asarray(interval.low)))
        row['t_positives'] = float((stats.ttest_1samp(differences, 0.0, axis=1).pvalue < 0.05).mean())
        row['expected_power'] = statistics.power_of_paired_t_test(seeds, effect, 0.008 * np.sqrt(2))
        table.append(row)
    return table


def main() -> None:
    """Print the table and fail where a promise is not kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--simulations', type=int, default=2000)
    parser.add_argument('--seeds', type=int, nargs='+', default=[8, 10, 30])
    arguments = parser.parse_args()
    rows = [row for seeds in arguments.seeds for row in simulate(arguments.simulations, seeds)]
    writer = csv.DictWriter(sys.stdout, rows[0])
    writer.writeheader()
    writer.writerows({key: round(value, 4) for key, value in row.items()} for row in rows)
    kept = all(0.93 <= row[f'{name}_coverage'] <= 0.97 for row in rows for name in ('t', 'bootstrap'))
    kept &= all(0.04 <= row['t_positives'] <= 0.06 for row in rows if row['effect'] == 0)
    print('kept: coverage 93-97 %, false positives 5 % +- 1 %' if kept else 'NOT KEPT', file=sys.stderr)
    sys.exit(0 if kept else 1)


if __name__ == '__main__':
    main()
