"""Rows of a split: stratified, held out by the hash of their text, with noise or imbalance, and their fingerprint."""

from __future__ import annotations

import numpy as np

from composer_cmi.data.splits import (
    Split,
    add_label_noise,
    concatenate,
    fingerprint,
    hashed_share,
    imbalance,
    stratified_order,
    take,
    without_labels,
)
from data_tools import split_of


def test_stratified_prefixes_keep_the_balance_and_are_nested():
    labels = np.array([0] * 700 + [1] * 200 + [2] * 100)
    order = stratified_order(labels, seed=5)
    assert sorted(order) == list(range(1000))
    for size in (10, 50, 333, 500):
        counts = np.bincount(labels[order[:size]], minlength=3)
        assert np.abs(counts - size * np.array([0.7, 0.2, 0.1])).max() <= 1.0
    assert (order == stratified_order(labels, seed=5)).all()
    assert (order != stratified_order(labels, seed=6)).any()


def test_hashed_share_depends_on_the_text_alone():
    split = split_of([0] * 5000)
    mask = hashed_share(split, 0.2)
    assert abs(mask.mean() - 0.2) < 0.02
    shuffled = take(split, np.arange(5000)[::-1])
    assert (hashed_share(shuffled, 0.2) == mask[::-1]).all()
    assert (hashed_share(split, 0.2, salt='1') != mask).any()
    doubled = hashed_share(concatenate(split, split), 0.2)
    assert (doubled[:5000] == doubled[5000:]).all()
    assert hashed_share(split, 0.0).sum() == 0


def test_label_noise_replaces_exactly_the_share_by_other_labels():
    split = concatenate(split_of([0, 1, 2] * 100), without_labels(split_of([0] * 50)))
    noisy = add_label_noise(split, 0.25, 3, seed=1)
    changed = noisy.labels != split.labels
    assert changed.sum() == 75
    assert not changed[300:].any()
    assert set(np.unique(noisy.labels)) == {-100, 0, 1, 2}
    assert split.labels.tolist()[:3] == [0, 1, 2]


def test_imbalance_follows_the_exponential_profile():
    thinned = imbalance(split_of([0] * 400 + [1] * 100 + [2] * 300), 0.04, 3, seed=0)
    assert np.bincount(thinned.labels).tolist() == [100, 20, 4]


def test_promise_17_an_absent_class_does_not_thin_out_the_others():
    thinned = imbalance(split_of([0] * 400 + [2] * 600), 0.1, 4, seed=0)
    assert np.bincount(thinned.labels).tolist() == [400, 0, 40]


def test_promise_17_rows_are_one_text_whatever_the_case_spaces_and_order():
    labels = np.array([0, 1])
    split = Split((['A  b', 'c'], ['d\u00e9', 'e']), labels, labels)
    swapped = Split((['de\u0301', 'E'], ['a\xa0b', 'c ']), labels, labels)
    assert [*split.text_keys()] == [*swapped.text_keys()]
    assert split.joined() != swapped.joined()
    assert len(set(split.text_keys())) == 2 == len(np.unique(split.text_hashes()))


def test_the_fingerprint_sees_texts_labels_ids_and_order():
    split = split_of([0, 1, 1])
    same = Split((list(split.texts[0]),), split.labels.copy(), split.example_ids.copy())
    others = [split_of([0, 1, 0]), split_of([0, 1, 1], first_id=1), take(split, [1, 0, 2]), take(split, [0, 1])]
    assert fingerprint(split) == fingerprint(same)
    assert len({fingerprint(other) for other in [split, *others]}) == 5
