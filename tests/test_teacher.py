"""Teachers: from every source, frozen, in eval mode, compared by name."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from composer.models import HuggingFaceModel
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BertTokenizerFast,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

import toys
from composer_cmi.teachers.compatibility import (
    check_numbers,
    check_same_vocabulary,
    label_names_of,
    label_order,
    num_labels_of,
)
from composer_cmi.teachers.teacher import Member, Teacher, load_teacher, weights_fingerprint

NAMES = ['sport', 'tech', 'business']
WORDS = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *(f'w{i}' for i in range(19))]


@pytest.fixture
def tokenizer(tmp_path):
    file = tmp_path / 'vocab.txt'
    file.write_text('\n'.join(WORDS))
    return BertTokenizerFast(str(file))


def named_bert(names=NAMES, seed: int = 1, dropout: float = 0.0) -> BertForSequenceClassification:
    model = toys.tiny_bert(dropout, seed).model
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: i for i, name in enumerate(names)}
    return model


def batch(rows: int = 5) -> dict[str, torch.Tensor]:
    data = toys.Sentences(rows)
    return torch.utils.data.default_collate([data[i] for i in range(rows)])


# --- names of classes -------------------------------------------------------------------------------------------------


def test_swapped_label_maps_are_permuted():
    order = label_order(['a', 'b', 'c'], ['c', 'a', 'b'])
    assert order == [2, 0, 1]
    logits = torch.tensor([[10.0, 20.0, 30.0]])  # a, b, c
    assert logits[:, order].tolist() == [[30.0, 10.0, 20.0]]  # c, a, b


def test_equal_order_needs_no_move_and_letter_case_does_not_matter():
    assert label_order(['ENTAILMENT', 'Neutral'], ['entailment', 'neutral ']) is None


@pytest.mark.parametrize('other', [['a', 'd'], ['a', 'b', 'c'], ['a', 'a']])
def test_other_label_sets_are_refused_even_with_the_word(other):
    for word in (False, True):
        with pytest.raises(ValueError, match='different classes'):
            label_order(['a', 'b'], other, assume_same_labels=word)


def test_missing_names_need_the_word():
    for teacher, student, who in [
        (None, ['a'], 'teacher'),
        (['a'], None, 'student'),
        (None, None, 'teacher and student'),
    ]:
        with pytest.raises(ValueError, match=f'the {who} has only default ones.*assume_same_labels=True'):
            label_order(teacher, student)
        assert label_order(teacher, student, assume_same_labels=True) is None


def test_default_names_are_no_names():
    model = toys.tiny_bert().model
    assert label_names_of(model) is None
    assert label_names_of(named_bert()) == tuple(NAMES)
    assert label_names_of(nn.Linear(2, 2)) is None


def test_numbers_of_classes():
    assert (
        num_labels_of(named_bert()) == 3 and num_labels_of(toys.mlp()) == 3 and num_labels_of(nn.Linear(2, 2)) is None
    )
    check_numbers(3, 3)
    check_numbers(None, 3)
    with pytest.raises(ValueError, match='The teacher has 3 classes, the student 2'):
        check_numbers(3, 2)
    with pytest.raises(ValueError, match='regression'):
        check_numbers(3, 1)


def test_other_vocabulary_is_refused(tokenizer, tmp_path):
    check_same_vocabulary(tokenizer, tokenizer)
    check_same_vocabulary(None, tokenizer)
    file = tmp_path / 'other.txt'
    file.write_text('\n'.join([*WORDS[:-2], WORDS[-1], 'new']))  # one word moved, one unknown
    with pytest.raises(ValueError, match=r'24 and 24 tokens, 2 of the latter'):
        check_same_vocabulary(BertTokenizerFast(str(file)), tokenizer)


# --- logits -----------------------------------------------------------------------------------------------------------


def test_average_of_logits_with_permuted_members():
    one, two = nn.Linear(2, 3), nn.Linear(2, 3)
    x = torch.randn(4, 2)
    with torch.no_grad():
        expected = (one(x) + two(x)) / 2
    teacher = Teacher([Member(one), Member(two)], assume_same_labels=True)
    torch.testing.assert_close(teacher.logits((x, None)), expected)

    first, second = named_bert(NAMES, seed=1), named_bert(NAMES[::-1], seed=2)
    inputs = {k: v for k, v in batch().items() if k in ('input_ids', 'attention_mask')}
    with torch.no_grad():
        expected = (first.eval()(**inputs).logits + second.eval()(**inputs).logits.flip(1)) / 2
    torch.testing.assert_close(load_teacher([first, second]).logits(batch()), expected)


def test_members_must_fit_together():
    with pytest.raises(ValueError, match='different numbers of classes: a 3, b 2'):
        Teacher([Member(nn.Linear(2, 3), None, 'a', 3), Member(nn.Linear(2, 2), None, 'b', 2)])
    with pytest.raises(ValueError, match='different classes'):
        load_teacher([named_bert(), named_bert(['x', 'y', 'z'])])
    with pytest.raises(ValueError, match='the list is empty'):
        load_teacher([])


def test_eval_mode_at_every_call():
    """Dropout of a caller that puts its module back into train mode must not reach the student."""
    model = named_bert(dropout=0.5)
    teacher = load_teacher(model)
    first = teacher.logits(batch())
    model.train()
    assert torch.equal(teacher.logits(batch()), first)
    model.train()
    assert torch.equal(teacher.logits(batch()), first)


def test_frozen():
    model = named_bert()
    logits = load_teacher(model).logits(batch())
    assert not logits.requires_grad and not any(p.requires_grad for p in model.parameters())
    assert not logits.is_inference()  # such a tensor could not be saved for the student's backward pass


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtype(dtype):
    model = named_bert()
    expected = load_teacher(copy.deepcopy(model)).logits(batch())
    logits = load_teacher(model.to(dtype)).logits(batch())
    assert logits.dtype == torch.float32 and next(model.parameters()).dtype == dtype
    torch.testing.assert_close(logits, expected, atol=2e-2, rtol=0)
    mlp = load_teacher(toys.mlp().to(dtype))
    assert mlp.logits((torch.randn(2, toys.INPUTS), None)).dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_other_device():
    model = named_bert()
    expected = load_teacher(copy.deepcopy(model)).logits(batch())
    logits = load_teacher(model.cuda()).logits(batch())  # the batch is on the CPU
    torch.testing.assert_close(logits.cpu(), expected, atol=1e-3, rtol=1e-3)


def test_a_batch_is_moved_to_the_weights():
    """The meta device stands for any other one."""
    assert load_teacher(nn.Linear(2, 3).to('meta')).logits((torch.randn(4, 2), None)).device.type == 'meta'


def test_labels_do_not_reach_the_teacher():
    with_labels = batch()
    with_labels['labels'] = torch.full((5,), 99)  # a loss of them would raise
    assert load_teacher(named_bert()).logits(with_labels).shape == (5, 3)


def test_a_composer_classifier_and_a_plain_module():
    model, x = toys.mlp(), torch.randn(4, toys.INPUTS)
    expected = model.module.eval()(x).detach()
    assert torch.equal(load_teacher(model).logits((x, torch.zeros(4))), expected)
    assert torch.equal(load_teacher(model.module).logits((x, torch.zeros(4))), expected)
    assert load_teacher(model).num_labels == 3 and load_teacher(model.module).num_labels is None


def test_segments_that_a_distilbert_tokenizer_leaves_out(tokenizer):
    """[CLS] a [SEP] b c [SEP] [PAD]: BERT must see the second sentence as such."""
    model = named_bert()
    teacher = Teacher([Member(model, tokenizer)])
    ids = torch.tensor([[2, 5, 3, 6, 7, 3, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 0]])
    segments = torch.tensor([[0, 0, 0, 1, 1, 1, 0]])
    expected = model(input_ids=ids, attention_mask=mask, token_type_ids=segments).logits
    torch.testing.assert_close(teacher.logits({'input_ids': ids, 'attention_mask': mask}), expected)
    assert not torch.allclose(model(input_ids=ids, attention_mask=mask).logits, expected)


def test_keys_that_a_teacher_does_not_know_are_dropped():
    config = DistilBertConfig(vocab_size=24, dim=16, hidden_dim=32, n_layers=1, n_heads=2, num_labels=3)
    teacher = load_teacher(DistilBertForSequenceClassification(config))
    inputs = batch()
    expected = teacher.logits(inputs)
    inputs['token_type_ids'] = torch.ones_like(inputs['input_ids'])
    assert torch.equal(teacher.logits(inputs), expected)


@pytest.mark.parametrize('change', [{'num_labels': 1}, {'problem_type': 'multi_label_classification'}])
def test_no_single_label_classifier(change):
    config = BertConfig(vocab_size=24, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, **change)
    with pytest.raises(ValueError, match='no single-label classifier'):
        load_teacher(BertForSequenceClassification(config))


# --- fingerprint ------------------------------------------------------------------------------------------------------


def test_fingerprint_follows_weights_and_names_only(tmp_path):
    model = named_bert()
    first = weights_fingerprint(model)
    model.save_pretrained(tmp_path / 'm')
    assert load_teacher(tmp_path / 'm').fingerprint == first == load_teacher(model.train()).fingerprint
    assert load_teacher(named_bert(NAMES[::-1])).fingerprint != first
    assert load_teacher(copy.deepcopy(model).to(torch.bfloat16)).fingerprint != first
    with torch.no_grad():
        model.classifier.bias[0] += 1e-6
    assert weights_fingerprint(model) != first


# --- sources ----------------------------------------------------------------------------------------------------------


def test_hugging_face_folder_and_run_folder(tmp_path, tokenizer):
    model, run = named_bert(), tmp_path / 'run'
    model.save_pretrained(run / 'model')
    tokenizer.save_pretrained(run / 'model')
    expected = load_teacher(model).logits(batch())
    (run / 'config.yaml').write_text('task: x')
    with pytest.raises(ValueError, match='not finished'):
        load_teacher(run)
    (run / 'results.json').write_text(json.dumps({}))
    for spec in (run, str(run), run / 'model'):
        teacher = load_teacher(spec)
        assert torch.equal(teacher.logits(batch()), expected)
        assert teacher.label_names == tuple(NAMES) and teacher.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert load_teacher(teacher) is teacher


def test_composer_checkpoint(tmp_path, tokenizer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    student = HuggingFaceModel(named_bert(), tokenizer, use_logits=True)
    trainer = toys.trainer(student, toys.Sentences(16), [], max_duration='1ba', save_folder=str(tmp_path / 'save'))
    trainer.fit()
    trainer.close()
    (file,) = [p for p in (tmp_path / 'save').glob('*.pt') if not p.is_symlink()]
    before = set(tmp_path.iterdir())
    teacher = load_teacher(file)
    assert torch.equal(teacher.logits(batch()), load_teacher(student.model).logits(batch()))
    assert teacher.label_names == tuple(NAMES) and teacher.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert set(tmp_path.iterdir()) == before  # Composer's own loader leaves a tokenizer folder behind


def test_what_is_no_teacher(tmp_path):
    with pytest.raises(FileNotFoundError, match='no such file or folder'):
        load_teacher(tmp_path / 'nothing')
    with pytest.raises(FileNotFoundError, match='no such file or folder'):
        load_teacher('./nothing')
    with pytest.raises(ValueError, match=r'neither config\.json'):
        load_teacher(tmp_path)
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a' / 'adapter_config.json').write_text('{}')
    with pytest.raises(ValueError, match='adapters only'):
        load_teacher(tmp_path / 'a')
    (tmp_path / 'b').mkdir()
    (tmp_path / 'b' / 'config.yaml').write_text('')
    with pytest.raises(ValueError, match='no exported model'):
        load_teacher(tmp_path / 'b')
    torch.save({'state': {}}, tmp_path / 'x.pt')
    with pytest.raises(ValueError, match='no Composer checkpoint'):
        load_teacher(tmp_path / 'x.pt')
    (tmp_path / 'y.pt').write_bytes(b'nothing')
    with pytest.raises(ValueError, match='no Composer checkpoint'):
        load_teacher(tmp_path / 'y.pt')


def test_a_bare_encoder_is_no_teacher(tmp_path):
    """transformers would give it a random head and only warn."""
    BertModel(named_bert().config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r'no trained classifier, weights are missing in it \(classifier'):
        load_teacher(tmp_path)


def test_loading_draws_no_random_numbers(tmp_path):
    named_bert().save_pretrained(tmp_path / 'm')
    student = HuggingFaceModel(named_bert(), use_logits=True)
    trainer = toys.trainer(student, toys.Sentences(16), [], max_duration='1ba', save_folder=str(tmp_path / 'save'))
    trainer.fit()
    trainer.close()
    (file,) = [p for p in (tmp_path / 'save').glob('*.pt') if not p.is_symlink()]
    before = torch.get_rng_state()
    for spec in (tmp_path / 'm', file):
        load_teacher(spec).logits(batch())
        assert torch.equal(torch.get_rng_state(), before)
