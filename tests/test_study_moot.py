"""A study that would test nothing is refused before its first run: by kind, in every spelling and at every place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from composer_cmi.errors import ConfigError
from composer_cmi.run.config.loading import arm_configs, build_config, deep_merge, leaves, overlap, said_twice
from composer_cmi.study.config import _FIXED, _SCORED, load_study
from composer_cmi.study.execution.plain import _UNLEARNT
from composer_cmi.study.execution.plan import plan_reported, plan_tuning
from composer_cmi.study.execution.refusals import check_cells, rehearse_runs
from composer_cmi.study.findings.report import report
from report_tools import write_scored_run
from sweep_tools import BASE, TUNED, TWO_ARMS, events, quiet_sweep, write_study

TERM = 'algorithms.cmi_regularization'
TRIES = {'optimizer.lr': [1e-3, 2e-3]}
VALUES: dict[str, Any] = {
    'optimizer.lr': 5e-3,
    'train.max_duration': '9ba',
    'model.config_overrides.hidden_dropout_prob': 0.3,
    f'{TERM}.weight': 0.7,
}


def nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split('.')):
        value = {part: value}
    return value


def spellings(key: str, value: Any) -> list[dict[str, Any]]:
    section, _, rest = key.partition('.')
    return [{key: value}, *([nested(key, value), {section: {rest: value}}] if rest else [])]


def refused(folder: Path, words: str, **changes: Any) -> None:
    path = write_study(folder, {**TWO_ARMS, **changes})
    with pytest.raises(ConfigError, match=words) as caught:
        quiet_sweep(path)
    assert '\n' not in str(caught.value)
    assert not events(folder)


mappings = st.recursive(
    st.integers(0, 2) | st.just({}),
    lambda inner: st.dictionaries(st.sampled_from('ab'), inner, max_size=2),
    max_leaves=4,
).filter(lambda found: isinstance(found, dict))


@given(mappings, mappings)
def test_where_nothing_overlaps_no_order_loses_a_value(one, other):
    if overlap(leaves(one), leaves(other)) is None:
        assert deep_merge(one, other) == deep_merge(other, one)
        merged = dict(leaves(deep_merge(one, other)))
        assert all(merged[key] == value for key, value in (*leaves(one), *leaves(other)) if value != {})


@given(mappings)
def test_a_key_stands_twice_only_in_two_spellings(one):
    assert said_twice(one) is None
    for key, _ in leaves(one):
        dotted = {**one, key: 9}
        assert (said_twice(dotted) is not None) == (dotted.keys() != one.keys()), key


@pytest.mark.parametrize('key', VALUES)
@pytest.mark.parametrize('how', ['grid', 'tune'])
def test_promise_25_a_value_that_another_one_would_replace_is_refused(tmp_path, key, how):
    for given_there in spellings(key, VALUES[key]):
        for listed in spellings(key, VALUES[key]):
            lists = {name: [value] for name, value in listed.items()}
            arms = {'x': {'set': given_there, how: lists}}
            refused(tmp_path, f'arms.x: {key!r} stands in set, and in the values', arms=arms)
        settings = {'s': {'set': given_there, 'grid': {key: [VALUES[key]]}}}
        refused(tmp_path, f'settings.s: {key!r} stands in set', settings=settings)


@pytest.mark.parametrize('key', VALUES)
def test_a_value_in_two_spellings_is_refused(tmp_path, key):
    first, *others = spellings(key, VALUES[key])
    for other in others:
        refused(tmp_path, f'arms.x: {key!r} stands there twice', arms={'x': {**first, **other}})
        refused(tmp_path, f'tuning: {key!r} stands there twice', tuning={'set': {**first, **other}})
        config = build_config({**BASE, 'arms': {'ce': {}}})
        twice = config.model_copy(update={'arms': {'ce': {}, 'x': {**first, **other}}})
        with pytest.raises(ConfigError, match=f'arms.x: {key!r} stands there twice'):
            arm_configs(twice)


def test_a_value_that_a_tuned_arm_would_replace_is_refused(tmp_path):
    for given_there in spellings('optimizer.lr', 5e-3):
        arms = {'ce': {'tune': TRIES}, 'x': {'set': {**given_there, f'{TERM}.weight': 1}, 'tuned_as': 'ce'}}
        refused(tmp_path, "arms.x sets 'optimizer.lr', and tuned_as: ce puts what is chosen there", arms=arms)


def test_sections_that_share_no_value_go_together(tmp_path):
    arms = {
        'ce': {'tune': TRIES},
        'x': {'set': {TERM: {'form': 'plain'}, 'optimizer': {'weight_decay': 0.1}}, 'tune': {f'{TERM}.weight': [1, 2]}},
        'y': {'set': {TERM: {}}, 'tuned_as': 'ce'},
    }
    study = load_study(write_study(tmp_path, {**TWO_ARMS, 'arms': arms}))
    check_cells(study, plan_tuning(study))


@pytest.mark.parametrize('key', _FIXED)
def test_what_pairs_the_arms_is_fixed_in_every_spelling_and_at_every_place(tmp_path, key):
    for given_there in spellings(key, 3):
        words = f'sets {key!r}, which the study fixes'
        lists = {name: [value] for name, value in given_there.items()}
        refused(tmp_path, f'arms.x {words}', arms={'x': given_there})
        refused(tmp_path, f'arms.x {words}', arms={'x': {'grid': lists}})
        refused(tmp_path, f'arms.x {words}', arms={'x': {'tune': lists}})
        refused(tmp_path, f'settings.s {words}', settings={'s': given_there})
        refused(tmp_path, f'settings.s {words}', settings={'s': {'grid': lists}})
        refused(tmp_path, f'tuning {words}', tuning={'set': given_there})


@pytest.mark.parametrize('key', _SCORED)
def test_arms_are_scored_alike(tmp_path, key):
    for given_there in spellings(key, 'text'):
        refused(tmp_path, f'arms.x sets {key!r}: arms are scored alike', arms={'x': given_there})
        load_study(write_study(tmp_path, {**TWO_ARMS, 'settings': {'s': given_there}}))


def test_the_held_out_share_has_one_key(tmp_path):
    for given_there in spellings('data.validation_fraction', 0.5):
        refused(tmp_path, 'is the key tuning.validation_fraction', tuning={'set': given_there})


def test_promise_25_settings_whose_runs_are_the_same_are_refused(tmp_path):
    student = {'s': {'algorithms.knowledge_distillation': {'teacher': 'arm:ce'}}}
    for arms in (TWO_ARMS['arms'], {**TWO_ARMS['arms'], **student}):
        no_weight_depends_on_it = {'data.train_rows': 100, 'train.num_workers': 2}
        for twin in ({'data.train_rows': 100}, {'data': {'train_rows': 100}}, no_weight_depends_on_it):
            settings = {'one': {'data.train_rows': 100}, 'two': twin}
            refused(tmp_path, 'The settings one and two are the same runs', arms=arms, settings=settings)
    rates = {'grid': {'optimizer.lr': [1e-3, 2e-3]}}
    arms = {'ce': {'optimizer.lr': 5e-4}, 'x': {'optimizer.lr': 5e-4, TERM: {}}}
    refused(tmp_path, 'are the same runs: one set of data would count twice', arms=arms, settings={'s': rates})


@pytest.mark.parametrize(('section', 'key'), _UNLEARNT)
def test_promise_25_what_no_weight_depends_on_makes_no_arm(tmp_path, section, key):
    value = 'elsewhere' if key == 'cache_dir' else 2
    for given_there in spellings(f'{section}.{key}', value):
        refused(tmp_path, 'The arms ce and x are the same run', arms={'x': given_there})


def test_a_teacher_that_counts_for_nothing_makes_no_arm(tmp_path):
    section = {'teacher': 'arm:other', 'alpha': 0, 'cache': 'logits'}
    arms = {'other': {'optimizer.lr': 5e-3}, 'x': {'algorithms.knowledge_distillation': section}}
    refused(tmp_path, 'The arms ce and x are the same run', arms=arms)
    # Rows without labels are in its batches all the same.
    settings = {'s': {'data.train_rows': 100, 'data.labelled_rows': 50}}
    study = load_study(write_study(tmp_path, {**TWO_ARMS, 'arms': arms, 'settings': settings}))
    check_cells(study, plan_reported(study, {}))


@pytest.mark.parametrize(
    ('teachers', 'words'),
    [
        ({'x': 'arm:x'}, 'the arm x needs runs that wait for their own'),
        ({'x': 'arm:x@2'}, 'the arm x needs'),
        ({'x': 'arm:y', 'y': 'arm:x'}, 'the arms x and y need|the arms y and x need'),
        ({'x': 'arm:y', 'y': 'arm:z@1', 'z': ['arm:ce', 'arm:x']}, 'No run could be the first'),
        ({'x': ['arm:ce', 'arm:ce']}, 'The arm x names a run twice among its teachers'),
        ({'x': ['arm:ce@2', 'arm:ce@1']}, 'The arm x names a run twice'),
    ],
)
def test_teachers_that_wait_for_their_students_or_stand_twice_are_refused(tmp_path, teachers, words):
    arms = {name: {'algorithms.knowledge_distillation': {'teacher': teacher}} for name, teacher in teachers.items()}
    refused(tmp_path, words, arms=arms)


@pytest.mark.parametrize('name', ['cmi_regularization', 'cmi_maximization'])
@pytest.mark.parametrize('start', ['1dur', '12ep', '48ba', '1536sp'])
def test_promise_25_a_term_that_the_training_ends_before_is_refused(tmp_path, name, start):
    settings = {'s': {'data.train_rows': 100, 'train.max_duration': '12ep'}}
    words = rf'The arm x on s: algorithms.{name}.start: .* is not before the end of the training at 48 steps'
    refused(tmp_path, words, settings=settings, arms={'x': {f'algorithms.{name}': {'start': start}}})
    for good in ('0.99dur', '11ep', '47ba', '1504sp'):
        arms = {'x': {f'algorithms.{name}': {'start': good}}}
        study = load_study(write_study(tmp_path, {**TWO_ARMS, 'settings': settings, 'arms': arms}))
        rehearse_runs(study, plan_reported(study, {}))


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({TERM: {'tau': 0.2}}, "algorithms.cmi_regularization: tau=0.2 means nothing with form='scaled'"),
        ({'algorithms.cmi_maximization': {'space': 'centered', 'centroids': 'fixed'}}, 'algorithms.cmi_maximization: '),
        ({TERM: {}, 'callbacks.early_stopper': {'monitor': 'nll', 'patience': 'later'}}, 'callbacks.early_stopper'),
        ({TERM: {}, 'scheduler.warmup': '1dur'}, 'scheduler.warmup: .* steps leave nothing'),
        ({'model.keep_layers': [0, 9]}, r'model.keep_layers: \[0, 9\] must be different numbers from 0 to 5'),
        ({'model.config_overrides': {'hidden_dropout': 0.3}}, "unknown key 'model.config_overrides.hidden_dropout'"),
        ({TERM: {}, 'data.max_length': 1024}, 'data.max_length: 1024 is more than the 512 positions of the model'),
    ],
)
def test_promise_26_what_only_the_made_object_refuses_is_refused_before_the_first_run(tmp_path, changes, words):
    refused(tmp_path, words, arms={'x': changes})
    refused(tmp_path, words, arms={'ce': {'tune': TRIES}, 'x': {'set': changes, 'tune': TRIES}})


def test_a_pair_is_compared_one_way(tmp_path):
    pairs = [['mincmi', 'ce'], ['ce', 'mincmi']]
    refused(tmp_path, "'mincmi' and 'ce' stand there twice, once either way", comparisons=pairs)


def test_promise_25_the_report_says_which_arms_are_the_same_models(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 120)
    for seed in range(3):
        logits = rng.normal(size=(120, 2)) + np.eye(2)[labels]
        moved = logits.copy()
        moved[0, 0] += 1e-3 * (seed == 2)  # on one seed of three they differ
        for arm, values in {'ce': logits, 'same': logits, 'moved': moved}.items():
            write_scored_run(tmp_path, 'films', arm, seed, labels, values)
    text = next(path for path in report(tmp_path).values() if path.suffix == '.md').read_text()
    assert 'films: same and ce have the same predictions, to the last bit' in ' '.join(text.split())
    assert 'moved and ce have the same' not in ' '.join(text.split())


def test_the_report_says_where_tuning_chose_an_end_of_its_values(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 120)
    for arm in ('ce', 'middle', 'two'):
        write_scored_run(tmp_path, 'films', arm, 0, labels, rng.normal(size=(120, 2)))
    rates = {'ce': ([1e-4, 2e-4, 4e-4], 4e-4), 'middle': ([1e-4, 2e-4, 4e-4], 2e-4), 'two': ([1e-4, 2e-4], 2e-4)}
    rows = [
        {'setting': 'films', 'arm': arm, 'values': {'optimizer.lr': rate}, 'scores': [0.5], 'chosen': rate == chosen}
        for arm, (values, chosen) in rates.items()
        for rate in values
    ]
    (tmp_path / 'tuning.json').write_text(json.dumps([{**row, 'nll': [0.7]} for row in rows]))
    text = ' '.join(next(path for path in report(tmp_path).values() if path.suffix == '.md').read_text().split())
    assert 'films: tuning chose optimizer.lr = 0.0004 for ce, the greatest of 3 values' in text
    assert text.count('a better one may lie beyond') == 1
    assert 'Each try of tuning was one run, so that what was chosen is chance in part.' in text


@pytest.mark.parametrize(('seeds', 'said'), [(1, True), (2, False)])
def test_the_report_says_where_every_try_of_tuning_was_one_run(tmp_path, seeds, said):
    """Also where no choice lies at an end of its values."""
    rng = np.random.default_rng(0)
    write_scored_run(tmp_path, 'films', 'ce', 0, rng.integers(0, 2, 120), rng.normal(size=(120, 2)))
    tries = [
        {
            'setting': 'films',
            'arm': 'ce',
            'values': {'optimizer.lr': rate},
            'scores': [0.5] * seeds,
            'nll': [0.7] * seeds,
        }
        for rate in (1e-4, 2e-4, 4e-4)
    ]
    (tmp_path / 'tuning.json').write_text(json.dumps([{**row, 'chosen': i == 1} for i, row in enumerate(tries)]))
    text = ' '.join(next(path for path in report(tmp_path).values() if path.suffix == '.md').read_text().split())
    assert ('Each try of tuning was one run' in text) is said and 'may lie beyond' not in text


def test_a_sweep_says_before_its_first_run_what_it_cannot_decide(tmp_path):
    rows = [f'film number {i}\t{["pos", "neg"][i % 2]}' for i in range(150)]
    for name, count in (('train', 50), ('dev', 99)):
        (tmp_path / f'{name}.tsv').write_text('\n'.join(['text\tlabel', *rows[-count:]]) + '\n')
    few = {'few': {'task': 'custom', 'data.path': str(tmp_path)}}
    printed = quiet_sweep(write_study(tmp_path, {**TWO_ARMS, 'seeds': 4, 'settings': few}), dry_run=True)[1]
    assert '4 seeds prove nothing: 5 are the fewest that a verdict rests on.' in printed
    assert 'few decides nothing: it has 99 rows: one of them is 1.0 points.' in printed
    printed = quiet_sweep(write_study(tmp_path, {**TWO_ARMS, 'seeds': 5}), dry_run=True)[1]
    assert 'prove nothing' not in printed and 'decides nothing' not in printed
    more = {**TUNED, 'tuning': {'set': {'data.train_rows': 200}}}
    printed = quiet_sweep(write_study(tmp_path, more), dry_run=True)[1]
    assert 'few: tries train on 200 rows, reported runs on 100: what is chosen suits the former.' in printed
    assert 'many: tries' not in printed
