"""Decoders and LoRA models through whole runs, by all three algorithms; what is read is the last real token."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from composer.models import huggingface
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.models.auto import modeling_auto

from composer_cmi import functional
from composer_cmi.run.command import run_file
from composer_cmi.run.outputs.history import read_history
from composer_cmi.run.outputs.results import RunResults, load_results
from composer_cmi.run.parts.classifier import build_composer_model
from run_tools import SENTENCES, make_model, make_yaml

SIZES = {'hidden_size': 16, 'num_hidden_layers': 2, 'num_attention_heads': 2}
CONFIGS = {
    'gpt2': lambda: transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32),
    'llama': lambda: transformers.LlamaConfig(**SIZES, intermediate_size=32, max_position_embeddings=32),
}
ARMS = {
    'ce_teacher': {'algorithms.cmi_regularization': {'weight': 0}},
    'mincmi': {'algorithms.cmi_regularization': {'weight': 3, 'start': '0dur'}},
    'maxcmi': {'algorithms.cmi_maximization': {'weight': 3, 'space': 'features', 'form': 'scaled', 'start': '0dur'}},
    'student': {
        'algorithms.knowledge_distillation': {'teacher': 'arm:ce_teacher', 'allow_weak_teacher': True},
        'algorithms.cmi_regularization': {'weight': 0.2, 'start': '0dur'},
    },
}
QUICK: dict[str, Any] = {
    'algorithms': {},
    'arms': ARMS,
    'train': {'max_duration': '6ba', 'eval_interval': '0ba', 'batch_size': 8, 'device': 'cpu', 'progress_bar': False},
    'checkpoint': {'save_interval': '6ba'},
}


def make_decoder(folder: Path, name: str, padding: str) -> None:
    """A random decoder and a tokenizer of whole words, without a padding token, as GPT-2 and Llama come."""
    words = sorted({word for texts in SENTENCES.values() for text in texts for word in text.split()})
    backend = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(['<unk>', '<end>', *words])}, unk_token='<unk>')
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token='<unk>', eos_token='<end>', padding_side=padding, model_max_length=32
    )
    tokenizer.save_pretrained(folder)
    config = CONFIGS[name]()
    config.vocab_size, config.eos_token_id, config.bos_token_id = len(tokenizer), 1, 1
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)


def make_texts(folder: Path) -> None:
    """Texts of different lengths that end in different words, which is what a decoder reads."""
    folder.mkdir(parents=True)
    rows = [(text, label) for label, texts in SENTENCES.items() for text in texts]
    train = [f'{before} {text}'.strip() + f'\t{label}' for before in ('', 'a', 'in the') for text, label in rows]
    dev = [f'over {text}\t{label}' for text, label in rows]
    for name, lines in (('train', train), ('dev', dev)):
        (folder / f'{name}.tsv').write_text('\n'.join(['text\tlabel', *lines]) + '\n')


def widen(folder: Path) -> None:
    """As initialised, 16 wide, its features are the same for every text to seven digits."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
    model.save_pretrained(folder)


def run(path: Path) -> dict[str, RunResults]:
    assert run_file(str(path), []) == 0
    found = {name: load_results(path.parent / 'runs' / 'tiny' / name) for name in ARMS}
    return {name: results for name, results in found.items() if results is not None}


def check(folder: Path, results: dict[str, RunResults]) -> None:
    """Each arm trained, by its own algorithm; no two became the same."""
    assert list(results) == list(ARMS)
    for name, one in results.items():
        history = read_history(folder / 'runs' / 'tiny' / name / 'history.csv')
        losses = [row['loss/train/total'] for row in history if 'loss/train/total' in row]
        assert len(losses) == 6 and all(map(math.isfinite, losses))
        assert len([row for row in history if 'cmi/cmi' in row]) == 6
        assert one.cmi['before']['features'] == results['ce_teacher'].cmi['before']['features']
        assert one.cmi['before']['features'].cmi > 0
    assert len({one.cmi['after']['features'].cmi for one in results.values()}) == len(ARMS)
    after = {name: one.cmi['after']['features'].cmi for name, one in results.items()}
    assert after['mincmi'] < after['ce_teacher'] < after['maxcmi']
    facts = results['student'].teacher
    assert facts is not None and facts['source'].endswith('ce_teacher')


def dev_rows(folder: Path) -> tuple[list[str], torch.Tensor]:
    lines = [line.split('\t') for line in (folder / 'data' / 'dev.tsv').read_text().splitlines()[1:]]
    return [text for text, _ in lines], torch.tensor([['food', 'weather'].index(label) for _, label in lines])


def features_one_by_one(folder: Path, arm: str) -> torch.Tensor:
    """`[N, D]`: the last hidden state of each text's last word, every text on its own, so without any padding."""
    model = AutoModelForSequenceClassification.from_pretrained(folder / 'runs' / 'tiny' / arm / 'model').eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / 'runs' / 'tiny' / arm / 'model')
    with torch.no_grad():
        rows = [model.base_model(**tokenizer(text, return_tensors='pt'))[0][0, -1] for text in dev_rows(folder)[0]]
    return torch.stack(rows)


def cmi(features: torch.Tensor, labels: torch.Tensor) -> float:
    stats = functional.class_statistics(functional.log_distribution(features), labels, 2)
    return float(functional.conditional_mutual_information(stats))


def test_building_a_model_imports_none_of_the_causal_models(tmp_path, monkeypatch):
    class Untouched:
        def values(self) -> Any:
            raise AssertionError('every causal language model would be imported')

    monkeypatch.setattr(modeling_auto, 'MODEL_FOR_CAUSAL_LM_MAPPING', Untouched())
    folder = make_model(tmp_path / 'model')
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    built = build_composer_model(model, AutoTokenizer.from_pretrained(folder))
    assert built.shift_labels is False
    with pytest.raises(AssertionError, match='every causal'):  # Composer's own is as it was
        huggingface._is_registered_causal_lm(model)


@pytest.mark.parametrize(
    ('name', 'padding'),
    [
        ('llama', 'left'),
        ('llama', 'right'),
        ('gpt2', 'right'),
        pytest.param('gpt2', 'left', marks=pytest.mark.slow),
    ],
)
def test_a_decoder_trains_by_every_algorithm_on_its_last_real_token(tmp_path, name, padding):
    make_decoder(tmp_path / 'model', name, padding)
    make_texts(tmp_path / 'data')
    results = run(make_yaml(tmp_path, **QUICK))
    check(tmp_path, results)
    labels = dev_rows(tmp_path)[1]
    for arm in ('mincmi', 'maxcmi'):
        alone = features_one_by_one(tmp_path, arm)
        measured = results[arm].cmi['after']['features'].cmi
        if (name, padding) != ('gpt2', 'left'):  # whose absolute positions count the padding
            assert measured == pytest.approx(cmi(alone, labels), rel=1e-3)


def test_left_and_right_padding_train_the_same_llama(tmp_path):
    found = {}
    for padding in ('left', 'right'):
        folder = tmp_path / padding
        make_decoder(folder / 'model', 'llama', padding)
        make_texts(folder / 'data')
        path = make_yaml(folder, **{**QUICK, 'arms': {'mincmi': ARMS['mincmi']}})
        assert run_file(str(path), []) == 0
        found[padding] = load_results(folder / 'runs' / 'tiny' / 'mincmi')
    one, other = (found[padding].cmi['after'] for padding in ('left', 'right'))
    for space in ('features', 'logits'):
        assert one[space].cmi == pytest.approx(other[space].cmi, rel=1e-3)
    assert found['left'].scores['dev']['nll'] == pytest.approx(found['right'].scores['dev']['nll'], rel=1e-4)


@pytest.mark.parametrize('name', ['bert', 'llama'])
def test_a_lora_model_trains_by_every_algorithm_and_exports_what_it_learnt(tmp_path, name):
    pytest.importorskip('peft')
    targets = ['query', 'value', 'dense'] if name == 'bert' else ['q_proj', 'v_proj']
    if name == 'bert':
        widen(make_model(tmp_path / 'model'))
    else:
        make_decoder(tmp_path / 'model', name, 'left')
    make_texts(tmp_path / 'data')
    lora = {'r': 2, 'lora_alpha': 4, 'target_modules': targets}
    results = run(make_yaml(tmp_path, **QUICK, peft=lora, optimizer={'lr': 3e-3}))
    check(tmp_path, results)
    before = AutoModelForSequenceClassification.from_pretrained(tmp_path / 'model').state_dict()
    after = AutoModelForSequenceClassification.from_pretrained(tmp_path / 'runs' / 'tiny' / 'mincmi' / 'model')
    changed = {key for key, value in after.state_dict().items() if not torch.equal(value, before[key])}
    # LoRA moves what it is put on, and the head; nothing else.
    assert changed and all(any(part in key for part in (*targets, 'score', 'classifier')) for key in changed)
    assert any(part in key for key in changed for part in targets)
    if name == 'llama':  # the merged model, read without padding, has the features that the run measured
        alone = features_one_by_one(tmp_path, 'mincmi')
        assert results['mincmi'].cmi['after']['features'].cmi == pytest.approx(
            cmi(alone, dev_rows(tmp_path)[1]), rel=1e-3
        )
