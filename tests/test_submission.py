from __future__ import annotations

import numpy as np
import pytest

from composer_cmi.registry import get_task
from composer_cmi.run.readers import DataError
from composer_cmi.run.submission import write_submission


def test_files_are_named_and_ordered_as_the_leaderboard_wants(tmp_path):
    ids = np.arange(146)[::-1]
    path = write_submission(get_task('wnli'), 'test', ids, ids % 2, tmp_path / 'out')
    lines = path.read_text().splitlines()
    assert path.name == 'WNLI.tsv'
    assert lines[:4] == ['index\tprediction', '0\t0', '1\t1', '2\t0']
    assert len(lines) == 147
    path = write_submission(get_task('mnli'), 'test_mismatched', range(9847), [i % 3 for i in range(9847)], tmp_path)
    assert path.name == 'MNLI-mm.tsv'
    assert path.read_text().splitlines()[1:4] == ['0\tentailment', '1\tneutral', '2\tcontradiction']


def test_incomplete_files_are_refused(tmp_path):
    wnli = get_task('wnli')
    with pytest.raises(DataError, match=r'every one of the 146 test rows is wanted once; here are 145 predictions'):
        write_submission(wnli, 'test', range(145), [0] * 145, tmp_path)
    with pytest.raises(DataError, match='147 predictions, 146 different'):
        write_submission(wnli, 'test', [*range(146), 0], [0] * 147, tmp_path)
    with pytest.raises(DataError, match='2 is no class index of task wnli'):
        write_submission(wnli, 'test', range(146), [2] * 146, tmp_path)
    with pytest.raises(DataError, match="no leaderboard file for split 'dev'; it has them for test"):
        write_submission(wnli, 'dev', range(146), [0] * 146, tmp_path)
    assert not list(tmp_path.iterdir())
