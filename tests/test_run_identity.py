"""A run folder belongs to one run: what has changed is named, one process works in it, and what is damaged is noticed."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from composer_cmi.run.command import run_file
from composer_cmi.run.outputs.folder import locked
from composer_cmi.run.outputs.results import load_results
from fault_tools import cut, flip, interrupted
from run_tools import make_all, make_model, predictions


def other_weights(root: Path) -> None:
    path = root / 'model' / 'model.safetensors'
    tensors = load_file(path)
    tensors['classifier.bias'] = tensors['classifier.bias'] + 1
    save_file(tensors, path, metadata={'format': 'pt'})


def edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new, 1))

    return change


# What is changed: how, and what the sentence says was changed.
CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    'a training text': (edit('data/train.tsv', 'heavy rain', 'some rain'), 'data: train was'),
    'a training label': (edit('data/train.tsv', '\tweather', '\tfood'), 'data: train was'),
    'a dev label': (edit('data/dev.tsv', '\tweather', '\tfood'), 'data: dev was'),
    'weights': (other_weights, 'model: model.safetensors was'),
    'model config': (
        edit('model/config.json', '"num_attention_heads": 2', '"num_attention_heads": 4'),
        'config.json was',
    ),
    'tokenizer': (edit('model/vocab.txt', 'bake\n', 'baked\n'), 'model: vocab.txt was'),
    'user code': (edit('fault.py', 'killed', 'ended'), 'fault.py was'),
}


@pytest.fixture(scope='module')
def folders(tmp_path_factory) -> dict[str, Path]:
    """Below `interrupted` a run that has crashed, below `finished` the same one, to its end."""
    found = {state: tmp_path_factory.mktemp(state) for state in ('interrupted', 'finished')}
    for state, folder in found.items():
        path, _ = interrupted(folder)
        if state == 'finished':
            assert run_file(path, []) == 0
    return found


@pytest.mark.parametrize('state', ['interrupted', 'finished'])
@pytest.mark.parametrize('change', CHANGES)
def test_promise_16_other_contents_at_the_same_paths_are_refused(folders, state, change, capsys):
    root = folders[state]
    make, words = CHANGES[change]
    kept = {path: path.read_bytes() for path in root.rglob('*') if path.is_file() and 'runs' not in path.parts}
    before = sorted((path, path.stat().st_mtime_ns) for path in (root / 'runs').rglob('*') if path.name != '.lock')
    make(root)
    try:
        assert run_file(str(root / 'run.yaml'), []) == 2
        said = capsys.readouterr().err
        assert words in said and ', is ' in said and 'choose another run_name, or delete the folder' in said
        assert said.count('\n') == 1
        after = sorted((path, path.stat().st_mtime_ns) for path in (root / 'runs').rglob('*') if path.name != '.lock')
        assert [path for path, _ in after] == [path for path, _ in before]
    finally:
        for path, content in kept.items():
            path.write_bytes(content)


def test_promise_16_another_teacher_at_the_same_path_is_refused(tmp_path, capsys):
    teacher = tmp_path / 'teacher'
    shutil.copytree(make_model(tmp_path / 'made', seed=3), teacher)
    config = (teacher / 'config.json').read_text()
    names = '"id2label": {"0": "food", "1": "weather"}, "label2id": {"food": 0, "weather": 1},'
    (teacher / 'config.json').write_text(config.replace('{', '{' + names, 1))
    distillation = {'teacher': str(teacher), 'allow_weak_teacher': True}
    path = str(make_all(tmp_path, algorithms={'knowledge_distillation': distillation}))
    assert run_file(path, []) == 0
    assert run_file(path, []) == 0
    tensors = load_file(teacher / 'model.safetensors')
    tensors['classifier.bias'] = tensors['classifier.bias'] + 1
    save_file(tensors, teacher / 'model.safetensors', metadata={'format': 'pt'})
    capsys.readouterr()
    assert run_file(path, []) == 2
    assert f'teacher: {teacher}/model.safetensors was' in capsys.readouterr().err


def test_promise_16_a_checkpoint_says_itself_which_run_it_is_of(tmp_path, capsys):
    path, folder = interrupted(tmp_path)
    (folder / 'config.yaml').unlink()
    (folder / 'identity.json').unlink()
    for _ in range(2):  # the refused start has left nothing that would make the next one pass
        assert run_file(path, ['optimizer.lr=0.5']) == 2
        assert 'optimizer.lr = 0.001, not 0.5' in capsys.readouterr().err
    other = torch.load(folder / 'checkpoints' / 'ep2-ba6-rank0.pt', weights_only=False)
    assert '"optimizer.lr": 0.001' in other['state']['callbacks']['CheckedCheckpoints']['identity']


def test_promise_16_without_autoresume_old_checkpoints_are_not_left_for_the_next_start(tmp_path, capsys):
    path, folder = interrupted(tmp_path)
    (tmp_path / 'flag').touch()
    changes = ['optimizer.lr=0.002', 'algorithms.fault.batch=2']
    assert run_file(path, [*changes, 'checkpoint.autoresume=false']) == 70  # before its own first checkpoint
    assert 'the checkpoints of an earlier start' in capsys.readouterr().out
    assert not [*(folder / 'checkpoints').glob('ep*')]
    assert run_file(path, changes) == 0
    assert run_file(path, [*changes, 'run_name=anew']) == 0
    assert predictions(folder) == predictions(tmp_path / 'runs' / 'anew')


def test_promise_16_the_second_process_in_a_folder_says_who_is_there(tmp_path, capsys):
    path = str(make_all(tmp_path))
    folder = tmp_path / 'runs' / 'tiny'
    with locked(folder):
        assert run_file(path, []) == 2
        said = capsys.readouterr().err
        assert f'is in use by process {os.getpid()} on ' in said and ' since ' in said and said.count('\n') == 1
    assert not folder.exists()  # nothing came of either
    assert run_file(path, []) == 0
    with (folder / '.lock').open() as file:  # let go of at the end
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize('harm', [flip, cut])
def test_promise_16b_a_damaged_checkpoint_is_named_and_deleting_it_is_the_way_out(tmp_path, capsys, harm):
    path, folder = interrupted(tmp_path)
    checkpoint = folder / 'checkpoints' / 'ep2-ba6-rank0.pt'
    harm(checkpoint)
    assert run_file(path, []) == 2
    assert f'The checkpoint {checkpoint} is damaged' in capsys.readouterr().err
    checkpoint.unlink()
    assert run_file(path, []) == 0
    assert run_file(path, ['run_name=whole']) == 0
    assert predictions(folder) == predictions(tmp_path / 'runs' / 'whole')


def test_promise_16b_the_checkpoint_before_a_damaged_one_is_taken_where_it_was_kept(tmp_path):
    path, folder = interrupted(tmp_path, checkpoint={'num_keep': 2})
    assert {file.name for file in (folder / 'checkpoints').glob('ep*')} == {'ep1-ba3-rank0.pt', 'ep2-ba6-rank0.pt'}
    flip(folder / 'checkpoints' / 'ep2-ba6-rank0.pt')
    with pytest.warns(UserWarning, match='ep2-ba6-rank0.pt is damaged: the run goes on from .* ep1-ba3-rank0.pt'):
        assert run_file(path, []) == 0
    assert {file.name for file in (folder / 'checkpoints').glob('ep*')} == {'ep2-ba6-rank0.pt', 'ep2-ba9-rank0.pt'}
    assert run_file(path, ['run_name=whole']) == 0
    assert predictions(folder) == predictions(tmp_path / 'runs' / 'whole')


@pytest.mark.parametrize('harm', [flip, cut])
@pytest.mark.parametrize('name', ['before.json', 'identity.json', 'digests.json'])
def test_promise_16b_every_file_of_an_interrupted_run_is_checked(tmp_path, capsys, folders, name, harm):
    shutil.copytree(folders['interrupted'] / 'runs', tmp_path / 'runs')
    file, arguments = tmp_path / 'runs' / 'tiny' / name, [f'output_dir={tmp_path / "runs"}']
    harm(file)
    path = str(folders['interrupted'] / 'run.yaml')
    assert run_file(path, arguments) == 2
    said = capsys.readouterr().err
    assert f'{file} is damaged' in said and 'delete it' in said
    file.unlink()
    assert run_file(path, arguments) == 0
    results = load_results(tmp_path / 'runs' / 'tiny')
    assert results is not None and ('before' in results.cmi) == (name != 'before.json')


def test_promise_16b_damaged_results_are_written_anew_from_the_last_checkpoint(tmp_path, capsys, folders):
    shutil.copytree(folders['finished'] / 'runs', tmp_path / 'runs')
    folder, path = tmp_path / 'runs' / 'tiny', str(folders['finished'] / 'run.yaml')
    first = load_results(folder)
    flip(folder / 'results.json', 0.3)
    assert run_file(path, [f'output_dir={tmp_path / "runs"}']) == 2
    assert f'{folder / "results.json"} is damaged' in capsys.readouterr().err
    (folder / 'results.json').unlink()
    assert run_file(path, [f'output_dir={tmp_path / "runs"}']) == 0
    second = load_results(folder)
    assert first is not None and second is not None and first.scores == second.scores and first.cmi == second.cmi


def test_promise_16_a_folder_of_an_earlier_version_goes_on_with_a_remark(tmp_path, folders):
    shutil.copytree(folders['interrupted'] / 'runs', tmp_path / 'runs', symlinks=True)
    folder, path = tmp_path / 'runs' / 'tiny', str(folders['interrupted'] / 'run.yaml')
    for name in ('digests.json', 'identity.json'):
        (folder / name).unlink()
    checkpoint = folder / 'checkpoints' / 'ep2-ba6-rank0.pt'
    saved = torch.load(checkpoint, weights_only=False)
    del saved['state']['callbacks']['CheckedCheckpoints']
    torch.save(saved, checkpoint)
    with pytest.warns(UserWarning, match='is of an earlier version: only its settings could be compared'):
        assert run_file(path, [f'output_dir={tmp_path / "runs"}']) == 0
    assert predictions(folder) == predictions(folders['finished'] / 'runs' / 'tiny')
