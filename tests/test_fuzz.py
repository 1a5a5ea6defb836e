"""A part of `make fuzz`: every key changed in every way, and mutated bytes of every kind of file."""

from __future__ import annotations

import sys

import pytest

from file_fuzz import FILE_KINDS, fuzz_file
from fuzz import fuzz_keys, run_cases, study_cases


def test_promise_20_every_key_changed_in_every_way_is_refused_in_one_sentence_or_right(capsys):
    own = [case for case in run_cases() if not case.key.startswith(('algorithms.', 'loggers.')) or 'cmi' in case.key]
    counts = fuzz_keys(iter([*own[::3], *list(study_cases())[::3]]))
    assert not {*counts} - {'cases', 'refused', 'accepted'}, capsys.readouterr().out
    assert counts['cases'] > 400 and counts['refused'] > 300


@pytest.mark.parametrize('kind', FILE_KINDS)
def test_promise_20_mutated_files_are_refused_or_read(kind, capsys):
    counts = fuzz_file(kind, seconds=20, cases=100)
    assert not {*counts} - {'cases', 'refused', 'accepted'}, capsys.readouterr().out
    assert sys.getrecursionlimit() == 1000 and counts['cases'] > 10
