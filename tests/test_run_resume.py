"""Whole runs that are killed and run again, on two ranks, and from shards: the same result and one history."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

from composer_cmi.run.command import run_file
from composer_cmi.run.outputs.history import read_history
from composer_cmi.run.outputs.results import load_results
from run_tools import make_all, predictions

ROOT = Path(__file__).parents[1]

CRASH = """
from pathlib import Path
from composer.core import Algorithm, Event
from composer_cmi.registry import register_algorithm

@register_algorithm('crash_once')
class CrashOnce(Algorithm):
    def __init__(self, flag: str): self.flag = Path(flag)
    def match(self, event, state): return event == Event.BATCH_END and state.timestamp.batch == 8 and self.flag.exists()
    def apply(self, event, state, logger):
        self.flag.unlink()
        raise RuntimeError('killed')
"""


@pytest.mark.parametrize('precision', ['fp32', 'amp_bf16'])
def test_a_killed_run_resumes_into_the_same_result_and_one_history(tmp_path, precision):
    flag = tmp_path / 'flag'
    (tmp_path / 'crash.py').write_text(CRASH)
    algorithms = {'cmi_regularization': {'start': '0.5dur'}, 'crash_once': {'flag': str(flag)}}
    # The last checkpoint before the end at step 8 lies within an epoch, whose first rows have been measured by then.
    changes = {
        'algorithms': algorithms,
        'code_paths': [str(tmp_path / 'crash.py')],
        'checkpoint': {'save_interval': '7ba'},
    }
    path = make_all(tmp_path, **changes)
    asked = [f'train.precision={precision}']
    assert run_file(str(path), ['run_name=whole', *asked]) == 0
    flag.touch()
    assert run_file(str(path), asked) == 70
    assert 'killed' in (tmp_path / 'runs' / 'tiny' / 'error.txt').read_text()
    assert not (tmp_path / 'runs' / 'tiny' / 'results.json').exists()
    assert run_file(str(path), asked) == 0
    whole, resumed = tmp_path / 'runs' / 'whole', tmp_path / 'runs' / 'tiny'
    assert predictions(resumed) == predictions(whole)
    histories = [read_history(folder / 'history.csv') for folder in (whole, resumed)]
    measured = [f'metrics/train/{name}' for name in ('nll', 'accuracy', 'cmi', 'relative_cmi')]
    for name in ('loss/train/total', 'cmi/cmi', 'metrics/dev/Accuracy', 'metrics/dev/cmi', *measured):
        series = [[(row['step'], row[name]) for row in history if name in row] for history in histories]
        assert series[0] == series[1] and len(series[0]) >= 3, name
    results = [load_results(folder) for folder in (whole, resumed)]
    assert results[0] is not None and results[1] is not None
    assert results[0].cmi == results[1].cmi


def test_an_interrupted_run_with_other_settings_is_refused(tmp_path, capsys):
    flag = tmp_path / 'flag'
    (tmp_path / 'crash.py').write_text(CRASH)
    path = make_all(tmp_path, algorithms={'crash_once': {'flag': str(flag)}}, code_paths=[str(tmp_path / 'crash.py')])
    flag.touch()
    assert run_file(str(path), []) == 70
    assert run_file(str(path), ['seed=3']) == 2
    assert 'holds an interrupted run with seed = 17, not 3' in capsys.readouterr().err


def launch(ranks: int, path: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    entry = [str(ROOT / 'train.py')] if ranks == 1 else ['-m', 'composer_cmi']  # either way of naming the same
    command = [sys.executable, '-m', 'composer.cli.launcher', '-n', str(ranks), *entry, str(path)]
    return subprocess.run([*command, *overrides], capture_output=True, text=True, timeout=240, cwd=ROOT)


@pytest.mark.slow
def test_two_ranks_find_what_one_rank_finds(tmp_path):
    path = make_all(tmp_path)
    outputs = [launch(ranks, path, f'run_name=ranks{ranks}') for ranks in (1, 2)]
    assert [output.returncode for output in outputs] == [0, 0], outputs[1].stderr
    assert outputs[1].stdout.count('dev accuracy') == 1
    rows = [predictions(tmp_path / 'runs' / f'ranks{ranks}') for ranks in (1, 2)]
    assert [row['example_id'] for row in rows[0]] == [row['example_id'] for row in rows[1]]
    for one, two in zip(*rows, strict=True):
        assert float(one['logit_0']) == pytest.approx(float(two['logit_0']), abs=1e-5)
    # 7 evaluated rows: one rank is given a row more, which counts on no rank.
    histories = [read_history(tmp_path / 'runs' / f'ranks{ranks}' / 'history.csv') for ranks in (1, 2)]
    for name in ('train/nll', 'train/accuracy', 'train/cmi', 'dev/cmi', 'dev/mutual_information'):
        series = [[row[f'metrics/{name}'] for row in history if f'metrics/{name}' in row] for history in histories]
        assert len(series[0]) == 3 and series[0] == pytest.approx(series[1], rel=1e-3), name


WITNESS = """
import json
from pathlib import Path
from composer.core import Algorithm, Event
from composer.utils import dist
from torch.distributed.tensor import DTensor
from composer_cmi.registry import register_algorithm

@register_algorithm('witness')
class Witness(Algorithm):
    def __init__(self, folder: str): self.folder = Path(folder)
    def match(self, event, state): return event == Event.FIT_START
    def apply(self, event, state, logger):
        parameters = dict(state.model.named_parameters())
        shards = [p for p in parameters.values() if isinstance(p, DTensor)]
        seen = {
            'batch': int(state.timestamp.batch),
            'parameters': len(parameters),
            'shards': len(shards),
            'here': sum(p.to_local().numel() for p in shards),
            'whole': sum(p.numel() for p in shards),
        }
        number = len(list(self.folder.glob(f'rank{dist.get_global_rank()}-*')))
        (self.folder / f'rank{dist.get_global_rank()}-{number}.json').write_text(json.dumps(seen))
"""


@pytest.mark.slow
def test_fsdp_trains_resumes_from_shards_and_exports(tmp_path):
    flag, seen = tmp_path / 'flag', tmp_path / 'seen'
    seen.mkdir()
    (tmp_path / 'crash.py').write_text(CRASH)
    (tmp_path / 'witness.py').write_text(WITNESS)
    path = make_all(
        tmp_path,
        fsdp={},
        checkpoint={'save_sharded': True},
        code_paths=[str(tmp_path / 'crash.py'), str(tmp_path / 'witness.py')],
        algorithms={'cmi_regularization': {'start': '0.5dur'}},
    )
    # With a plugin's code too: there the last layer is computed in full, which changes last bits.
    (tmp_path / 'aside').mkdir()
    whole = launch(2, path, 'run_name=whole', f'algorithms.witness.folder={tmp_path / "aside"}')
    assert whole.returncode == 0, whole.stderr
    flag.touch()
    extra = [f'algorithms.crash_once.flag={flag}', f'algorithms.witness.folder={seen}']
    assert launch(2, path, *extra).returncode != 0
    # One shard a rank of model and optimizer, of the last whole epoch.
    checkpoints = tmp_path / 'runs' / 'tiny' / 'checkpoints'
    assert sorted(file.name for file in checkpoints.rglob('ep2-ba6/*.distcp')) == ['__0_0.distcp', '__1_0.distcp']
    assert all(file.is_symlink() for file in checkpoints.rglob('*.pt'))  # the name of the latest, no weights
    resumed = launch(2, path, *extra)
    assert resumed.returncode == 0, resumed.stderr
    for rank in (0, 1):
        first, second = (json.loads((seen / f'rank{rank}-{start}.json').read_text()) for start in (0, 1))
        # The second start goes on after the last whole epoch. Every parameter is sharded and a rank holds half of it;
        # at the first start the forward passes that measure CMI have just left the outermost ones whole.
        assert 0 < first['shards'] < first['parameters'] == second['parameters'] == second['shards']
        assert second['here'] == pytest.approx(second['whole'] / 2, rel=0.05)
        assert (first['batch'], second['batch']) == (0, 6)
    folders = [tmp_path / 'runs' / name for name in ('whole', 'tiny')]
    for one, two in zip(*map(predictions, folders), strict=True):
        assert float(one['logit_0']) == pytest.approx(float(two['logit_0']), abs=1e-5)
    # The centroids and CMI_0 came back with the shards: the term goes on as if nothing had happened.
    for name in ('loss/train/total', 'cmi/cmi', 'cmi/loss'):
        series = [[row[name] for row in read_history(folder / 'history.csv') if name in row] for folder in folders]
        assert len(series[0]) == 9 and series[0] == pytest.approx(series[1], rel=1e-4), name
        assert any(series[0]), name
    for name in ('metrics/train/nll', 'metrics/train/cmi', 'metrics/dev/cmi'):
        series = [[row[name] for row in read_history(folder / 'history.csv') if name in row] for folder in folders]
        assert len(series[0]) == 3 and series[0] == pytest.approx(series[1], rel=1e-3), name
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / 'runs' / 'tiny' / 'model')
    assert model.config.id2label == {0: 'food', 1: 'weather'}
