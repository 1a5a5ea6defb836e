"""`composer-cmi try`: what is planned for the time there is, and what is recommended for what was found."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from composer_cmi.errors import ConfigError
from composer_cmi.run.config import load_config
from composer_cmi.study.config import load_study
from composer_cmi.study.execution.plan import plan_reported, plan_tuning
from composer_cmi.study.execution.refusals import check_cells
from composer_cmi.study.findings.analysis import compare
from composer_cmi.study.findings.study import load_runs
from composer_cmi.study.trial import files
from composer_cmi.study.trial.decision import decide
from composer_cmi.study.trial.look import look_at
from composer_cmi.study.trial.page import write_page
from composer_cmi.study.trial.plan import CONTROL, Pace, Recipe, plan_trial, recipes, wanted_steps
from composer_cmi.study.trial.trial import try_data
from report_tools import write_scored_run

MINILM = 'embedded:minilm'
PACE = Pace(overhead=8.0, step=0.2, jobs=2)
ARMS = ('ce', CONTROL, 'average', 'smoothing')


def written(folder: Path, counts: dict[str, int], name: str = 'mine.csv') -> Path:
    """Labelled text, so many rows a class, each row of its own words."""
    path = folder / name
    with path.open('w', newline='') as file:
        rows = csv.writer(file)
        rows.writerow(['text', 'label'])
        for label, count in counts.items():
            rows.writerows([f'{label} says number {i} of {count}', label] for i in range(count))
    return path


@pytest.fixture(scope='module')
def look(tmp_path_factory):
    return look_at(MINILM, {'path': str(written(tmp_path_factory.mktemp('data'), {'good': 200, 'bad': 200}))})


def test_what_is_seen_of_data_and_model(look):
    assert look.rows + look.eval_rows == 400
    assert (look.width, look.unlabelled, round(look.imbalance)) == (384, 0, 1)
    assert look.max_length == 16
    assert look.dropout == {'hidden_dropout_prob': 0.1, 'attention_probs_dropout_prob': 0.1}


def test_more_time_buys_recipes_then_seeds_and_the_plan_stays_inside(look):
    plans = [plan_trial(look, PACE, minutes) for minutes in (6, 10, 20, 60)]
    for plan, minutes in zip(plans, (6, 10, 20, 60), strict=True):
        assert plan.minutes <= minutes
        assert [recipe.name for recipe in plan.recipes][:3] == ['ce', CONTROL, 'average']
        assert plan.seeds >= 5
    sizes = [(plan.steps, len(plan.recipes), plan.seeds) for plan in plans]
    assert sizes == sorted(sizes)
    assert sizes[-1] == (wanted_steps(look.rows), 6, 8)
    assert not plans[-1].left_out
    assert not any(plan.cut for plan in plans)


def test_where_training_is_cut_short_it_says_so_with_the_time_that_would_do(look):
    many = dataclasses.replace(look, rows=3000)
    plan = plan_trial(many, PACE, 8)
    assert plan.steps < wanted_steps(3000) and f'is cut to {plan.steps} steps' in plan.cut
    assert plan.whole is not None and f'--minutes {plan.whole}' in plan.cut
    enough = plan_trial(many, PACE, plan.whole)
    assert (enough.steps, enough.cut) == (wanted_steps(3000), '')


def test_too_little_time_is_refused_with_what_would_do(look):
    with pytest.raises(ConfigError, match=r'--minutes 1 is too short: .* give --minutes (\d+)') as refused:
        plan_trial(look, PACE, 1)
    enough = float(str(refused.value).split('give --minutes ')[1].split(',')[0])
    assert plan_trial(look, PACE, enough).minutes <= enough


def test_what_the_text_and_the_teacher_are_given_for_is_compared_or_refused(look):
    given = dataclasses.replace(look, unlabelled=2000)
    with pytest.raises(ConfigError, match=r'--minutes 6 is too short: .* give --minutes (\d+)') as refused:
        plan_trial(given, PACE, 6, 'my/teacher')
    enough = float(str(refused.value).split('give --minutes ')[1].split(',')[0])
    names = [recipe.name for recipe in plan_trial(given, PACE, enough, 'my/teacher').recipes]
    assert names[:5] == ['ce', CONTROL, 'average', 'average_all_text', 'student']
    assert [recipe.name for recipe in plan_trial(given, PACE, enough).recipes][3] == 'average_all_text'
    assert [recipe.name for recipe in plan_trial(look, PACE, enough, 'my/teacher').recipes][3] == 'student'


def test_recipes_follow_the_data(tmp_path):
    def names(counts, **data):
        seen = look_at(MINILM, {'path': str(written(tmp_path, counts)), **data})
        return {recipe.name for recipe in recipes(seen, 96, data.get('teacher'))}

    assert 'class_weights' not in names({'a': 60, 'b': 50})
    assert 'class_weights' in names({'a': 100, 'b': 20})
    (tmp_path / 'more.txt').write_text('a text\nanother text\n')
    assert 'average_all_text' in names({'a': 60, 'b': 50}, unlabelled=str(tmp_path / 'more.txt'))


def test_every_recipe_is_a_run_and_no_two_are_the_same(tmp_path):
    path = written(tmp_path, {'good': 200, 'bad': 40})
    (tmp_path / 'more.txt').write_text(''.join(f'text {i}\n' for i in range(40)))
    data = {'path': str(path), 'unlabelled': str(tmp_path / 'more.txt')}
    seen = look_at(MINILM, data)
    plan = plan_trial(seen, PACE, 500, teacher=str(tmp_path))
    assert {recipe.name for recipe in plan.recipes} >= {'student', 'average_all_text', 'class_weights', 'dropout'}
    files.write_yaml(tmp_path / files.BASE, files.base_run(tmp_path, MINILM, data, seen, plan.short), 'base')
    files.write_yaml(tmp_path / files.STUDY, files.study_file(tmp_path, plan), 'study')
    study = load_study(tmp_path / files.STUDY)
    tuned = {('data', CONTROL): {'optimizer.lr': 1e-4, 'train.max_duration': '99ba'}}
    cells = [*plan_tuning(study), *plan_reported(study, tuned)]
    check_cells(study, cells)
    assert len(cells) == plan.runs
    for recipe in plan.recipes:
        base = files.base_run(tmp_path, MINILM, data, seen, plan.short)
        run = files.recommended_run(tmp_path, base, study, recipe.name, tuned['data', CONTROL])
        text = files.write_yaml(tmp_path / 'final.yaml', run, 'final')
        assert load_config(tmp_path / 'final.yaml').seed not in study.seeds
        assert 'arm:' not in text
        assert ('seed3' in text) == recipe.name.startswith('average')


def simulated(folder: Path, gains: dict[str, float], seed: int, classes_say_nothing: bool = False) -> Path:
    """A finished study of arms whose expected accuracies differ by `gains`; nothing is trained."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, 400)
    hard = rng.random(400)
    runs = {}
    for arm, gain in gains.items():
        for run in range(8):
            right = rng.random(400) < (0.5 if classes_say_nothing else np.clip(0.55 + 0.45 * hard + gain, 0, 1))
            logits = np.zeros((400, 2))
            logits[np.arange(400), np.where(right, labels, 1 - labels)] = 2.0
            share = float(max((labels == 0).mean(), (labels == 1).mean()))
            place = write_scored_run(folder / 'runs', 'data', arm, run, labels, logits, majority={'dev': share})
            runs[str(place.relative_to(folder))] = None
    plan = {'name': 'study', 'arms': list(gains), 'runs': list(runs), 'gain': 1.0}
    plan['comparisons'] = [[arm, CONTROL] for arm in gains if arm not in ('ce', CONTROL)] + [[CONTROL, 'ce']]
    (folder / 'study.json').write_text(json.dumps(plan))
    return folder


def decided(folder: Path):
    study = load_runs(folder)
    return decide(study, compare(study), [Recipe(arm, f'recipe {arm}', {}) for arm in ARMS])


def test_a_planted_better_recipe_is_found(tmp_path):
    decision = decided(simulated(tmp_path, dict.fromkeys(ARMS, 0.0) | {'smoothing': 0.08}, seed=1))
    assert decision.arm == 'smoothing'
    assert decision.sentences[0].startswith('Take recipe smoothing: +')
    assert '95 % interval [+' in decision.sentences[0]


def test_where_nothing_is_better_the_tuned_control_is_taken(tmp_path):
    for seed in range(8):
        decision = decided(simulated(tmp_path / str(seed), dict.fromkeys(ARMS, 0.0), seed))
        assert decision.arm == CONTROL
        assert 'no evidence that any of the 2 other recipes is better' in decision.sentences[0]
        assert 'would have been seen' in decision.notes[-1]


def test_of_pure_noise_nothing_is_recommended(tmp_path):
    for seed in range(8):
        folder = simulated(tmp_path / str(seed), dict.fromkeys(ARMS, 0.0), seed, classes_say_nothing=True)
        decision = decided(folder)
        assert decision.arm is None
        assert decision.sentences[0].startswith('Nothing is recommended')


def test_the_page_says_it_first_and_shows_user_text_as_text(look, tmp_path):
    study = load_runs(simulated(tmp_path / 'study', dict.fromkeys(ARMS, 0.0) | {'smoothing': 0.08}, seed=1))
    found = compare(study)
    plan = plan_trial(look, PACE, 60)
    decision = decide(study, found, plan.recipes)
    page = write_page(tmp_path, study, found, plan, look, decision, 'task: <b>custom</b>\n').read_text()
    body = page.split('<body>', 1)[1]
    assert body.index('Take smoothed labels') < body.index('<table')
    assert 'task: &lt;b&gt;custom' in page
    assert 'src="data:image/png' in page


def test_a_folder_of_something_else_or_of_another_question_is_refused(tmp_path):
    path = written(tmp_path, {'good': 60, 'bad': 60})
    out = tmp_path / 'out'
    out.mkdir()
    (out / 'thesis.tex').touch()
    with pytest.raises(ConfigError, match="holds 'thesis.tex' and no trial"):
        try_data(path, out)
    (out / 'thesis.tex').rename(out / files.ASKED)
    (out / files.ASKED).write_text(json.dumps({'data': {'path': str(path)}, 'model': MINILM, 'minutes': 5.0}))
    (out / files.STUDY).touch()
    with pytest.raises(ConfigError, match=r'holds a trial with minutes 5.0 and not 60.0'):
        try_data(path, out)
    for wrong, words in ((0, '--minutes must be above 0'), (float('nan'), '--minutes must be above 0')):
        with pytest.raises(ConfigError, match=words):
            try_data(path, tmp_path / 'new', minutes=wrong)
    with pytest.raises(ConfigError, match='must be a path or a pandas.DataFrame, got int'):
        try_data(3)
    with pytest.raises(ConfigError, match='there is no folder'):
        try_data(path, tmp_path / 'new', model='/no/such/model')


def test_faults_of_the_data_end_it_before_anything_is_written(tmp_path):
    (tmp_path / 'bad.csv').write_text('text,label\nonly one,a\nclass,a\n')
    with pytest.raises(ConfigError):
        try_data(tmp_path / 'bad.csv', tmp_path / 'out', console=Console(quiet=True))
    assert not (tmp_path / 'out' / files.STUDY).exists()
