"""Own data by `datasets.load_dataset`: a folder of data files stands in for the Hub, by the very same call."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest

from composer_cmi.data.check import check_data
from composer_cmi.data.own_files import may_be_on_hub
from composer_cmi.data.readers import DataError
from composer_cmi.data.task_data import load_task_data
from composer_cmi.run.command import run_file
from composer_cmi.run.config import build_config
from composer_cmi.run.outputs.results import load_results
from composer_cmi.study.trial.files import base_run
from composer_cmi.study.trial.look import look_at
from composer_cmi.study.trial.trial import _places
from config_tools import refused
from run_tools import make_data, make_model, make_yaml


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Splits as a data set on the Hub has them: train, validation and test, as CSV files."""
    monkeypatch.setenv('HF_DATASETS_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', str(tmp_path / 'cache'))
    datasets.disable_progress_bars()
    made = make_data(tmp_path / 'data')
    hub = tmp_path / 'hub'
    hub.mkdir()
    for source, target in (('train', 'train'), ('dev', 'validation')):
        text = (made / f'{source}.tsv').read_text().replace('\t', ',')
        (hub / f'{target}.csv').write_text(text)
    return hub


def load(hub: str | Path, **options):
    return load_task_data('custom', SimpleNamespace(path=None, hub=str(hub), **options))


def test_the_splits_of_a_data_set_are_read(folder):
    data = load(folder)
    assert list(data.eval_splits) == ['dev'] and data.label_names == ('food', 'weather')
    own = load_task_data('custom', SimpleNamespace(path=str(folder.parent / 'data')))
    assert data.train.joined() == own.train.joined() and (data.train.labels == own.train.labels).all()
    assert data.fingerprint == own.fingerprint


def test_a_configuration_is_passed_on(folder):
    (folder / 'README.md').write_text(
        '---\nconfigs:\n- config_name: small\n  data_files:\n  - split: train\n    path: train.csv\n'
        '- config_name: turned\n  data_files:\n  - split: train\n    path: validation.csv\n---\n'
    )
    assert len(load(folder, hub_config='small').train) > len(load(folder, hub_config='turned').train)


def test_the_very_call_gets_the_name_and_the_revision(monkeypatch):
    asked = []

    def hub(name, config, *, revision):  # a mock: there is no hub here
        asked.append((name, config, revision))
        return {'train': datasets.Dataset.from_dict({'text': ['a b', 'c d', 'e f', 'g h'] * 5, 'label': [0, 1] * 10})}

    monkeypatch.setattr(datasets, 'load_dataset', hub)
    data = load('owner/name', hub_config='c', hub_revision='v1')
    assert asked == [('owner/name', 'c', 'v1')] and len(data.train) + len(data.eval_splits['dev']) == 20


def test_a_look_and_a_trial_take_the_name_too(tmp_path, monkeypatch):
    def hub(name, config, *, revision):  # a mock: there is no hub here
        return {'train': datasets.Dataset.from_dict({'text': [f'word {i}' for i in range(40)], 'label': [0, 1] * 20})}

    monkeypatch.setattr(datasets, 'load_dataset', hub)
    monkeypatch.chdir(tmp_path)
    found = check_data('owner/name').data
    assert found is not None and len(found.train) + len(found.eval_splits['dev']) == 40
    place, out = _places('owner/name', None)
    assert place == {'hub': 'owner/name'} and out == tmp_path / 'runs' / 'try_name'
    seen = look_at('embedded:minilm', place)
    assert seen.rows == len(found.train)
    run = base_run(out, 'embedded:minilm', place, seen, 10)
    assert build_config(run).data.hub == 'owner/name'


@pytest.mark.parametrize(
    ('name', 'may'),
    [
        *(('owner/name', True), ('stanfordnlp/imdb', True), ('a-b/c_d.v2', True)),
        *(('imdb', False), ('here/train', False), ('x/train.csv', False), ('x/rows.JSONL.gz', False)),
        *(('/x/y', False), ('./x/y', False), ('../y', False), ('~/y', False), ('a/b/c', False), ('a/', False)),
    ],
)
def test_a_missing_file_is_not_looked_for_on_the_hub(tmp_path, monkeypatch, name, may):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'here').mkdir()
    assert may_be_on_hub(name) == may
    if not may:
        with pytest.raises(FileNotFoundError, match='is no file or folder, no task .* no OWNER/NAME of the Hub'):
            check_data(name)


def test_without_a_connection_one_sentence(monkeypatch):
    def hub(*args, **kwargs):
        raise ConnectionError("Couldn't reach 'owner/name' on the Hub\nat all")

    monkeypatch.setattr(datasets, 'load_dataset', hub)
    with pytest.raises(DataError, match=r"data\.hub: 'owner/name' cannot be had \(ConnectionError: Couldn't") as caught:
        load('owner/name')
    assert '\n' not in str(caught.value) and 'save_to_disk' in str(caught.value)


def test_what_is_not_for_this_door_is_refused(folder, tmp_path):
    with pytest.raises(DataError, match='needs data.path .* not both'):
        load_task_data('custom', SimpleNamespace(path=str(folder), hub=str(folder)))
    datasets.Dataset.from_dict({'text': ['a'], 'label': [0]}).save_to_disk(str(tmp_path / 'saved'))
    with pytest.raises(DataError, match='was written by save_to_disk: give it as data.path'):
        load(tmp_path / 'saved')
    with pytest.raises(DataError, match=r'data\.hub is for task: custom; task bbc_headlines brings its own'):
        load_task_data('bbc_headlines', SimpleNamespace(path=None, hub='owner/name'))
    (folder / 'train.csv').unlink()
    with pytest.raises(DataError, match=r'has no split train; it holds validation\.'):
        load(folder)


def test_a_configuration_without_a_name_is_refused(tmp_path):
    assert 'hub_config belongs to data.hub, which is not given' in refused(tmp_path, 'data.hub_config=small')


def test_a_run_of_a_data_set_by_name(folder, tmp_path, capsys):
    make_model(tmp_path / 'model')
    data = {'hub': str(folder), 'max_length': 16, 'cache_dir': str(tmp_path / 'tokens')}
    assert run_file(str(make_yaml(tmp_path, data=data)), []) == 0, capsys.readouterr().err
    results = load_results(tmp_path / 'runs' / 'tiny')
    assert results is not None and results.num_examples['train'] == 24
