"""A temperature fitted on rows that were not trained on, in the exported model: numbers, families, whole runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.pipelines import pipeline

from composer_cmi.data.task_data import load_task_data
from composer_cmi.errors import ConfigError
from composer_cmi.run.calibrate.diagram import plot_reliability, wilson
from composer_cmi.run.calibrate.reliability import reliability
from composer_cmi.run.calibrate.temperature import best_temperature, divide_head, fit_temperature, inputs_of
from composer_cmi.run.command import run_file
from composer_cmi.run.config.schema import DataConfig
from composer_cmi.run.evaluate import Evaluation
from composer_cmi.run.outputs.results import RunResults, load_results
from composer_cmi.run.scoring import brier_score
from composer_cmi.teachers.pretrained import fit_tokenizer
from run_tools import SENTENCES, make_all, make_model, predictions
from test_families import FAMILIES, make_family


def answers(n: int, scale: float, seed: int = 0) -> Evaluation:
    """Labels drawn from softmax(logits / scale): the right temperature is `scale`."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, 4, generator=generator)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    return Evaluation(torch.arange(n), labels, logits * scale, torch.zeros(n, 1))


@pytest.mark.parametrize('scale', [0.25, 1.0, 3.0])
def test_the_temperature_of_a_known_scale_is_found(scale):
    assert fit_temperature(answers(8000, scale)) == pytest.approx(scale, rel=0.05)


def test_where_all_rows_are_right_the_temperature_stays_finite_and_grows_bolder_with_rows():
    def right(n: int) -> float:
        labels = torch.arange(n) % 2
        logits = torch.stack([1.0 - 2 * labels, 2.0 * labels - 1], dim=1)
        return fit_temperature(Evaluation(torch.arange(n), labels, logits, torch.zeros(n, 1)))

    # Half of one row of n + 1 counts as wrong: the margin 2 / T is ln((n + 0.5) / 0.5).
    assert [right(n) for n in (10, 1000)] == pytest.approx([2 / np.log(21), 2 / np.log(2001)], rel=1e-3)


def test_rows_without_labels_are_not_looked_at():
    found = answers(500, 2.0)
    labels = torch.cat([found.labels, torch.full((500,), -100)])
    logits = torch.cat([found.logits, torch.randn(500, 4) * 50])
    both = Evaluation(torch.arange(1000), labels, logits, torch.zeros(1000, 1))
    assert fit_temperature(both) == fit_temperature(found)


def test_never_worse_on_the_rows_it_is_fitted_on():
    found = answers(50, 1.0, seed=3)
    logits, labels = found.logits.double().numpy(), found.labels.numpy()
    temperature = best_temperature(logits, labels)
    at = [float(cross_entropy(found.logits / t, found.labels)) for t in (temperature, 1.0)]
    assert at[0] <= at[1]


def test_brier_score_by_hand():
    logits = torch.tensor([[0.75, 0.25], [0.5, 0.5], [0.9, 0.1]]).log()
    assert brier_score(logits, torch.tensor([0, 1, -100])) == pytest.approx((2 * 0.25**2 + 2 * 0.5**2) / 2)


def test_wilsons_interval_is_that_of_statsmodels():
    proportion = pytest.importorskip('statsmodels.stats.proportion')
    for right, rows in ((0, 3), (5, 5), (7, 20), (400, 1000)):
        assert wilson(right, rows) == pytest.approx(
            proportion.proportion_confint(right, rows, method='wilson'), abs=1e-6
        )


def test_reliability_counts_every_row_once():
    part = reliability(answers(300, 2.0))
    assert sum(part.rows) == 300 and len(part.rows) == 15
    share = sum(part.right) / 300
    mean = sum(n * c for n, c in zip(part.rows, part.confidence, strict=True)) / 300
    assert mean - share == pytest.approx(part.ece, abs=0.02)  # overconfident in every bin that matters


@pytest.mark.parametrize('name', FAMILIES)
def test_the_head_of_every_family_is_divided(name, tmp_path):
    make_family(tmp_path, name)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    fit_tokenizer(model, tokenizer)
    inputs = inputs_of(model, tokenizer, [SENTENCES['food'][0]], 16)
    before = model.eval()(**inputs).logits
    divide_head(model, inputs, 2.5)
    torch.testing.assert_close(model(**inputs).logits, before / 2.5, rtol=1e-4, atol=1e-6)
    divide_head(model, inputs, 0.4)
    torch.testing.assert_close(model(**inputs).logits, before, rtol=1e-4, atol=1e-6)


def test_a_head_that_is_no_linear_layer_is_refused_and_left_as_it_was(tmp_path):
    make_model(tmp_path / 'model')
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / 'model').eval()
    inputs = inputs_of(model, AutoTokenizer.from_pretrained(tmp_path / 'model'), ['heavy rain'], 16)
    model.classifier.register_forward_hook(lambda module, given, output: torch.nn.functional.normalize(output, dim=-1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ConfigError, match='calibrate: the logits of BertForSequenceClassification are not made by one'):
        divide_head(model, inputs, 2.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


# --- whole runs ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('calibrated')
    make_all(folder, optimizer={'lr': 0.05})
    return folder


def run(folder: Path, name: str, *overrides: str) -> RunResults:
    assert run_file(str(folder / 'run.yaml'), [f'run_name={name}', 'calibrate=0.25', *overrides]) == 0
    results = load_results(folder / 'runs' / name)
    assert results is not None and results.calibration is not None
    return results


@pytest.fixture(scope='module')
def calibrated(folder) -> RunResults:
    return run(folder, 'whole')


def test_rows_are_taken_out_of_training_and_said_so(folder, calibrated):
    config = DataConfig(path=str(folder / 'data'))  # pyright: ignore[reportCallIssue]
    whole, cut = load_task_data('custom', config), load_task_data('custom', config, calibrate=0.25)
    assert cut.calibration is not None
    assert {*cut.train.joined()} | {*cut.calibration.joined()} == {*whole.train.joined()}
    assert not {*cut.train.joined()} & {*cut.calibration.joined()}
    assert cut.fingerprint != whole.fingerprint and cut.eval_splits['dev'].joined() == whole.eval_splits['dev'].joined()
    rows = len(cut.calibration)
    assert calibrated.num_examples['train'] + rows == 24 and calibrated.calibration.rows == rows
    assert calibrated.num_examples['calibration'] == rows and 'data: calibration' in calibrated.fingerprints
    told = f'{rows} training rows are kept out of training, to fit a temperature (calibrate), a rough one'
    assert any(note.startswith(told) for note in calibrated.notes)


def test_text_that_a_temperature_is_fitted_on_is_no_transfer_text_either(folder):
    config = {'path': str(folder / 'data'), 'unlabelled': str(folder / 'more.txt')}
    lines = (folder / 'data' / 'train.tsv').read_text().splitlines()[1:]
    (folder / 'more.txt').write_text('\n'.join(line.split('\t')[0] for line in lines) + '\n')
    cut = load_task_data('custom', DataConfig(**config), calibrate=0.25)  # pyright: ignore[reportCallIssue]
    assert cut.calibration is not None and cut.unlabelled is not None
    assert not {*cut.calibration.text_keys()} & {*cut.unlabelled.text_keys()}


def test_results_hold_what_the_temperature_changed(folder, calibrated):
    parts = calibrated.calibration.splits['dev']
    rows = predictions(folder / 'runs' / 'whole')
    logits = torch.tensor([[float(row['logit_0']), float(row['logit_1'])] for row in rows])
    labels = torch.tensor([int(row['label']) for row in rows])
    temperature = calibrated.calibration.temperature
    assert temperature != 1
    assert parts['after'].nll == pytest.approx(float(cross_entropy(logits, labels)), rel=1e-5)
    assert parts['before'].nll == pytest.approx(float(cross_entropy(logits * temperature, labels)), rel=1e-4)
    assert calibrated.scores['dev']['nll'] == parts['after'].nll
    assert calibrated.scores['dev']['ece'] == parts['after'].ece
    assert json.loads((folder / 'runs' / 'whole' / 'results.json').read_text())['calibration']['splits']['dev'][
        'before'
    ]


def test_card_table_and_picture_say_it(folder, calibrated, capsys):
    assert run_file(str(folder / 'run.yaml'), ['run_name=whole', 'calibrate=0.25']) == 0
    shown = capsys.readouterr().out
    assert 'finished before' in shown and 'temperature, in the scores above' in shown
    assert 'dev brier, without -> with it' in shown
    told = (
        f'Temperature {calibrated.calibration.temperature:.3g}, fitted on {calibrated.calibration.rows} rows kept out'
    )
    assert told in (folder / 'runs' / 'whole' / 'model' / 'README.md').read_text()
    assert (folder / 'runs' / 'whole' / 'calibration.png').read_bytes().startswith(b'\x89PNG')


def pipeline_probabilities(folder: Path, texts: list[str]) -> torch.Tensor:
    classify = pipeline('text-classification', model=str(folder / 'model'), device='cpu')
    found = [{one['label']: one['score'] for one in answer} for answer in classify(texts, top_k=None, truncation=True)]
    return torch.tensor([[answer['food'], answer['weather']] for answer in found])


def agrees(folder: Path, name: str) -> None:
    lines = (folder / 'data' / 'dev.tsv').read_text().splitlines()[1:]
    rows = predictions(folder / 'runs' / name)
    logits = torch.tensor([[float(row['logit_0']), float(row['logit_1'])] for row in rows])
    found = pipeline_probabilities(folder / 'runs' / name, [line.split('\t')[0] for line in lines])
    torch.testing.assert_close(found, logits.softmax(-1), rtol=0, atol=1e-6)


def test_the_pipeline_gives_the_calibrated_probabilities(folder, calibrated):
    agrees(folder, 'whole')


def test_adapters_are_merged_and_divided(folder):
    results = run(folder, 'lora', 'peft={r: 2, lora_alpha: 8, target_modules: [query, value]}')
    assert results.calibration.temperature != 1
    agrees(folder, 'lora')


def test_a_student_is_calibrated_beside_kept_weights(folder):
    make_model(folder / 'teacher', seed=3)
    teacher = f'{{teacher: {folder}/teacher, allow_weak_teacher: true, assume_same_labels: true}}'
    results = run(folder, 'student', f'algorithms.knowledge_distillation={teacher}', 'train.keep_best=nll')
    assert results.selection is not None
    agrees(folder, 'student')


def test_without_calibrate_nothing_is_divided(folder, capsys):
    assert run_file(str(folder / 'run.yaml'), ['run_name=plain']) == 0
    results = load_results(folder / 'runs' / 'plain')
    assert results is not None and results.calibration is None
    assert not (folder / 'runs' / 'plain' / 'calibration.png').exists()
    assert run_file(str(folder / 'run.yaml'), ['run_name=plain', 'calibrate=0.25']) == 2
    assert 'holds a finished run with calibrate = None, not 0.25' in capsys.readouterr().err


def test_a_share_that_leaves_nothing_is_refused(folder, capsys):
    assert run_file(str(folder / 'run.yaml'), ['run_name=none', 'calibrate=0.001']) == 2
    assert 'leaves nothing on one side' in capsys.readouterr().err


def test_the_diagram_is_drawn_of_bins_without_rows_too(tmp_path, calibrated):
    plot_reliability(tmp_path / 'd.png', 'a title $x$', calibrated.calibration)
    assert [path.name for path in tmp_path.iterdir()] == ['d.png']
