"""Text without labels from MDS shards: the same rows as from a file, and one sentence where they cannot be read."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from composer_cmi.data.delimited import DataError
from composer_cmi.data.rows.shards import read_shards
from composer_cmi.data.task_data import load_task_data
from composer_cmi.run.command import run_file
from composer_cmi.run.config.schema import DataConfig
from run_tools import SENTENCES, make_all, make_model

TEXTS = [f'{text} over the hills' for texts in SENTENCES.values() for text in texts] * 3
needs_streaming = pytest.mark.skipif(
    find_spec('streaming') is None, reason="needs mosaicml-streaming: pip install 'composer-cmi[streaming]'"
)


def write(folder: Path, rows: list[dict], columns: dict[str, str], **options) -> str:
    from streaming import MDSWriter

    with MDSWriter(out=str(folder), columns=columns, **options) as writer:
        for row in rows:
            writer.write(row)
    return str(folder)


def shards(folder: Path, **options) -> str:
    return write(
        folder, [{'text': text, 'n': n} for n, text in enumerate(TEXTS)], {'text': 'str', 'n': 'int'}, **options
    )


def test_without_the_library_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'streaming', None)
    with pytest.raises(DataError, match=r"data\.streaming needs mosaicml-streaming .* 'composer-cmi\[streaming\]'"):
        next(read_shards(str(tmp_path)))


@needs_streaming
@pytest.mark.parametrize('compression', [None, 'gz', 'zstd'])
def test_rows_come_in_their_order_and_in_pieces(tmp_path, compression):
    folder = shards(tmp_path / 'mds', compression=compression, size_limit=1000)
    assert len([*Path(folder).glob('shard*')]) > 2
    before = sorted(path.name for path in Path(folder).iterdir())
    tables = [*read_shards(folder, rows=5)]
    assert [text for table in tables for text in table.columns['text']] == TEXTS
    assert [row for table in tables for row in table.lines] == [*range(1, len(TEXTS) + 1)]
    assert max(len(table) for table in tables) == 5
    assert sorted(path.name for path in Path(folder).iterdir()) == before


@needs_streaming
def test_the_same_rows_as_from_a_file(tmp_path):
    make_all(tmp_path)
    (tmp_path / 'more.txt').write_text('\n'.join(TEXTS) + '\n')
    own = {'path': str(tmp_path / 'data'), 'text_columns': ['text'], 'label_column': 'label'}
    found = [
        load_task_data('custom', DataConfig(**own, **extra))
        for extra in (
            {'unlabelled': str(tmp_path / 'more.txt')},
            {'streaming': shards(tmp_path / 'mds', size_limit=900)},
        )
    ]
    assert found[0].fingerprint == found[1].fingerprint
    assert [*found[1].unlabelled.texts[0]] == TEXTS


@needs_streaming
def test_a_file_and_shards_beside_each_other_have_ids_of_their_own(tmp_path):
    make_all(tmp_path)
    (tmp_path / 'more.txt').write_text('a text of the file\nanother text of the file\n')
    own = {'path': str(tmp_path / 'data'), 'text_columns': ['text'], 'label_column': 'label'}
    data = load_task_data(
        'custom', DataConfig(**own, unlabelled=str(tmp_path / 'more.txt'), streaming=shards(tmp_path / 'mds'))
    )
    ids = [*data.train.example_ids, *data.unlabelled.example_ids]
    assert len({*ids}) == len(ids) and len(data.unlabelled) == len(TEXTS) + 2


@needs_streaming
def test_a_run_distils_on_them(tmp_path):
    teacher = make_model(tmp_path / 'teacher', seed=3)
    given = {'assume_same_labels': True, 'allow_weak_teacher': True, 'cache': str(tmp_path / 'logits')}
    distils = {'knowledge_distillation': {'teacher': str(teacher), **given}}
    path = make_all(tmp_path, algorithms=distils)
    assert run_file(str(path), [f'data.streaming={shards(tmp_path / "mds")}']) == 0
    results = json.loads((tmp_path / 'runs/tiny/results.json').read_text())
    assert results['num_examples']['unlabelled'] == len(TEXTS)


@needs_streaming
@pytest.mark.parametrize(
    ('make', 'words'),
    [
        (lambda folder: (folder / 'index.json').write_text('{'), 'cannot be read as MDS shards'),
        (lambda folder: (folder / 'index.json').unlink(), 'cannot be read as MDS shards'),
        (lambda folder: next(folder.glob('shard*')).unlink(), 'cannot be read as MDS shards'),
    ],
)
def test_shards_that_are_damaged_are_refused_in_one_sentence(tmp_path, make, words):
    folder = Path(shards(tmp_path / 'mds', size_limit=1000))
    make(folder)
    with pytest.raises(DataError, match=words) as caught:
        [*read_shards(str(folder))]
    assert '\n' not in str(caught.value)


@needs_streaming
def test_pickled_objects_are_refused_and_not_read(tmp_path):
    folder = write(tmp_path / 'mds', [{'text': 'x', 'extra': {'a': 1}}], {'text': 'str', 'extra': 'pkl'})
    with pytest.raises(DataError, match='cannot be read as MDS shards'):
        [*read_shards(folder)]


@needs_streaming
def test_a_folder_that_is_not_there_and_columns_of_other_names(tmp_path):
    with pytest.raises(FileNotFoundError, match='there is no folder'):
        next(read_shards(str(tmp_path / 'nothing')))
    make_all(tmp_path)
    folder = write(tmp_path / 'mds', [{'words': 'x'}], {'words': 'str'})
    own = {'path': str(tmp_path / 'data'), 'text_columns': ['text'], 'label_column': 'label'}
    with pytest.raises(DataError, match="there is no column 'text', the columns are 'words'"):
        load_task_data('custom', DataConfig(**own, streaming=folder))
