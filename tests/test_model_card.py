"""What the hub reads of a card: scores as a model index, where the model comes from, as far as it is known."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from composer_cmi.run.outputs.model_card import write_model_card
from test_outputs import results

SCORES = {'dev': {'accuracy': 0.75, 'nll': 0.5}, 'test': {'accuracy': 0.7}}
FOREIGN = '---\nlicense: mit\nlanguage: [en, de]\nbase_model: other/model\ntags: [x]\n---\n# A model\n'


def card(tmp_path: Path, model: str = 'owner/model-1.0', **changes) -> ModelCard:
    run = results(**changes)
    run.config['model']['name_or_path'] = model
    write_model_card(tmp_path / 'README.md', run, ['no', 'yes'])
    return ModelCard.load(tmp_path / 'README.md')


def test_scores_are_a_model_index_that_reads_back(tmp_path):
    data = card(tmp_path, scores=SCORES, num_examples={'train': 10, 'dev': 4, 'test': 3}).data
    assert data.model_name == 'x/seed1' and data.metrics == ['accuracy'] and data.pipeline_tag == 'text-classification'
    found = {(one.dataset_split, one.metric_type): one.metric_value for one in data.eval_results}
    assert found == {('dev', 'accuracy'): 0.75, ('dev', 'nll'): 0.5, ('test', 'accuracy'): 0.7}
    first = data.eval_results[0]
    assert (first.task_type, first.dataset_type, first.dataset_config) == ('text-classification', 'nyu-mll/glue', 'rte')
    assert data.datasets == ['nyu-mll/glue'] and data.language == 'en' and data.base_model == 'owner/model-1.0'
    front = (tmp_path / 'README.md').read_text().split('---\n')[1]
    assert 'null' not in front and yaml.safe_load(front)['model-index'][0]['name'] == 'x/seed1'


def test_own_data_are_called_by_their_file_and_are_on_no_hub(tmp_path):
    run = results(task='custom')
    run.config['data']['path'] = '/home/me/reviews.csv'
    write_model_card(tmp_path / 'README.md', run, ['no', 'yes'])
    data = ModelCard.load(tmp_path / 'README.md').data
    assert (data.eval_results[0].dataset_type, data.eval_results[0].dataset_name) == ('custom', 'reviews.csv')
    assert data.datasets is None and data.language is None and '/home/me' not in str(data)


def test_licence_and_language_are_those_of_the_model_that_was_fine_tuned(tmp_path):
    base = tmp_path / 'base'
    base.mkdir()
    (base / 'config.json').touch()
    assert card(tmp_path, str(base), task='custom').data.license is None
    (base / 'README.md').write_text(FOREIGN)
    data = card(tmp_path, str(base), task='custom').data
    assert (data.license, data.language) == ('mit', ['en', 'de'])
    assert data.base_model is None  # that of the folder is where the folder comes from, not its name
    run = tmp_path / 'run'
    (run / 'model').mkdir(parents=True)
    (run / 'model' / 'README.md').write_text(FOREIGN.replace('[x]', '[composer-cmi]'))
    assert card(tmp_path, str(run)).data.base_model == 'other/model'


def test_the_embedded_model_is_known(tmp_path):
    data = card(tmp_path, 'embedded:minilm', task='custom').data
    assert (data.base_model, data.license) == ('sentence-transformers/all-MiniLM-L6-v2', 'apache-2.0')


@pytest.mark.parametrize(
    'text', ['---\nlicense: [\n---\n', '---\nlicense: {a: 1}\n---\n', '---\nlanguage: "\\u202ex"\n---\n', 'no', '']
)
def test_a_strangers_card_spoils_nothing(tmp_path, text):
    (tmp_path / 'base').mkdir()
    (tmp_path / 'base' / 'config.json').touch()
    (tmp_path / 'base' / 'README.md').write_text(text)
    data = card(tmp_path, str(tmp_path / 'base'), task='custom').data
    assert data.license is None and data.language is None


@pytest.mark.parametrize('name', ['registered:thing', '/no/such/folder', './x', 'a/b/c'])
def test_what_is_no_name_on_the_hub_is_no_base_model(tmp_path, name):
    assert card(tmp_path, name).data.base_model is None
