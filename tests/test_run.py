"""Whole runs of a tiny BERT through the command line's own function."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from typer.testing import CliRunner

from composer_cmi import metrics
from composer_cmi.cli import app, run_file
from composer_cmi.run.outputs import read_history
from composer_cmi.run.results import load_results
from run_tools import make_all, make_data, make_model, make_yaml

ROOT = Path(__file__).parents[1]


def predictions(folder: Path, split: str = 'dev') -> list[dict[str, str]]:
    with (folder / f'predictions_{split}.csv').open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope='module')
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('finished')
    assert run_file(str(make_all(folder)), []) == 0
    return folder


def test_a_run_leaves_every_file_of_the_run_folder(finished):
    folder = finished / 'runs' / 'tiny'
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        'config.yaml',
        'results.json',
        'history.csv',
        'predictions_dev.csv',
        'checkpoints',
        'model',
        'cmi.png',
    }
    assert not [name for name in names if name.endswith('.tmp')]
    assert (folder / 'cmi.png').read_bytes().startswith(b'\x89PNG')
    assert '## Citation' in (folder / 'model' / 'README.md').read_text()


def test_results_hold_what_the_predictions_say(finished):
    folder = finished / 'runs' / 'tiny'
    results, rows = load_results(folder), predictions(folder)
    assert results is not None
    assert len(rows) == results.num_examples['dev'] == 7
    assert [int(row['example_id']) for row in rows] == list(range(7))
    accuracy = sum(row['label'] == row['prediction'] for row in rows) / 7
    assert results.primary_score == pytest.approx(accuracy)
    assert results.timing.steps == 9
    assert results.majority['dev'] == pytest.approx(4 / 7)
    assert results.config['optimizer']['lr'] == 1e-3
    # CMI once more, by the torchmetrics class, from the logits in the file.
    logits = torch.tensor([[float(row['logit_0']), float(row['logit_1'])] for row in rows])
    metric = metrics.ConditionalMutualInformation(num_classes=2)
    metric.update(logits, torch.tensor([int(row['label']) for row in rows]))
    assert results.cmi['after']['logits'].cmi == pytest.approx(metric.compute().item(), rel=1e-5)
    assert results.cmi['before']['logits'].cmi != results.cmi['after']['logits'].cmi


def test_the_history_has_loss_cmi_and_score_by_step(finished):
    history = read_history(finished / 'runs' / 'tiny' / 'history.csv')
    assert [row['step'] for row in history if 'loss/train/total' in row] == list(range(9))
    assert [row['step'] for row in history if 'cmi/cmi' in row] == list(range(9))
    scored = [row for row in history if 'metrics/dev/Accuracy' in row]
    assert [row['step'] for row in scored] == [3, 6, 9]
    results = load_results(finished / 'runs' / 'tiny')
    assert results is not None
    assert scored[-1]['metrics/dev/Accuracy'] == pytest.approx(results.primary_score)


def test_the_exported_model_answers_as_the_run_did(finished):
    folder = finished / 'runs' / 'tiny'
    classify = transformers.pipeline('text-classification', model=str(folder / 'model'))
    lines = (finished / 'data' / 'dev.tsv').read_text().splitlines()[1:]
    answers = [answer['label'] for answer in classify([line.split('\t')[0] for line in lines])]
    names = ['food', 'weather']
    assert answers == [names[int(row['prediction'])] for row in predictions(folder)]


def test_a_finished_run_is_not_run_again_and_another_one_is_refused(finished, capsys):
    results = finished / 'runs' / 'tiny' / 'results.json'
    before = results.stat().st_mtime_ns
    assert run_file(str(finished / 'run.yaml'), []) == 0
    assert 'finished before' in capsys.readouterr().out
    assert results.stat().st_mtime_ns == before
    assert run_file(str(finished / 'run.yaml'), ['optimizer.lr=2e-3']) == 2
    assert 'finished run with optimizer.lr = 0.001, not 0.002' in capsys.readouterr().err


def test_a_run_folder_is_a_model_for_the_next_run(finished, capsys):
    overrides = [
        'run_name=next',
        f'model.name_or_path={finished}/runs/tiny',
        'train.max_duration=1ba',
        'optimizer.lr=1e-9',
    ]
    assert run_file(str(finished / 'run.yaml'), overrides) == 0
    first, second = (load_results(finished / 'runs' / name) for name in ('tiny', 'next'))
    assert first is not None and second is not None
    assert second.cmi['before']['features'].cmi == pytest.approx(first.cmi['after']['features'].cmi, rel=1e-4)


def test_arms_start_equal_and_are_set_side_by_side(tmp_path, capsys):
    arms = {'ce': {'algorithms.cmi_regularization.weight': 0}, 'cmi': {'algorithms.cmi_regularization.weight': 5}}
    path = make_all(tmp_path, arms=arms, model={'name_or_path': str(tmp_path / 'model'), 'keep_layers': [1]})
    assert run_file(str(path), []) == 0
    printed = capsys.readouterr().out
    assert 'dev accuracy' in printed and 'CMI, features' in printed and 'runs/tiny' in printed
    ce, cmi = (load_results(tmp_path / 'runs' / 'tiny' / name) for name in arms)
    assert ce is not None and cmi is not None
    assert ce.cmi['before'] == cmi.cmi['before']
    assert cmi.cmi['after']['features'].cmi < ce.cmi['after']['features'].cmi
    config = json.loads((tmp_path / 'runs' / 'tiny' / 'ce' / 'model' / 'config.json').read_text())
    assert config['num_hidden_layers'] == 1


def test_a_chain_of_arms_hands_the_teacher_to_the_student(tmp_path, capsys):
    arms = {
        'ce_teacher': {'train.max_duration': '10ep'},
        'maxcmi_teacher': {
            'model.name_or_path': 'arm:ce_teacher',
            'algorithms.cmi_maximization': {'weight': 0.2, 'start': '0dur'},
        },
        'student': {
            'model.keep_layers': [0],
            'data.labelled_rows': 12,
            'algorithms.knowledge_distillation': {
                'teacher': 'arm:maxcmi_teacher',
                'cache': str(tmp_path / 'logits'),
                'allow_weak_teacher': True,
            },
        },
    }
    assert run_file(str(make_all(tmp_path, arms=arms, algorithms={})), []) == 0
    ce, maxcmi, student = (load_results(tmp_path / 'runs' / 'tiny' / name) for name in arms)
    assert ce is not None and maxcmi is not None and student is not None
    assert maxcmi.cmi['before']['logits'].cmi == pytest.approx(ce.cmi['after']['logits'].cmi, rel=1e-4)
    assert maxcmi.cmi['after']['logits'].cmi > maxcmi.cmi['before']['logits'].cmi
    assert student.num_examples['train'] == 12 and student.num_examples['unlabelled'] == 12
    assert student.timing.steps == 9  # the rows without labels are trained on too
    assert student.teacher is not None
    assert student.teacher['accuracy'] == pytest.approx(maxcmi.primary_score)
    assert 'teacher accuracy' in capsys.readouterr().out


def test_a_teacher_at_chance_is_refused_before_the_student_trains(tmp_path, capsys):
    """An untrained teacher scores the commonest class at best; the word for it lets it pass."""
    teacher = make_model(tmp_path / 'teacher', seed=3)
    config = transformers.AutoConfig.from_pretrained(teacher)
    config.id2label, config.label2id = {0: 'food', 1: 'weather'}, {'food': 0, 'weather': 1}
    model = transformers.AutoModelForSequenceClassification.from_pretrained(teacher, config=config)
    torch.nn.init.zeros_(model.classifier.weight)  # it answers the same class always
    model.save_pretrained(teacher)
    path = str(make_all(tmp_path, algorithms={'knowledge_distillation': {'teacher': str(teacher)}}))
    assert run_file(path, []) == 2
    assert 'commonest class' in capsys.readouterr().err
    assert not (tmp_path / 'runs' / 'tiny' / 'checkpoints').exists()
    assert run_file(path, ['algorithms.knowledge_distillation.allow_weak_teacher=true']) == 0


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


def test_a_killed_run_resumes_into_the_same_result_and_one_history(tmp_path):
    flag = tmp_path / 'flag'
    (tmp_path / 'crash.py').write_text(CRASH)
    algorithms = {'cmi_regularization': {'start': '0.5dur'}, 'crash_once': {'flag': str(flag)}}
    changes = {'algorithms': algorithms, 'code_paths': [str(tmp_path / 'crash.py')]}
    path = make_all(tmp_path, **changes)
    assert run_file(str(path), ['run_name=whole']) == 0
    flag.touch()
    with pytest.raises(RuntimeError, match='killed'):
        run_file(str(path), [])
    assert not (tmp_path / 'runs' / 'tiny' / 'results.json').exists()
    assert run_file(str(path), []) == 0
    whole, resumed = tmp_path / 'runs' / 'whole', tmp_path / 'runs' / 'tiny'
    assert predictions(resumed) == predictions(whole)
    histories = [read_history(folder / 'history.csv') for folder in (whole, resumed)]
    for name in ('loss/train/total', 'cmi/cmi', 'metrics/dev/Accuracy'):
        series = [[(row['step'], row[name]) for row in history if name in row] for history in histories]
        assert series[0] == series[1], name
    results = [load_results(folder) for folder in (whole, resumed)]
    assert results[0] is not None and results[1] is not None
    assert results[0].cmi == results[1].cmi


def test_an_interrupted_run_with_other_settings_is_refused(tmp_path, capsys):
    flag = tmp_path / 'flag'
    (tmp_path / 'crash.py').write_text(CRASH)
    path = make_all(tmp_path, algorithms={'crash_once': {'flag': str(flag)}}, code_paths=[str(tmp_path / 'crash.py')])
    flag.touch()
    with pytest.raises(RuntimeError, match='killed'):
        run_file(str(path), [])
    assert run_file(str(path), ['seed=3']) == 2
    assert 'holds an interrupted run with seed = 17, not 3' in capsys.readouterr().err


@pytest.mark.parametrize('precision', ['amp_bf16', 'amp_fp16'])
def test_mixed_precision_on_a_cpu_is_refused(tmp_path, capsys, precision):
    assert run_file(str(make_all(tmp_path)), [f'train.precision={precision}']) == 2
    assert 'needs a GPU' in capsys.readouterr().err


BAD_INPUT = {
    'missing YAML file': ([], 'none.yaml', r'There is no file'),
    'unknown key': (['train.batch_sise=8'], None, r"unknown key 'train.batch_sise'. Did you mean 'batch_size'?"),
    'wrong type': (['train.batch_size=many'], None, r'train.batch_size: input should be a valid integer'),
    'unknown task': (['task=rtt'], None, r"Unknown task 'rtt'. Did you mean 'rte'?"),
    'regression': (['task=stsb'], None, r'STS-B'),
    'missing data': (['data.path=nowhere'], None, r'nowhere'),
    'no such model': (['model.name_or_path=./nowhere'], None, r"there is no folder './nowhere'"),
    'folder without a model': (['model.name_or_path={tmp}/data'], None, r'neither a Hugging Face model'),
    'too long for the model': (['data.max_length=64'], None, r'64 is more than the 32 positions of the model'),
    'no such layer': (
        ['model.keep_layers=[0, 5]'],
        None,
        r'model.keep_layers: [0, 5] must be different numbers from 0 to 1',
    ),
    'bad algorithm argument': (
        ['algorithms.cmi_regularization.space=labels'],
        None,
        r'algorithms.cmi_regularization: ',
    ),
    'bad weight': (['algorithms.cmi_regularization.weight=-1'], None, r'algorithms.cmi_regularization: '),
    'bad feature module': (['algorithms.cmi_regularization.feature_module=bert.poler'], None, r'bert.pooler'),
    'no such peft target': (['peft.target_modules=[nothing]'], None, r'peft: '),
    'unknown peft key': (['peft.rank=8'], None, r"unknown key 'peft.rank'"),
    'unknown fsdp key': (['fsdp.shard=1'], None, r"unknown key 'fsdp.shard'"),
    'warm-up of the whole run': (['scheduler.warmup=1dur'], None, r'scheduler.warmup: 9 steps leave nothing'),
    'label that the task does not have': (['data.labels=[food, sport]'], None, r'weather'),
    'more rows than there are': (['data.train_rows=1000'], None, r'1000'),
}


@pytest.mark.parametrize('case', BAD_INPUT)
def test_bad_input_is_one_sentence_and_an_exit_code_before_training(tmp_path, capsys, case):
    overrides, file, sentence = BAD_INPUT[case]
    path = make_all(tmp_path)
    path = tmp_path / file if file else path
    assert run_file(str(path), [override.format(tmp=tmp_path) for override in overrides]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert 'Traceback' not in error
    assert error.startswith('composer-cmi: ') and len(error.strip().splitlines()) == 1
    assert not list((tmp_path / 'runs').glob('**/checkpoints/*'))


def test_files_that_are_no_data_are_refused(tmp_path, capsys):
    path = make_all(tmp_path)
    train = tmp_path / 'data' / 'train.tsv'
    for text, sentence in (
        ('', 'empty'),
        ('text\tlabel\n', 'train.tsv'),
        ('text\tlabel\na b\tfood\nc d\tfood\n', 'class'),
        ('text\tlabel\na b\t0.5\nc d\t2.75\ne f\t3.1\n', 'train.tsv'),
    ):
        train.write_text(text)
        assert run_file(str(path), []) == 2, text
        error = capsys.readouterr().err
        assert sentence in error, error
        assert len(error.strip().splitlines()) == 1


def test_lora_trains_resumes_nothing_and_exports_a_merged_model(tmp_path):
    pytest.importorskip('peft')
    path = make_all(tmp_path, peft={'r': 4, 'lora_alpha': 8, 'target_modules': ['query', 'value']})
    assert run_file(str(path), []) == 0
    folder = tmp_path / 'runs' / 'tiny'
    assert not (folder / 'model' / 'adapter_config.json').exists()
    classify = transformers.pipeline('text-classification', model=str(folder / 'model'))
    texts = [line.split('\t')[0] for line in (tmp_path / 'data' / 'dev.tsv').read_text().splitlines()[1:]]
    names = ['food', 'weather']
    expected = [names[int(row['prediction'])] for row in predictions(folder)]
    assert [answer['label'] for answer in classify(texts)] == expected


def test_the_command_line_lists_and_runs(finished):
    runner = CliRunner()
    listed = runner.invoke(app, ['list', 'algorithms'])
    assert listed.exit_code == 0
    assert 'cmi_regularization' in listed.output and 'gradient_clipping' in listed.output
    assert runner.invoke(app, ['list', 'tsks']).exit_code == 2
    assert runner.invoke(app, ['run', str(finished / 'run.yaml')]).exit_code == 0
    assert runner.invoke(app, ['run', str(finished / 'none.yaml')]).exit_code == 2


def launch(ranks: int, path: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, '-m', 'composer.cli.launcher', '-n', str(ranks), str(ROOT / 'train.py'), str(path)]
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
    whole = launch(2, path, 'run_name=whole')
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
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / 'runs' / 'tiny' / 'model')
    assert model.config.id2label == {0: 'food', 1: 'weather'}


def test_helpers_make_disjoint_splits(tmp_path):
    folder = make_data(tmp_path / 'data')
    train, dev = (
        {line.split('\t')[0] for line in (folder / f'{n}.tsv').read_text().splitlines()} for n in ('train', 'dev')
    )
    assert train & dev == {'text'}
    make_model(tmp_path / 'model')
    assert make_yaml(tmp_path).is_file()
