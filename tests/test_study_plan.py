"""What a study file plans: arms paired by seed, grids, tuning on train alone; what cannot be run is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from composer_cmi.errors import ConfigError
from composer_cmi.run.config import load_config
from composer_cmi.study.config import load_study, short_names
from composer_cmi.study.execution.facts import study_facts
from composer_cmi.study.execution.plan import expanded_comparisons, plan_reported, plan_tuning
from composer_cmi.study.execution.refusals import check_cells, check_slices
from composer_cmi.study.execution.tuning import choose
from report_tools import write_scored_run
from sweep_tools import BASE, TUNED, TWO_ARMS, events, quiet_sweep, write_study


def test_the_plan_pairs_every_arm_by_seed(tmp_path):
    study = load_study(write_study(tmp_path, TWO_ARMS))
    cells = plan_reported(study, {})
    assert len(cells) == 2 * 2 * 3
    assert list(study.arms) == ['ce', 'mincmi']
    by_pair: dict[tuple[str, int], set[str]] = {}
    for cell in cells:
        config = load_config(study.base, cell.overrides)
        assert config.seed == cell.seed
        assert str(config.folder) == cell.folder
        assert ('cmi_regularization' in config.algorithms) == (cell.arm == 'mincmi')
        others = config.model_copy(update={'algorithms': {}, 'run_name': ''}).model_dump_json()
        by_pair.setdefault((cell.setting, cell.seed), set()).add(others)
    assert [len(settings) for settings in by_pair.values()] == [1] * 6


def test_a_grid_is_an_arm_each_and_a_setting_each(tmp_path):
    grid = {
        'algorithms.cmi_regularization.weight': [0.1, 0.3],
        'algorithms.cmi_regularization.start': ['0dur', '0.3dur'],
    }
    settings = {'s': {'grid': {'data.train_rows': [100, 300]}}}
    study = load_study(write_study(tmp_path, {**TWO_ARMS, 'settings': settings, 'arms': {'mincmi': {'grid': grid}}}))
    cells = plan_reported(study, {})
    check_cells(study, cells)
    assert {cell.setting for cell in cells} == {'s,train_rows=100', 's,train_rows=300'}
    assert len({cell.arm for cell in cells}) == 5
    one = next(cell for cell in cells if cell.arm == 'mincmi,weight=0.3,start=0dur')
    config = load_config(study.base, one.overrides)
    assert config.algorithms == {'cmi_regularization': {'weight': 0.3, 'start': '0dur'}}


def test_short_names_tell_keys_apart():
    assert short_names(['optimizer.lr', 'model.name']) == {'optimizer.lr': 'lr', 'model.name': 'name'}
    assert short_names(['a.x.lr', 'a.y.lr']) == {'a.x.lr': 'x.lr', 'a.y.lr': 'y.lr'}


def test_tuning_reads_a_slice_of_train_only(tmp_path):
    study = load_study(write_study(tmp_path, TUNED))
    cells = plan_tuning(study)
    assert len(cells) == 3 * 2 * 2  # candidates x settings x tuning seeds
    for cell in cells:
        config = load_config(study.base, cell.overrides)
        assert config.data.validation_fraction == 0.2
        assert config.seed in (1000, 1001)
    for cell in plan_reported(study, {(name, 'ce_tuned'): {'optimizer.lr': 1e-3} for name in ('few', 'many')}):
        assert load_config(study.base, cell.overrides).data.validation_fraction is None


MINCMI = {'algorithms.cmi_regularization': {}}
TUNE = {'tune': {'optimizer.lr': [1e-3, 2e-3]}}
GRID = {'grid': {'algorithms.cmi_regularization.weight': [0.1, 0.3]}}


def test_a_grid_in_comparisons_is_every_variant_of_it(tmp_path):
    arms = {'x': GRID, 'y': {'algorithms.cmi_regularization': {'space': 'logits'}}}
    comparisons = [['x', 'ce'], ['y', 'x'], ['x,weight=0.1', 'ce']]
    study = load_study(write_study(tmp_path, {**TWO_ARMS, 'arms': arms, 'comparisons': comparisons}))
    cells = plan_reported(study, {})
    check_cells(study, cells)
    variants = ['x,weight=0.1', 'x,weight=0.3']
    assert expanded_comparisons(study, cells) == [*((x, 'ce') for x in variants), *(('y', x) for x in variants)]
    assert study_facts(study, cells)['comparisons'] == expanded_comparisons(study, cells)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'seeds': []}, 'seeds'),
        ({'seeds': [1, 1]}, 'stands twice'),
        ({'sedes': 3}, "unknown key 'sedes'.*seeds"),
        ({'arms': {'x': {'sets': {}, 'grid': {}}}}, "unknown key 'arms.x.sets'"),
        ({'arms': {'x': {'seed': 3}}}, "arms.x sets 'seed'.*paired"),
        ({'arms': {'x/y': {}}}, "'x/y' becomes a folder"),
        ({'arms': {'x': {'optimizer.lrr': 1}}}, 'optimizer.lrr'),
        ({'arms': {'x': {'algorithms.cmi_regularisation': {}}}}, 'cmi_regulari'),
        ({'arms': {'ce': {'algorithms.cmi_regularization': {}}}}, "'ce' must be plain cross-entropy"),
        ({'arms': {'x': {'grid': {'optimizer.lr': [1]}, 'tune': {'optimizer.lr': [1]}}}}, 'one of grid, tune'),
        ({'arms': {'x': {'tuned_as': 'y'}}}, "names 'y'"),
        ({'arms': {'x': {'model.name_or_path': 'arm:z'}}}, "'arm:z' names no arm"),
        ({'arms': {'x': {}}, 'comparisons': [['x', 'z']]}, "no arm 'z'"),
        ({'arms': {'x': {'tune': {'optimizer.lr': [1e-3]}}}, 'seeds': [1000]}, 'among the reported seeds'),
        (
            {'arms': {'x': {'tune': {'optimizer.lr': [1e-3]}}, 'y': {'tune': {'optimizer.lr': [1e-3, 1e-4]}}}},
            'same number of tries',
        ),
        (
            {'arms': {'x': {'set': {'algorithms.cmi_regularization': {}}, 'tune': {'optimizer.lr': [1e-3]}}}},
            'Only x would be tuned: tune a plain cross-entropy arm',
        ),
        ({'arms': {'x': {}}}, 'The arms ce and x are the same run on few'),
        (
            {'arms': {'x': MINCMI, 'y': {'algorithms.cmi_regularization': {'space': 'features'}}}},
            'x and y are the same run',
        ),
        ({'arms': {'x': {'algorithms.cmi_regularization.weight': 0}}}, 'The arms ce and x are the same run on few'),
        (
            # The setting's weight of 0 is merged into the arm's section: the arm is cross-entropy again.
            {
                'settings': {'off': {'algorithms.cmi_regularization.weight': 0}},
                'arms': {'x': {'algorithms.cmi_regularization': {'space': 'logits'}}},
            },
            'The arms ce and x are the same run on off',
        ),
        (
            {'arms': {'x': MINCMI, 't': TUNE, 'u': {'set': {}, 'tuned_as': 't'}}},
            'The arms t and u are the same run on few',
        ),
        (
            {'arms': {'x': TUNE}, 'tuning': {'set': {'optimizer.lr': 1e-4}}},
            'Two tries of the arm x are the same run on few',
        ),
        ({'arms': {'x': {'tune': {'optimizer.lr': [1e-3, 0.001]}}}}, 'Two tries of the arm x|share one folder'),
        ({'arms': {'x': MINCMI}, 'comparisons': [['x', 'x']]}, "'x' is compared with itself"),
        (
            {'arms': {'x': GRID}, 'comparisons': [['x,weight=0.9', 'ce']]},
            "no arm 'x,weight=0.9' .*there are: x,weight=0.1",
        ),
        ({'base': 'absent.yaml'}, "no file '.*absent.yaml'"),
    ],
)
def test_a_study_that_cannot_be_run_is_refused_in_a_sentence(tmp_path, changes, message):
    path = write_study(tmp_path, {**TWO_ARMS, **changes})
    with pytest.raises(ConfigError, match=message) as caught:
        quiet_sweep(path)
    assert '\n' not in str(caught.value)
    assert not events(tmp_path)


def test_a_base_with_cmi_or_arms_is_refused(tmp_path):
    path = write_study(tmp_path, TWO_ARMS, base={**BASE, 'algorithms': {'cmi_regularization': {}}})
    with pytest.raises(ConfigError, match="'ce' must be plain"):
        quiet_sweep(path)
    path = write_study(tmp_path, TWO_ARMS, base={**BASE, 'arms': {'a': {}}})
    with pytest.raises(ConfigError, match='has arms of its own'):
        quiet_sweep(path)
    with pytest.raises(ConfigError, match='jobs must be at least 1'):
        quiet_sweep(write_study(tmp_path, TWO_ARMS), jobs=0)


def test_tuning_on_reported_rows_is_refused(tmp_path):
    rows = [f'film number {i}\t{["pos", "neg"][i % 2]}' for i in range(60)]
    for name in ('train', 'dev'):  # the dev file repeats the training file: a slice of train is reported rows
        (tmp_path / f'{name}.tsv').write_text('\n'.join(['text\tlabel', *rows]) + '\n')
    settings = {'leaky': {'task': 'custom', 'data.path': str(tmp_path)}}
    path = write_study(tmp_path, {**TUNED, 'settings': settings})
    with pytest.raises(ConfigError, match=r'settings.leaky: \d+ of the \d+ rows that tuning is scored on are reported'):
        quiet_sweep(path)
    assert not events(tmp_path)


@pytest.mark.parametrize('study', [TWO_ARMS, TUNED])
@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'data.train_rows': 4000}, 'data.train_rows asks for 4000 rows, task bbc_headlines has 1671 to train on'),
        ({'data.labelled_rows': 301}, r'data.labelled_rows asks for 301 rows, task bbc_headlines has (100|300)'),
        ({'data.unlabelled': 'nowhere.txt'}, 'nowhere.txt'),
        ({'calibrate': 0.001}, 'Holding out 0% of'),
    ],
)
def test_rows_that_one_arm_alone_lacks_are_noticed_before_the_first_run(tmp_path, study, changes, words):
    path = write_study(tmp_path, {**study, 'arms': {**study['arms'], 'greedy': changes}})
    with pytest.raises(ConfigError, match=f'The arm greedy on (few|many): .*{words}'):
        quiet_sweep(path)
    assert not events(tmp_path)


def test_texts_that_recur_in_the_reported_rows_are_left_out_of_the_choice(tmp_path):
    rows = [f'film number {i}\t{["pos", "neg"][i % 2]}' for i in range(60)]
    dev = [f'other {i}\t{["pos", "neg"][i % 2]}' for i in range(20)] + rows[:6]  # as CoLA has it: a few recur
    for name, lines in (('train', rows), ('dev', dev)):
        (tmp_path / f'{name}.tsv').write_text('\n'.join(['text\tlabel', *lines]) + '\n')
    settings = {'some': {'task': 'custom', 'data.path': str(tmp_path)}}
    study = load_study(write_study(tmp_path, {**TUNED, 'settings': settings, 'tuning': {'validation_fraction': 0.5}}))
    tuning = plan_tuning(study)
    repeats = check_slices(study, tuning, plan_reported(study, {('some', 'ce_tuned'): {'optimizer.lr': 1e-3}}))
    assert 0 < len(repeats['some']) <= 6 and repeats['some'] <= set(range(6))
    # Rows 6 to 9 are right at the rate .002; at .001 the repeated rows are, which must not count.
    ids = sorted({*repeats['some'], 6, 7, 8, 9})
    for cell in tuning:
        right = repeats['some'] if cell.candidate == 0 else {6, 7, 8, 9} if cell.candidate == 2 else set()
        margin = np.array([[1.0, 0.0] if i in right else [0.0, 1.0] for i in ids])
        write_scored_run(tmp_path / 'made', 'some', 'x', cell.seed, np.zeros(len(ids), dtype=int), margin)
        folder = Path(cell.folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(tmp_path / f'made/some/x/seed{cell.seed}', folder)
        predictions = (folder / 'predictions_dev.csv').read_text().splitlines()
        lines = [f'{i},{line.split(",", 1)[1]}' for i, line in zip(ids, predictions[1:], strict=True)]
        (folder / 'predictions_dev.csv').write_text('\n'.join([predictions[0], *lines]) + '\n')
    assert choose(study, tuning, repeats)[0] == {('some', 'ce_tuned'): {'optimizer.lr': 2e-3}}


def averaging(count: str = '@2', seeds: int = 4) -> dict:
    section = {'teacher': f'arm:ce{count}', 'allow_weak_teacher': True}
    return {**TWO_ARMS, 'seeds': seeds, 'arms': {'average': {'algorithms.knowledge_distillation': section}}}


def test_an_average_is_of_the_next_seeds_and_never_of_its_own(tmp_path):
    study = load_study(write_study(tmp_path, averaging()))
    cells = plan_reported(study, {})
    check_cells(study, cells)
    for cell in (cell for cell in cells if cell.arm == 'average'):
        place = f'{study.folder}/runs/{cell.setting}/ce/seed'
        members = [f'{place}{(cell.seed + step) % 4}' for step in (1, 2)]
        assert cell.needs == tuple(members)
        config = load_config(study.base, cell.overrides)
        assert config.algorithms['knowledge_distillation']['teacher'] == members


@pytest.mark.parametrize('count', ['@', '@0', '@4', '@99', '@-1', '@two', '@1.5', '@' + '9' * 30])
def test_an_average_of_seeds_that_are_not_there_is_refused(tmp_path, count):
    with pytest.raises(ConfigError, match='how many other seeds are averaged, from 1 to 3 of the 4'):
        plan_reported(load_study(write_study(tmp_path, averaging(count))), {})


def test_an_arm_that_needs_another_one_cannot_be_tuned(tmp_path):
    arms = {
        'ce_tuned': {'tune': {'optimizer.lr': [1e-3, 3e-3]}},
        'student': {'set': {'model.name_or_path': 'arm:ce'}, 'tune': {'optimizer.lr': [1e-3, 3e-3]}},
    }
    study = load_study(write_study(tmp_path, {**TWO_ARMS, 'arms': arms}))
    with pytest.raises(ConfigError, match='The arm student cannot be tuned: it needs the run of another arm'):
        check_cells(study, plan_tuning(study))


def test_models_that_are_kept_are_of_arms_that_are_there(tmp_path):
    with pytest.raises(ConfigError, match="keep_models: there is no arm 'mincmy'"):
        load_study(write_study(tmp_path, {**TWO_ARMS, 'keep_models': ['mincmy']}))
    quiet_sweep(write_study(tmp_path, {**TWO_ARMS, 'keep_models': ['mincmi'], 'seeds': 1}))
    kept = {path.parent.parent.name for path in (tmp_path / 'out').rglob('model')}
    assert kept == {'mincmi'}
