"""What a run is asked for and does not do, or does at a price, stands in its output, its results and its model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from composer.core import Algorithm

from composer_cmi import registry
from composer_cmi.run.command import run_file
from composer_cmi.run.outputs.results import load_results
from run_tools import make_all, make_model

ASIDE = 'texts without labels are not trained on'
WHOLE = 'The last layer is computed for every token, which {} may read.'


class Foreign(Algorithm):
    """Somebody else's, which may read anything."""

    def match(self, event: Any, state: Any) -> bool:
        return False

    def apply(self, event: Any, state: Any, logger: Any) -> None: ...


def told(folder: Path, capsys: pytest.CaptureFixture[str], **changes: Any) -> list[str]:
    """The run's own notes, after checking that they are in all three places."""
    data = {'path': str(folder / 'data'), 'max_length': 16, **changes.pop('data', {})}
    assert run_file(str(make_all(folder, data=data, **changes)), []) == 0
    printed = ' '.join(capsys.readouterr().out.split())
    results = load_results(folder / 'runs' / 'tiny')
    assert results is not None
    card = (folder / 'runs' / 'tiny' / 'model' / 'README.md').read_text()
    for note in results.notes:
        assert note in printed
        assert note.split('_')[0] in card.replace('\\', '')
    return results.notes


@pytest.mark.parametrize('source', ['labelled_rows', 'unlabelled'])
def test_texts_that_nobody_can_label_are_named(tmp_path, capsys, source):
    path = tmp_path / 'more.txt'
    path.write_text('clouds over the sea\nrice with butter\nfresh snow tonight\n')
    data = {'labelled_rows': {'labelled_rows': 16}, 'unlabelled': {'unlabelled': str(path)}}[source]
    count = {'labelled_rows': 8, 'unlabelled': 3}[source]
    (note,) = [note for note in told(tmp_path / 'plain', capsys, data=data) if ASIDE in note]
    assert note.startswith(f'{count} texts without labels')
    teacher = {'teacher': str(make_model(tmp_path / 'teacher', seed=3)), 'allow_weak_teacher': True}
    distils = {'knowledge_distillation': {**teacher, 'assume_same_labels': True}}
    assert not any(ASIDE in note for note in told(tmp_path / 'taught', capsys, data=data, algorithms=distils))


@pytest.mark.parametrize(
    ('changes', 'who'),
    [
        ({'algorithms': {'reads_anything': {}}}, 'algorithms.reads_anything'),
        ({'algorithms': {'cmi_maximization': {'feature_module': 'bert.pooler'}}}, 'algorithms.cmi_maximization'),
        ({'callbacks': {'activation_monitor': {}}}, 'callbacks.activation_monitor'),
        (
            {'algorithms': {'reads_anything': {}}, 'callbacks': {'activation_monitor': {}}},
            'algorithms.reads_anything and callbacks.activation_monitor',
        ),
        ({'algorithms': {'ema': {}}}, None),
    ],
)
def test_who_has_the_last_layer_computed_in_full_is_named(tmp_path, capsys, changes, who):
    if 'reads_anything' not in registry.known_algorithms():
        registry.register_algorithm('reads_anything')(Foreign)
    notes = told(tmp_path, capsys, **changes)
    assert [note for note in notes if note.startswith('The last layer')] == [
        note for note in notes if who is not None and note.startswith(WHOLE.format(who))
    ]
    assert any(note.startswith('The last layer') for note in notes) == (who is not None)


def test_a_selection_and_an_early_end_are_told_where_the_run_is_seen(tmp_path, capsys):
    stopper = {'early_stopper': {'monitor': 'accuracy', 'dataloader_label': 'dev', 'patience': '1ba'}}
    train = {'max_duration': '30ba', 'batch_size': 8, 'eval_interval': '1ba', 'keep_best': 'accuracy'}
    notes = told(tmp_path, capsys, train=train, callbacks=stopper)
    assert any('(train.keep_best): a selection' in note for note in notes)
    assert any('Training was ended before its 30 steps' in note for note in notes)
