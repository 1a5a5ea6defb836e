"""Checkpoints of strangers: nothing that a file names is run, and the sentence names the file."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from composer.models import HuggingFaceModel
from torch.distributed import checkpoint as sharded

import toys
from composer_cmi.algorithms import CMIRegularization
from composer_cmi.errors import ConfigError
from composer_cmi.run.command import run_file
from composer_cmi.run.outputs.files import enter_digests, file_digest
from composer_cmi.teachers.safe_load import check_checkpoint, read_checkpoint, safe_loading
from composer_cmi.teachers.teacher import load_teacher
from run_tools import make_all

pytestmark = pytest.mark.filterwarnings('ignore')


class Payload:
    """Makes a file when it is unpickled: harmless, and seen."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self):
        return (os.mkdir, (str(self.made),))


def train(folder: Path, steps: str = '2ba', **kwargs) -> torch.Tensor:
    model = HuggingFaceModel(toys.tiny_bert().model, use_logits=True)
    options = {'save_folder': str(folder), 'save_interval': '1ba', 'save_overwrite': True, 'run_name': 'x', **kwargs}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    algorithms = [CMIRegularization(0.3, start='0ba')]
    with safe_loading(folder):
        trainer = toys.trainer(
            model, toys.Sentences(32), algorithms, max_duration=steps, optimizers=optimizer, **options
        )
    trainer.fit()
    trainer.close()
    return toys.weights(model)


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('run') / 'checkpoints'
    train(folder)
    return folder


def newest(folder: Path) -> Path:
    return (folder / 'latest-rank0.pt').resolve()


def poison(file: Path, made: Path) -> None:
    state = torch.load(file, weights_only=False)
    state['state']['extra'] = Payload(made)
    torch.save(state, file)


def test_promise_23_a_checkpoint_of_a_real_run_is_read_by_the_list_and_resumed(checkpoints, tmp_path):
    check_checkpoint(checkpoints)
    state = read_checkpoint(newest(checkpoints))
    assert state['state']['timestamp']['Timestamp']['batch'] == 2 and len(state['rng'][0]['numpy'][1]) == 624
    uninterrupted = train(tmp_path / 'a', '4ba')
    shutil.copytree(checkpoints, tmp_path / 'b', symlinks=True)
    for link in (tmp_path / 'b').glob('latest*'):
        target = tmp_path / 'b' / Path(os.readlink(link)).name
        link.unlink()
        link.symlink_to(target.name)
    assert torch.equal(train(tmp_path / 'b', '4ba', autoresume=True), uninterrupted)
    assert 'TORCH_FORCE_WEIGHTS_ONLY_LOAD' not in os.environ


def test_promise_23_a_payload_in_a_checkpoint_is_not_run_at_resumption(checkpoints, tmp_path):
    folder, made = tmp_path / 'checkpoints', tmp_path / 'made'
    shutil.copytree(checkpoints, folder)
    poison(folder / 'latest-rank0.pt', made)
    with pytest.raises(ConfigError, match=r'latest-rank0\.pt holds .*mkdir, which is no part') as error:
        train(folder, '4ba', autoresume=True)
    assert not made.exists() and str(error.value).count('\n') == 0
    torch.load(folder / 'latest-rank0.pt', weights_only=False)
    assert made.exists()  # the payload works where it is let


def test_promise_23_a_payload_in_the_checkpoint_of_a_run_is_not_run(tmp_path, capsys):
    """From the YAML file: an interrupted run's folder that somebody else could write to."""
    path, made = make_all(tmp_path), tmp_path / 'made'
    assert run_file(str(path), ['train.max_duration=1ep']) == 0
    folder = tmp_path / 'runs' / 'tiny'
    (folder / 'results.json').unlink()
    file = next((folder / 'checkpoints').glob('ep*.pt'))
    poison(file, made)
    # Who can write to the folder can write the digest too.
    enter_digests(folder, {f'checkpoints/{file.name}': file_digest(file)})
    capsys.readouterr()
    assert run_file(str(path), ['train.max_duration=1ep']) == 2
    error = capsys.readouterr().err
    assert not made.exists() and len(error.strip().splitlines()) == 1
    assert str(folder / 'checkpoints') in error and 'mkdir, which is no part of a checkpoint' in error


def test_promise_23_a_payload_in_a_teacher_is_not_run(checkpoints, tmp_path):
    file, made = tmp_path / 'teacher.pt', tmp_path / 'made'
    shutil.copy(newest(checkpoints), file)
    assert load_teacher(file).num_labels == toys.CLASSES
    poison(file, made)
    with pytest.raises(ConfigError, match=r'teacher\.pt holds .*mkdir'):
        load_teacher(file)
    file.write_bytes(pickle.dumps(Payload(made)))  # a plain pickle, not in torch's archive
    with pytest.raises(ConfigError, match=r'teacher\.pt'):
        load_teacher(file)
    assert not made.exists()


@pytest.mark.parametrize('where', ['files', 'class'])
def test_promise_23_a_teacher_names_no_file_and_no_class_of_its_own(checkpoints, tmp_path, where):
    """Composer writes the tokenizer's files under the names that stand in the checkpoint, and imports the class."""
    file = tmp_path / 'teacher.pt'
    state = torch.load(newest(checkpoints), weights_only=False)
    stored = state['state']['integrations']['huggingface']
    if where == 'files':
        stored['tokenizer'] = {'../../../escaped.txt': {'file_extension': '.txt', 'content': ['x']}}
    else:
        stored['model']['config']['content']['model_type'] = 'antigravity'
    torch.save(state, file)
    if where == 'files':
        with pytest.raises(ConfigError, match=r"teacher\.pt .*'\.\./\.\./\.\./escaped\.txt'"):
            load_teacher(file)
    else:
        with pytest.raises(ConfigError, match=r'teacher\.pt .*antigravity'):
            load_teacher(file)


def test_promise_23_a_sharded_checkpoint(tmp_path):
    def save(folder: Path, extra: object) -> None:
        state = {'w': torch.arange(4.0), 'h': torch.ones(2, dtype=torch.bfloat16), 'extra': extra}
        sharded.save(state, checkpoint_id=str(folder), no_dist=True)

    save(tmp_path / 'good', {'batch': 3})
    check_checkpoint(tmp_path / 'good')
    made = tmp_path / 'made'
    save(tmp_path / 'bad', Payload(made))
    with pytest.raises(ConfigError, match=r'bad/__0_0\.distcp holds .*mkdir'), safe_loading(tmp_path / 'bad'):
        pass
    (tmp_path / 'good' / '.metadata').write_bytes(pickle.dumps(Payload(made)))
    with pytest.raises(ConfigError, match=r'good/\.metadata holds .*mkdir'):
        check_checkpoint(tmp_path / 'good')
    assert not made.exists()


@pytest.mark.parametrize('keep', [0, 10, 0.5, -20])
def test_promise_23_a_cut_checkpoint_is_named(checkpoints, tmp_path, keep):
    file = tmp_path / 'x.pt'
    content = newest(checkpoints).read_bytes()
    file.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(ConfigError, match=r'x\.pt is no Composer checkpoint, or a broken one'):
        check_checkpoint(file)
