"""A model is the model that was named: whole, of its own config, with a tokenizer that fits; else one sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from composer_cmi.errors import ConfigError
from composer_cmi.run.config.schema import ModelConfig
from composer_cmi.run.models import build_model
from composer_cmi.teachers.pretrained import check_fit, fit_tokenizer, positions
from composer_cmi.teachers.teacher import load_teacher
from run_tools import make_model

NAMES = ('food', 'weather')
TINY = {'hidden_size': 16, 'num_hidden_layers': 2, 'num_attention_heads': 2, 'intermediate_size': 32}


def build(folder: Path, **changes):
    return build_model(ModelConfig(name_or_path=str(folder), **changes), NAMES)


def edit_config(folder: Path, **changes) -> None:
    path = folder / 'config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder: Path, rename) -> None:
    path = folder / 'model.safetensors'
    renamed = {rename(key): value for key, value in load_file(path).items()}
    save_file({key: value for key, value in renamed.items() if key}, path, metadata={'format': 'pt'})


def bare(folder: Path) -> None:
    AutoModelForSequenceClassification.from_pretrained(folder).base_model.save_pretrained(folder)


# What is done to a whole BERT of two layers, and words of the sentence.
FOREIGN = {
    'another width': (lambda f: edit_config(f, hidden_size=32), r'35 of the 41 tensors .*\(bert\.embeddings'),
    'another vocabulary': (lambda f: edit_config(f, vocab_size=500), r'1 of the 41 tensors .*word_embeddings'),
    'more layers': (lambda f: edit_config(f, num_hidden_layers=3), r'16 of the 57 tensors .*encoder\.layer\.2'),
    'fewer layers': (lambda f: edit_config(f, num_hidden_layers=1), r'16 tensors .*no place .*encoder\.layer\.1'),
    'fewer layers, no head': (
        lambda f: (bare(f), edit_config(f, num_hidden_layers=1)),
        r'16 tensors .*no place .*layer\.1',
    ),
    'another prefix': (lambda f: edit_weights(f, lambda key: f'net.{key}'), r'37 of the 41 tensors'),
    'one tensor less': (lambda f: edit_weights(f, lambda k: k if 'layer.1.output.dense.w' not in k else ''), '1 of'),
    'another architecture': (lambda f: edit_config(f, model_type='distilbert'), 'is corrupted|of DistilBert'),
    'another, much alike': (lambda f: edit_config(f, model_type='electra'), r'of ElectraForSequenceClass'),
}


@pytest.mark.parametrize('case', FOREIGN)
def test_promise_10_a_model_that_its_file_does_not_hold_is_refused(tmp_path, case):
    change, sentence = FOREIGN[case]
    folder = make_model(tmp_path / 'model')
    build(folder)
    load_teacher(folder)
    change(folder)
    with pytest.raises(ConfigError, match=sentence) as error:
        build(folder)
    assert str(error.value).startswith('model.name_or_path: ') and '\n' not in str(error.value)
    with pytest.raises(ConfigError, match=sentence):
        load_teacher(folder)


def test_promise_10_an_override_that_makes_another_model_is_refused(tmp_path):
    folder = make_model(tmp_path / 'model')
    for changes in ({'hidden_size': 32}, {'num_hidden_layers': 4}, {'max_position_embeddings': 64}):
        with pytest.raises(ConfigError, match='only a head may start at random'):
            build(folder, config_overrides=changes)
    with pytest.raises(ConfigError, match=r'fewer layers are model\.keep_layers'):
        build(folder, config_overrides={'num_hidden_layers': 1})
    assert build(folder, keep_layers=[1])[0].config.num_hidden_layers == 1
    build(folder, config_overrides={'hidden_dropout_prob': 0.2})


def test_promise_10_what_is_new_is_said(tmp_path, capsys):
    folder = make_model(tmp_path / 'model')
    build(folder)
    assert 'random' not in capsys.readouterr().out
    model, _ = build_model(ModelConfig(name_or_path=str(folder)), ('a', 'b', 'c'))
    assert '2 tensors are not in its file and start at random: classifier.bias, classifier.weight.' in (
        capsys.readouterr().out
    )
    assert model.classifier.weight.shape == (3, 16)
    transformers.BertModel(model.config, add_pooling_layer=False).save_pretrained(folder)
    build(folder)
    assert '4 tensors' in (out := capsys.readouterr().out) and 'bert.pooler.dense.weight' in out
    with pytest.raises(ConfigError, match=r'weights are missing in it \(bert\.pooler\.dense\.bias'):
        load_teacher(folder)


def test_promise_10_a_masked_language_model_is_whole(tmp_path, capsys):
    """Its head for words has no place here, and that is no fault."""
    folder = make_model(tmp_path / 'model')
    config = transformers.AutoConfig.from_pretrained(folder)
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    build(folder)
    assert 'bert.pooler.dense.bias, bert.pooler.dense.weight, classifier.bias' in capsys.readouterr().out


def test_promise_10_adapters_are_no_model(tmp_path):
    peft = pytest.importorskip('peft')
    folder = make_model(tmp_path / 'model')
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    lora = peft.get_peft_model(model, peft.LoraConfig(task_type='SEQ_CLS', target_modules=['query']))
    lora.save_pretrained(tmp_path / 'adapter')
    lora.save_pretrained(folder)  # beside the model, which transformers would then load with it
    for place in (tmp_path / 'adapter', folder):
        with pytest.raises(ConfigError, match='holds adapters only'):
            build(place)
        with pytest.raises(ConfigError, match='holds adapters only'):
            load_teacher(place)


@pytest.mark.parametrize('file', ['model.safetensors', 'config.json', 'tokenizer.json'])
@pytest.mark.parametrize('keep', [0, 0.5])
def test_promise_10_a_cut_file_is_one_sentence(tmp_path, file, keep):
    folder = make_model(tmp_path / 'model')
    (folder / 'vocab.txt').unlink()
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ConfigError, match=r"^model\.name_or_path: '.*/model' cannot be loaded") as error:
        build(folder)
    assert '\n' not in str(error.value)


# --- what a model can read --------------------------------------------------------------------------------------------


def fitted(folder: Path, model) -> tuple:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    fit_tokenizer(model, tokenizer)
    return model, tokenizer


def test_promise_11_roberta_has_two_positions_fewer(tmp_path):
    folder = make_model(tmp_path / 'model')
    for kind in ('Roberta', 'MPNet'):
        config = getattr(transformers, f'{kind}Config')(**TINY, vocab_size=200, max_position_embeddings=34)
        model, tokenizer = fitted(folder, getattr(transformers, f'{kind}ForSequenceClassification')(config))
        assert positions(model) == 32
        check_fit(model, tokenizer, 32)
        with pytest.raises(ConfigError, match=r'data\.max_length: 33 is more than the 32 positions of the model'):
            check_fit(model, tokenizer, 33)


def test_promise_11_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path):
    folder = make_model(tmp_path / 'model')
    model, tokenizer = build(folder)
    rows = len(tokenizer)
    check_fit(model, tokenizer, 16)
    tokenizer.add_tokens(['newword'])
    with pytest.raises(ConfigError, match=rf'ids go up to {rows}, .* has {rows} rows'):
        check_fit(model, tokenizer, 16)
    tokenizer.save_pretrained(folder)
    with pytest.raises(ConfigError, match=f'the teacher: the tokenizer.s ids go up to {rows}'):
        check_fit(load_teacher(folder).members[0].module, tokenizer, 16, what='the teacher')


def test_promise_11_a_model_that_sees_the_padding_is_refused(tmp_path):
    """FNet has no attention mask: its answers depend on the longest text of a batch."""
    folder = make_model(tmp_path / 'model')
    config = transformers.FNetConfig(
        vocab_size=200, hidden_size=16, num_hidden_layers=2, intermediate_size=32, max_position_embeddings=32
    )
    model, tokenizer = fitted(folder, transformers.FNetForSequenceClassification(config))
    with pytest.raises(ConfigError, match='the logits of FNetForSequenceClassification depend on how far'):
        check_fit(model, tokenizer, 16)


def test_promise_11_an_encoder_decoder_needs_a_padding_token_of_its_own(tmp_path):
    """It finds a text's end by the end-of-text token, of which padding would make more."""
    folder = make_model(tmp_path / 'model')
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token, tokenizer.eos_token = None, '[SEP]'
    model = transformers.T5ForSequenceClassification(
        transformers.T5Config(vocab_size=200, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    )
    with pytest.raises(ConfigError, match='neither a padding token nor'):
        fit_tokenizer(model, tokenizer)
    tokenizer.pad_token = '[PAD]'
    tokenizer.eos_token = '[MASK]'  # which stands in no text
    model.config.eos_token_id = tokenizer.eos_token_id
    with pytest.raises(ConfigError, match='T5ForSequenceClassification cannot read a text of 16 tokens'):
        check_fit(*fitted(folder, model), 16)


def test_promise_11_damaged_weights_are_refused_and_trying_leaves_no_trace(tmp_path):
    model, tokenizer = build(make_model(tmp_path / 'model'))
    before = torch.get_rng_state()
    check_fit(model.train(), tokenizer, 16)
    assert torch.equal(torch.get_rng_state(), before) and model.training
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight[0, 0] = float('nan')
    with pytest.raises(ConfigError, match='are not finite: its weights are damaged'):
        check_fit(model, tokenizer, 16)


def test_promise_09_a_live_teacher_follows_the_tokenizer_of_the_student(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(make_model(tmp_path / 'model'))
    tokenizer.pad_token = '[UNK]'
    config = transformers.LlamaConfig(**TINY, vocab_size=200, pad_token_id=7, num_labels=2)
    teacher = load_teacher(transformers.LlamaForSequenceClassification(config))
    before = teacher.members[0].module.config.pad_token_id
    teacher.check_vocabulary(tokenizer)
    assert (before, teacher.members[0].module.config.pad_token_id) == (7, tokenizer.pad_token_id)
    rows = [[20, 21, 22, 23, 24], [30]]
    batch = tokenizer.pad({'input_ids': rows}, return_tensors='pt')
    alone = teacher.logits({'input_ids': torch.tensor([rows[1]])})
    torch.testing.assert_close(teacher.logits(batch)[1:], alone, atol=1e-6, rtol=1e-4)


WITHOUT_COMPOSER = """
import sys, types
sys.modules['composer'] = None  # importing it raises ImportError
package = types.ModuleType('composer_cmi')
package.__path__ = [sys.argv[1]]
sys.modules['composer_cmi'] = package
import torch
from composer_cmi.teachers import compatibility, forward, loading, logit_cache, pretrained, teacher
assert not any(name.startswith('composer.') for name in sys.modules)
assert 'transformers' not in sys.modules
one = teacher.load_teacher(torch.nn.Linear(2, 3))
assert one.logits((torch.ones(4, 2), None)).shape == (4, 3)
two = teacher.load_teacher(sys.argv[2])
ids = {'input_ids': torch.tensor([[2, 7, 3]]), 'example_id': torch.tensor([5])}
rows = [{'input_ids': [2, 7, 3], 'example_id': 5}]
stored = forward.run_teacher(two, rows, lambda _: ids)
key = logit_cache.CacheKey(two.fingerprint, forward.inputs_fingerprint(rows, lambda _: ids))
logit_cache.LogitCache(*stored, key=key).save(sys.argv[3])
logit_cache.LogitCache.open(sys.argv[3], key)
"""


def test_the_teachers_work_where_composer_cannot_be_imported(tmp_path):
    package = Path(__file__).parents[1] / 'composer_cmi'
    arguments = [str(package), str(make_model(tmp_path / 'model')), str(tmp_path / 'x.safetensors')]
    done = subprocess.run([sys.executable, '-c', WITHOUT_COMPOSER, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
