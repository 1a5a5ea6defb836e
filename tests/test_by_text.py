"""A logit cache of texts: found by the text, whatever the order; of no use where texts are not known."""

from __future__ import annotations

import pytest
import torch

import toys
from composer_cmi.algorithms import KnowledgeDistillation
from composer_cmi.teachers.by_text import of_rows, of_texts, text_ids
from composer_cmi.teachers.logit_cache import CacheError, CacheKey, LogitCache, MissingExamplesError
from distillation_tools import SAME, start

KEY = CacheKey(teacher='llm.csv', data='texts')
LOGITS = torch.tensor([[0.5, -1.0], [1.5, 2.0], [3.0, 4.0]])
TEXTS = ['good', 'bad', 'ugly']


def table(texts=TEXTS, logits=LOGITS) -> LogitCache:
    return of_texts(texts, logits, key=KEY, label_names=['no', 'yes'])


def test_each_text_gets_its_own_logits_in_any_order_and_under_any_ids(tmp_path):
    stored = LogitCache.open(table().save(tmp_path / 'c.safetensors'))
    assert stored.by_text and stored.label_names == ('no', 'yes')
    rows = of_rows(stored, torch.tensor([40, 7, 12]), ['ugly', 'good', 'ugly'])
    assert not rows.by_text and rows.example_ids.tolist() == [7, 12, 40]
    assert rows.lookup(torch.tensor([40, 7])).tolist() == [[3.0, 4.0], [0.5, -1.0]]
    assert stored.reordered([1, 0]).by_text


def test_pairs_are_no_single_texts():
    assert text_ids([('a', 'b')]).tolist() != text_ids(['ab']).tolist() != text_ids([('b', 'a')]).tolist()
    assert text_ids(['a']).tolist() == text_ids([('a',)]).tolist()
    assert int(text_ids(f'{i}' for i in range(500)).min()) >= 0


def test_a_text_without_an_answer_is_named():
    with pytest.raises(MissingExamplesError, match=r"^1 of 2 texts have no answer .* the first is 'Good' \(id 5\)"):
        of_rows(table(), torch.tensor([1, 5]), ['bad', 'Good'])


def test_equal_answers_to_a_repeated_text_are_one_and_different_ones_are_refused():
    assert len(table([*TEXTS, 'good'], torch.cat([LOGITS, LOGITS[:1]]))) == 3
    with pytest.raises(ValueError, match='two different answers'):
        table([*TEXTS, 'good'], torch.cat([LOGITS, LOGITS[1:2]]))


def test_where_rows_have_numbers_only_it_is_refused():
    names = ['sport', 'tech', 'business']
    cache = of_texts(TEXTS, torch.zeros(3, 3), key=KEY, label_names=names)
    with pytest.raises(CacheError, match='knows rows by their text'):
        start(KnowledgeDistillation(cache=cache, **SAME), data=toys.Sentences(16), fit=True)


def test_files_of_before_are_read_as_they_were(tmp_path):
    plain = LogitCache(torch.tensor([1, 2]), torch.zeros(2, 2), key=KEY)
    assert LogitCache.open(plain.save(tmp_path / 'c.safetensors')).by_text is False
