"""The report of a study, from run folders made here with known scores; nothing is trained."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from composer_cmi.errors import ConfigError
from composer_cmi.run.evaluate import Evaluation
from composer_cmi.run.outputs.files import write_features, write_json, write_text
from composer_cmi.study.findings.analysis import compare
from composer_cmi.study.findings.report import report
from composer_cmi.study.findings.study import SCORE, load_runs
from report_tools import CE, CLEARLY_BETTER, NO_BETTER, WORSE, write_arm, write_run, write_scored_run


@pytest.fixture
def three_settings(tmp_path: Path) -> Path:
    """A gain on one setting, none on another, a loss on the third; `ce` everywhere."""
    for setting, scores in (('better', CLEARLY_BETTER), ('same', NO_BETTER), ('worse', WORSE)):
        write_arm(tmp_path, setting, 'ce', CE)
        write_arm(tmp_path, setting, 'mincmi', scores, weight=0.2)
    return tmp_path


def test_words_and_numbers(three_settings):
    files = report(three_settings)
    text = files['markdown'].read_text()
    found = next(line for line in text.splitlines() if line.startswith('* mincmi against ce'))
    # better: differences 2 2 1 2 1 2 2 1 points, mean 13/8, sd sqrt(1.875/7), t(7, .975) = 2.364624: 1.625 -+ 0.4327
    assert ' gain on better (+1.62 points [+1.19, +2.06]);' in found
    assert ' LOSS on worse (-2.09 points [-2.16, -2.02]); no evidence on same.' in found
    # same: 1 -1 1 -1 -1 1 0 0, mean 0, sd sqrt(6/7): 0 -+ 0.7740
    table = text.split('## Arms and settings')[1].split('##')[0]
    cells = '**+1.62 [+1.19, +2.06] gain** | +0.00 [-0.77, +0.77] | **-2.09 [-2.16, -2.02] LOSS**'
    assert f'| mincmi | {cells} |' in table and '| ce | scores 80.75 | scores 80.75 | scores 80.75 |' in table
    assert 'VERDICTS ON SEEDS ALONE: 6 of 6' in text
    rows = {row['setting']: row for row in _csv(files['comparisons']) if row['metric'] == 'accuracy'}
    assert float(rows['better']['mean']) == pytest.approx(1.625)
    assert [rows['better'][key] for key in ('wins', 'ties', 'losses')] == ['8', '0', '0']
    assert rows['same']['verdict'] == 'no evidence of a gain'


def test_numbers_are_scipys_and_holm_goes_over_the_whole_study(three_settings):
    study = load_runs(three_settings)
    found = {each.table: each for each in compare(study)[SCORE]}
    raw = {}
    for setting, scores in (('better', CLEARLY_BETTER), ('same', NO_BETTER), ('worse', WORSE)):
        raw[setting] = stats.ttest_rel(100 * np.array(scores), 100 * np.array(CE))
        assert found[setting].p == found[setting].difference.t_p == pytest.approx(raw[setting].pvalue)
        interval = raw[setting].confidence_interval()
        assert found[setting].interval == pytest.approx(tuple(interval))
    # NLL is 1.2 - score here: each p stands twice in the family of 3 settings x 2 metrics, and ECE is in none.
    smallest = min(raw, key=lambda setting: raw[setting].pvalue)
    assert found[smallest].holm_p == pytest.approx(6 * raw[smallest].pvalue, rel=1e-6)
    assert found['same'].holm_p == 1.0
    assert {each.verdict for each in compare(study)['ece']} == {'exploratory'}


def test_one_lucky_setting_of_ten_is_no_gain(tmp_path):
    # p = .02 alone is below .05; as the smallest of ten it is .2 after Holm.
    noise = [0.02, -0.01, 0.01, 0.02, 0.0, 0.02, 0.01, 0.01]
    assert 0.005 < stats.ttest_1samp(noise, 0).pvalue < 0.05
    for setting in range(10):
        write_arm(tmp_path, f's{setting}', 'ce', CE)
        scores = [a + b for a, b in zip(CE, noise, strict=True)] if setting == 0 else NO_BETTER
        write_arm(tmp_path, f's{setting}', 'mincmi', scores)
    text = report(tmp_path)['markdown'].read_text()
    assert '* mincmi against ce: no evidence of a gain on any of 10 settings (mean ' in text


def test_the_variants_of_a_grid_are_one_family(tmp_path):
    noise = [0.02, -0.01, 0.01, 0.02, 0.0, 0.02, 0.01, 0.01]
    write_arm(tmp_path, 's', 'ce', CE)
    for weight in range(1, 10):
        scores = [a + b for a, b in zip(CE, noise, strict=True)] if weight == 5 else NO_BETTER
        write_arm(tmp_path, 's', f'mincmi,weight={weight}', scores, weight=float(weight))
    verdicts = {each.arm: each.verdict for each in compare(load_runs(tmp_path))[SCORE]}
    assert set(verdicts.values()) == {'no evidence of a gain'}


def test_nll_is_better_where_it_is_lower(three_settings):
    rows = {row['setting']: row for row in _csv(report(three_settings)['comparisons']) if row['metric'] == 'nll'}
    assert rows['better']['verdict'] == 'gain'
    assert float(rows['better']['mean']) == pytest.approx(-0.01625)
    assert rows['worse']['verdict'] == 'loss'


@pytest.mark.parametrize(('task', 'rows'), [('wnli', 71), ('custom', 99)])
def test_what_cannot_decide_is_set_apart_with_the_majority_line(tmp_path, task, rows):
    write_arm(tmp_path, 'good', 'ce', CE)
    write_arm(tmp_path, 'good', 'mincmi', CLEARLY_BETTER)
    write_arm(tmp_path, 'small', 'ce', CE, task=task, rows=rows)
    write_arm(tmp_path, 'small', 'mincmi', [score + 0.1 for score in CLEARLY_BETTER], task=task, rows=rows)
    study = load_runs(tmp_path)
    found = {each.table: each for each in compare(study)[SCORE]}
    assert found['small'].verdict == 'set apart'
    assert found['good'].holm_p == pytest.approx(2 * found['good'].difference.t_p)  # a family of score and NLL
    text = report(tmp_path)['markdown'].read_text()
    assert 'a constant answer scores 56.34' in text
    assert 'small' not in text.split('<summary>Scores')[1].split('<summary>Paired')[0]
    assert '(set apart)' in text.split('## Arms and settings')[1].split('##')[0]
    assert 'small' not in text.split('## What was found')[1].split('##')[0]
    assert 'Mean over all settings' not in text  # one setting is left: there is nothing to average


def test_a_seed_without_its_pair_is_left_out_and_shown(three_settings):
    (three_settings / 'better' / 'ce' / 'seed3' / 'results.json').unlink()
    comparison = next(each for each in compare(load_runs(three_settings))[SCORE] if each.table == 'better')
    assert comparison.seeds == [0, 1, 2, 4, 5, 6, 7]
    text = report(three_settings)['markdown'].read_text()
    assert re.search(r'\| ce \| 81\.00 \| 80\.00 \| 82\.00 \| - \| 81\.00', text)


def test_one_seed_proves_nothing(tmp_path):
    write_run(tmp_path, 's', 'ce', 0, 0.5)
    write_run(tmp_path, 's', 'mincmi', 0, 0.9)
    text = report(tmp_path)['markdown'].read_text()
    assert '* mincmi against ce: no evidence of a gain on s (+40.00 points).' in text


def test_few_seeds_claim_nothing_and_equal_counts_are_equal_scores(tmp_path):
    # 410 / 500 and 411 / 500 as float32 has them: the same two tenths of a point on every seed.
    share = [float(np.float32(count / 500)) for count in (410, 411, 412, 413)]
    write_arm(tmp_path, 's', 'ce', share[:3])
    write_arm(tmp_path, 's', 'mincmi', share[1:])
    (found,) = compare(load_runs(tmp_path))[SCORE]
    assert found.verdict == 'no evidence of a gain (fewer than 5 seeds prove nothing)'
    assert found.difference.sd == pytest.approx(0, abs=1e-9)
    assert np.isnan(found.difference.t_p)
    assert found.seeds_needed is None


def test_mcnemar_reads_the_predictions_of_the_same_rows(tmp_path):
    labels = np.array([1] * 20 + [-100])
    for arm, right in (('ce', 10), ('mincmi', 18)):
        logits = np.where(np.arange(21)[:, None] < right, [0.0, 1.0], [1.0, 0.0])
        write_scored_run(tmp_path, 's', arm, 0, labels, logits)
    comparison = compare(load_runs(tmp_path))[SCORE][0]
    # 8 rows only the arm, none only the baseline: 2 / 2^8
    assert comparison.mcnemar == {0: (8, 0, 0.0078125)}
    assert '| mincmi | ce | s | 1 | 8.0 | 0.0 | 1 of 1 | 0 of 1 |' in report(tmp_path)['markdown'].read_text()


def test_a_loss_of_scale_alone_is_none_in_scaled_nll(tmp_path):
    labels = np.random.default_rng(9).integers(0, 2, 200)
    for seed in range(6):
        draw = np.random.default_rng(seed)
        margin = (2 * labels - 1) + draw.normal(0, 1 + 0.1 * seed, 200)
        for arm, scale in (('ce', 2.0), ('mincmi', 0.2)):
            write_scored_run(tmp_path, 's', arm, seed, labels, np.stack([0 * margin, scale * margin], axis=1))
    found = compare(load_runs(tmp_path))
    assert found['nll'][0].verdict == 'loss'
    (scaled,) = found['scaled_nll']
    assert scaled.difference.mean == pytest.approx(0, abs=1e-4) and scaled.verdict != 'loss'
    assert 'Scaled NLL (lower is better): mincmi against ce: no evidence' in report(tmp_path)['markdown'].read_text()


class _Images(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == 'img':
            self.sources.append(dict(attrs)['src'] or '')
        elif tag != 'meta':
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html_stands_alone_and_is_well_formed(three_settings):
    page = _Images()
    page.feed(report(three_settings)['html'].read_text())
    assert page.open == []
    assert page.sources
    assert all(source.startswith('data:image/png;base64,iVBOR') for source in page.sources)


def test_pictures_of_everything_that_the_folders_hold(tmp_path):
    generator = np.random.default_rng(0)
    for arm, weight in (('ce', 0.0), ('mincmi,weight=0.1', 0.1), ('mincmi,weight=0.3', 0.3)):
        for seed in range(3):
            folder = write_run(tmp_path, 's', arm, seed, 0.8 + weight / 10 + 0.01 * seed, weight=weight)
            rows = [f'{i},{0.01 / (1 + weight) + i * 1e-4},0.03,0.3' for i in range(5)]
            header = 'step,cmi/cmi,cmi/mutual_information,cmi/relative_cmi'
            write_text(folder / 'history.csv', '\n'.join([header, *rows]) + '\n')
            labels = np.arange(60) % 3
            features = generator.normal(size=(60, 16)) + labels[:, None]
            answers = Evaluation(*map(torch.from_numpy, (np.arange(60), labels, features[:, :3], features)))
            write_features(folder / 'features_dev.npz', answers, ['a', 'b', 'c'])
    student = {'algorithms': {'knowledge_distillation': {'teacher': str(tmp_path / 's' / 'ce' / 'seed0')}}}
    write_run(tmp_path, 's', 'student', 0, 0.7, config=student)
    files = report(tmp_path)
    names = {path.name for path in (tmp_path / 'report' / 'pictures').iterdir()}
    assert names == {
        'differences_score.png',
        'differences_nll.png',
        'weight.png',
        'teachers.png',
        'training_s.png',
        'clusters_s_dev.png',
    }
    linked = set(re.findall(r'\(pictures/(.+?)\)', files['markdown'].read_text()))
    assert linked == names


def test_the_plan_names_what_is_missing(tmp_path):
    write_arm(tmp_path / 'runs', 's', 'ce', CE)
    write_arm(tmp_path / 'runs', 's', 'mincmi', CLEARLY_BETTER[:7])
    plan = [f'runs/s/{arm}/seed{seed}' for seed in range(8) for arm in ('ce', 'mincmi')]
    facts = {
        'name': 'mine',
        'arms': ['ce', 'mincmi'],
        'baselines': ['ce'],
        'comparisons': None,
        'gain': 0.5,
        'runs': plan,
    }
    write_json(tmp_path / 'study.json', facts)
    text = report(tmp_path)['markdown'].read_text()
    assert '# Study mine' in text
    assert 'NOT FINISHED: 1 planned runs' in text
    assert '* runs/s/mincmi/seed7' in text
    assert 'seeds to see 0.5' in text


def test_the_same_folders_give_the_same_report(three_settings, tmp_path):
    first = report(three_settings, tmp_path / 'a')
    second = report(three_settings, tmp_path / 'b')
    for name, path in first.items():
        assert path.read_bytes() == second[name].read_bytes()


def test_json_is_json(three_settings):
    write_run(three_settings, 'lonely', 'ce', 0, 0.5)
    write_run(three_settings, 'lonely', 'mincmi', 0, 0.6)

    def refuse(name: str) -> None:
        raise AssertionError(f'{name} is not JSON')

    content = json.loads(report(three_settings)['json'].read_text(), parse_constant=refuse)
    lonely = next(row for row in content['comparisons'] if row['setting'] == 'lonely')
    assert lonely['sd'] is None
    assert lonely['by_seed'] == {'0': pytest.approx(10.0)}


def test_nothing_to_report_on_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match='There is no folder'):
        report(tmp_path / 'absent')
    with pytest.raises(ConfigError, match='no finished run'):
        report(tmp_path)
    write_run(tmp_path, 's', 'ce', 0, 0.5)
    with pytest.raises(ConfigError, match="no arm 'kd' to compare with"):
        report(tmp_path, against=['kd'])
    write_run(tmp_path / 'again', 's', 'ce', 0, 0.5)
    with pytest.raises(ConfigError, match='are both seed 0'):
        report(tmp_path)


def _csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline='') as file:
        return list(csv.DictReader(file))
