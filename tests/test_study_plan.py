"""What a study file plans: arms paired by seed, grids, tuning on train alone; what cannot be run is refused."""

from __future__ import annotations

import pytest

from composer_cmi.errors import ConfigError
from composer_cmi.run.config import load_config
from composer_cmi.study.config import load_study, short_names
from composer_cmi.study.execution.plan import check_cells, plan_reported, plan_tuning
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
