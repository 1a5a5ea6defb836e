"""Scores and predictions that another program has written, as a study: from there on a report asks nobody whose."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from composer_cmi.data.readers import DataError, Table, in_one_go, read_table
from composer_cmi.errors import ConfigError
from composer_cmi.study.findings.elsewhere.answers import study_of_answers
from composer_cmi.study.findings.elsewhere.scores import study_of_scores
from composer_cmi.study.findings.study import Study

__all__ = ['load_table']

_FILES = ('*.csv', '*.tsv', '*.jsonl', '*.parquet', '*.csv.gz', '*.tsv.gz', '*.jsonl.gz')


def load_table(path: Path, against: Sequence[str] = (), lower: Sequence[str] = ()) -> Study:
    """Read a table of scores, or predictions of rows.

    A table of scores has the columns `setting`, `arm`, `seed`, `score`; further columns of numbers are scores too.
    Predictions have `setting`, `arm`, `seed`, `row` (or `id`, `example_id`), `label`, and a column of probabilities for
    each class (named as the class, or `p_`, `prob_`, `proba_`, `logit_` and the class), or `prediction`, or both. In a
    folder of files a missing `setting`, `arm` or `seed` is read off the path: `SETTING/ARM/seed0.csv`.

    Args:
        path: a CSV, TSV, JSONL or Parquet file, or a folder of predictions in such files.
        against: baselines; the first arm that is named by default.
        lower: columns of scores whose lower values are better, beside those known by name (nll, loss, error, ...).

    Raises:
        ConfigError: in one sentence a fault with file and line, the first twenty of each file.
    """
    try:
        if path.is_dir():
            return study_of_answers(_read_folder(path), path, against)
        table = read_table(path, keep_faults=True)
        if 'label' in table.columns and 'score' not in table.columns:
            return study_of_answers({path: table}, path, against)
        return study_of_scores(table, path, against, lower)
    except (DataError, FileNotFoundError, OSError) as error:
        raise ConfigError(str(error)) from error


def _read_folder(folder: Path) -> dict[Path, Table]:
    # A report that was written into the folder is none of its files.
    reports = {found.parent for found in folder.rglob('report.json')}
    files = sorted(path for pattern in _FILES for path in folder.rglob(pattern) if reports.isdisjoint(path.parents))
    if not files:
        raise ConfigError(f'There is no file of predictions ({", ".join(_FILES[:4])}) below {str(folder)!r}.')
    read = in_one_go({str(path): lambda path=path: read_table(path, keep_faults=True) for path in files})
    return {Path(name): table for name, table in read.items()}
