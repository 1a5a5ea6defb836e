"""One rule for what a class is called: what one name is, what looks like another, what is no name."""

from __future__ import annotations

import datetime
import decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from composer_cmi.class_names import class_name, look_alike, same_looking
from composer_cmi.teachers.compatibility import label_order

SAME = [
    (0, '0'),
    (0.0, '0'),
    ('0.0', '0'),
    ('-1.', '-1'),
    (np.float32(2), '2'),
    (np.int64(3), '3'),
    (decimal.Decimal('4.00'), '4'),
    (True, 'True'),
    (' pos\xa0', 'pos'),
    ('caf\u00e9', 'cafe\u0301'),
    ('pos', 'p\u200bos'),
    ('pos', '\ufeffpos'),
    ('so\u00adcial', 'social'),
    ('not  so', 'not\u2009so'),
]


@pytest.mark.parametrize(('a', 'b'), SAME)
def test_promise_14_one_name_whatever_the_type_and_the_unseen(a, b):
    assert class_name(a) == class_name(b)
    assert class_name(a) != ''


LOOK_THE_SAME = [
    ('pos', 'POS'),
    ('1', '01'),
    ('1', '+1'),
    ('1.5', '1.50'),
    ('pos', '"pos"'),
    ('pos', '\u201cpos\u201d'),
    ('sci-fi', 'sci\u2011fi'),
    ('\uff41\uff42', 'ab'),
    ('pos', 'p\u043es'),
    ('stra\u00dfe', 'STRASSE'),
    ('a\ufe0f', 'a'),
]


@pytest.mark.parametrize(('a', 'b'), LOOK_THE_SAME)
def test_promise_14_names_that_look_the_same(a, b):
    assert look_alike(a) == look_alike(b)
    assert same_looking(['other', a, b]) == (a, b)


@pytest.mark.parametrize(
    ('a', 'b'), [('pos', 'neg'), ('1', '10'), ('a', 'aa'), ('"', "'"), ('1e2', '101'), ('-1', '1')]
)
def test_promise_14_other_names_stay_apart(a, b):
    assert look_alike(a) != look_alike(b)


@given(st.text())
def test_promise_14_a_name_is_a_fixed_point_and_keeps_its_key(text):
    name = class_name(text) if not text.strip().startswith(('[', '{', '(')) else ''
    assert class_name(name) == name or name.replace('.', '').lstrip('+-').isdecimal()
    assert look_alike(look_alike(name)) == look_alike(name) == look_alike(name.upper().lower()) or not name.isascii()


NO_NAMES = [
    (['a'], 'several labels a row'),
    ([0, 1, 0], 'one-hot'),
    (np.array([0, 1]), 'one-hot'),
    ("['a', 'b']", 'several labels a row'),
    ({'a': 1}, 'object with keys'),
    (b'a', 'bytes'),
    (datetime.date(2020, 1, 1), 'a date'),
    (datetime.timedelta(1), 'a timedelta'),
    (float('inf'), 'infinite'),
]


@pytest.mark.parametrize(('value', 'reason'), NO_NAMES)
def test_promise_13_what_is_no_class(value, reason):
    with pytest.raises(ValueError, match=reason):
        class_name(value)


@pytest.mark.parametrize('value', [None, float('nan'), decimal.Decimal('NaN'), '', ' ', '\u200b'])
def test_promise_14_no_label_is_no_name(value):
    assert class_name(value) == ''


def test_promise_14_a_teacher_with_names_that_print_the_same_is_taken():
    assert label_order(['caf\u00e9', 'bar', '1'], ['Bar', '1.0'[:1], 'cafe\u0301\u200b']) == [1, 2, 0]
    with pytest.raises(ValueError, match='different classes'):
        label_order(['a', 'A'], ['a', 'b'])
