"""The small version of `make glue-smoke`: two tasks, their rows equal from files and from a `datasets` cache."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / 'benchmarks'))

import glue_rows  # noqa: E402
import glue_smoke  # noqa: E402
from composer_cmi.data.task_data import load_task_data, load_test_splits  # noqa: E402
from composer_cmi.registry import get_task  # noqa: E402
from composer_cmi.run.config import DataConfig  # noqa: E402

QUICK = {'train.max_duration': '3ba', 'train.eval_interval': '0ba', 'checkpoint.save_interval': '3ba'}


def test_all_tasks_read_the_same_from_files_and_from_a_datasets_cache(tmp_path):
    sizes = {'train': 40, 'dev': 11, 'test': 5}
    tasks = [get_task(name) for name in glue_smoke.TASKS]
    files, caches = glue_rows.make_glue(tmp_path, tasks, sizes)
    for task in tasks:
        one, other = (load_task_data(task, DataConfig(path=str(path))) for path in (files, caches))
        assert one.fingerprint == other.fingerprint, task.name
        assert len(one.train) == 40 and [len(split) for split in one.eval_splits.values()] == [11] * len(
            task.eval_splits
        )
        assert all(np.unique(one.train.labels) == np.arange(task.num_classes))
        tests = [load_test_splits(task, DataConfig(path=str(path))) for path in (files, caches)]
        for name in task.test_splits:
            assert tests[0][name].joined() == tests[1][name].joined()
            assert tests[0][name].labels.tolist() == [-100] * 5
    # Official quirks are there to be read: no header, a byte order mark, a broken row.
    assert (files / 'CoLA' / 'dev.tsv').read_text().startswith('-\t')
    assert (files / 'MRPC' / 'msr_paraphrase_train.txt').read_bytes().startswith(b'\xef\xbb\xbf')
    assert any('1 broken rows' in note for note in load_task_data('qqp', DataConfig(path=str(files))).notes)


def test_two_tasks_run_the_recipes_and_the_student_learns_from_the_teacher(tmp_path):
    results, wrong = glue_smoke.smoke(tmp_path, ['mnli'], glue_smoke.RECIPES, ['files'], overrides=QUICK)
    more, also_wrong = glue_smoke.smoke(tmp_path / 'b', ['mrpc'], ['bert_glue_mincmi'], overrides=QUICK)
    assert not wrong and not also_wrong
    one = results['mnli', 'files', 'bert_glue_mincmi']
    assert [list(scores) for scores in one.scores.values()] == [['accuracy', 'nll', 'ece']] * 2
    assert list(one.scores) == ['dev_matched', 'dev_mismatched'] and one.metric == 'accuracy'
    student = results['mnli', 'files', 'distilbert_glue_kd']
    assert student.teacher is not None and 'bert_maxcmi_teacher' in student.teacher['source']
    pair = [more['mrpc', source, 'bert_glue_mincmi'] for source in ('files', 'datasets')]
    assert list(pair[0].scores['dev']) == ['f1', 'accuracy', 'nll', 'ece']
    assert pair[0].scores == pair[1].scores and pair[0].cmi == pair[1].cmi
    printed = glue_smoke.table(more)
    assert list(printed.columns[-1].cells) == ['files = datasets']
    # What the table would be silent about is not.
    spoilt = pair[0].model_copy(update={'metric': 'accuracy', 'scores': {'dev': {'accuracy': float('nan')}}})
    found = ' '.join(glue_smoke.problems(get_task('mrpc'), spoilt))
    assert (
        "primary metric is 'accuracy', not 'f1'" in found and "has the metrics ['accuracy']" in found and 'nan' in found
    )
