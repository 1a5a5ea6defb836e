"""Beside each of Composer's own algorithms and modes: works in any listing order, or is refused with the reason.

The table in `docs/partners.md` is what these tests found; `make partners` writes it anew.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Trainer
from composer.algorithms import (
    EMA,
    SAM,
    SWA,
    BlurPool,
    ColOut,
    CutMix,
    CutOut,
    GatedLinearUnits,
    GradientClipping,
    LabelSmoothing,
    LayerFreezing,
    LowPrecisionLayerNorm,
    MixUp,
    ProgressiveResizing,
    SelectiveBackprop,
)
from composer.core import Algorithm
from composer.loggers import InMemoryLogger
from composer.models import ComposerClassifier, ComposerModel, HuggingFaceModel
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

import toys
from composer_cmi import registry
from composer_cmi.algorithms import (
    CMIMaximization,
    CMIRegularization,
    KnowledgeDistillation,
    NormPenalty,
    RDrop,
    SupervisedContrast,
)
from composer_cmi.errors import ConfigError
from composer_cmi.run.parts.by_name import get_algorithm, known_algorithms

DOCS = Path(__file__).parents[1] / 'docs' / 'partners.md'
STEPS = 8


def bert(dropout: float = 0.0) -> HuggingFaceModel:
    return toys.tiny_bert(dropout)


def cnn(dropout: float = 0.0, seed: int = 1) -> ComposerClassifier:
    """Strided convolutions and a pooling, wide enough for BlurPool; features are 16 channel means."""
    toys.reproducibility.seed_all(seed)
    blocks = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    blocks += [nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    drops = [nn.Dropout(dropout)] if dropout else []
    return ComposerClassifier(nn.Sequential(*blocks, *drops, nn.Linear(16, toys.CLASSES)), num_classes=toys.CLASSES)


def images(n: int = 64) -> TensorDataset:
    """Noise with one bright corner or another."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(toys.CLASSES, (n,), generator=generator)
    x = torch.randn(n, 3, 12, 12, generator=generator)
    for i, label in enumerate(labels.tolist()):
        x[i, label, :6] += 1.5
    return TensorDataset(x, labels)


OURS: dict[str, Callable[[Callable[..., Any]], Algorithm]] = {
    'CMIRegularization': lambda model: CMIRegularization(0.3, start='1ba'),
    'CMIMaximization': lambda model: CMIMaximization(0.5, start='1ba'),
    'KnowledgeDistillation': lambda model: KnowledgeDistillation(teacher(model), assume_same_labels=True),
    'NormPenalty': lambda model: NormPenalty(0.5),
    'SupervisedContrast': lambda model: SupervisedContrast(0.3),
    'RDrop': lambda model: RDrop(1.0),
}
LOGGED = {'KnowledgeDistillation': 'distillation/loss', 'CMIRegularization': 'cmi/loss', 'CMIMaximization': 'cmi/loss'}
CUTS = ('gradient accumulation', 'gradient accumulation (CNN)', 'auto-microbatching, replay after out of memory')
# Rows are compared within a pass, or dropout is drawn for one: how a batch is cut is part of the result, as the cards say.
OF_THE_CUT = ('SupervisedContrast', 'RDrop')


def teacher(make: Callable[..., Any]) -> nn.Module:
    """Another model of the same kind, with other weights."""
    model = make()
    toys.reproducibility.seed_all(9)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.model if isinstance(model, HuggingFaceModel) else model.module


@dataclass
class Partner:
    """One row of the table: what stands beside our algorithm, and what should come of it."""

    model: Callable[..., ComposerModel]
    make: Callable[[], Algorithm] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[Trainer], None] | None = None
    before: Callable[[ComposerModel], None] | None = None
    refused: dict[str, str] = field(default_factory=dict)  # our algorithm -> words of the reason
    same: bool = False  # a mode that must not change what is trained
    silent: bool = False  # an algorithm that leaves the trained weights alone
    note: str = ''


def checkpointing(model: ComposerModel) -> None:
    model.model.gradient_checkpointing_enable({'use_reentrant': False})


def memory_runs_out(trainer: Trainer) -> None:
    """Once, in the second microbatch of the third batch: Composer halves the microbatches and replays the batch."""
    trainer.state.auto_microbatching = True
    module, calls = trainer.state.model, []

    def fail(*args: Any) -> None:
        calls.append(1)
        if len(calls) == 6:
            raise RuntimeError('CUDA out of memory. Injected.')

    module.register_forward_pre_hook(fail)


MIXTURE = 'cannot be combined with'
MIXED = dict.fromkeys(('CMIRegularization', 'CMIMaximization', 'SupervisedContrast'), MIXTURE)
INTERPOLATED = {**MIXED, 'KnowledgeDistillation': MIXTURE, 'RDrop': MIXTURE}
PARTNERS: dict[str, Partner] = {
    'gradient accumulation': Partner(bert, options={'device_train_microbatch_size': 3}, same=True),
    'gradient accumulation (CNN)': Partner(cnn, options={'device_train_microbatch_size': 3}, same=True),
    'auto-microbatching, replay after out of memory': Partner(
        bert,
        options={'device_train_microbatch_size': 8},
        prepare=memory_runs_out,
        same=True,
        note='the aborted pass is forgotten',
    ),
    'gradient checkpointing': Partner(bert, before=checkpointing, same=True),
    'torch.compile': Partner(bert, options={'compile_config': {'backend': 'aot_eager'}}, same=True),
    'torch.compile (CNN)': Partner(cnn, options={'compile_config': {'backend': 'aot_eager'}}, same=True),
    'SAM': Partner(bert, lambda: SAM(rho=0.05), note='of its two passes the first is counted'),
    'GradientClipping': Partner(bert, lambda: GradientClipping('norm', 0.1)),
    'EMA': Partner(bert, lambda: EMA(half_life='2ba'), silent=True, note='averages beside the training'),
    'SWA': Partner(bert, lambda: SWA(swa_start='0.4dur', swa_end='0.9dur', update_interval='1ep')),
    'LayerFreezing': Partner(bert, lambda: LayerFreezing(freeze_start=0.1, freeze_level=0.7)),
    'GatedLinearUnits': Partner(bert, GatedLinearUnits),
    'LowPrecisionLayerNorm': Partner(
        bert, LowPrecisionLayerNorm, silent=True, note='in fp32 it computes what it replaces'
    ),
    'SelectiveBackprop': Partner(cnn, lambda: SelectiveBackprop(start=0.0, end=1.0, interrupt=0)),
    'LabelSmoothing': Partner(cnn, lambda: LabelSmoothing(0.2), note='classes are read before they are smoothed'),
    'MixUp': Partner(cnn, lambda: MixUp(0.4), refused=MIXED),
    'MixUp(interpolate_loss)': Partner(cnn, lambda: MixUp(0.4, interpolate_loss=True), refused=INTERPOLATED),
    'CutMix': Partner(cnn, lambda: CutMix(1.0), refused=MIXED),
    'CutMix(interpolate_loss)': Partner(cnn, lambda: CutMix(1.0, interpolate_loss=True), refused=INTERPOLATED),
    'ProgressiveResizing': Partner(cnn, lambda: ProgressiveResizing(delay_fraction=0.2, finetune_fraction=0.1)),
    'BlurPool': Partner(cnn, lambda: BlurPool(min_channels=2)),
    'ColOut': Partner(cnn, lambda: ColOut(batch=True)),
    'CutOut': Partner(cnn, lambda: CutOut(length=0.5)),
}
FOUND: dict[tuple[str, str], str] = {}


def train(
    partner: Partner, algorithms: list[Algorithm], mode: bool = True, dropout: float = 0.0
) -> tuple[Tensor, dict[str, list[float]]]:
    """Eight batches of 16; the weights and what was logged."""
    model = partner.model(dropout)
    if mode and partner.before is not None:
        partner.before(model)
    data: Dataset = toys.Sentences(64) if partner.model is bert else images()
    if partner.same:  # in double, so that rounding cannot hide what differs, nor blow up into a difference
        model.double()
        data = data if isinstance(data, toys.Sentences) else TensorDataset(data[:][0].double(), data[:][1])
    logger, options = InMemoryLogger(), partner.options if mode else {}
    trainer = toys.trainer(model, data, algorithms, loggers=[logger], seed=3, lr=0.02, **options)
    if mode and partner.prepare is not None:
        partner.prepare(trainer)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        trainer.fit()
    trainer.close()
    assert trainer.state.timestamp.batch == STEPS
    logged = {name: [float(value) for _, value in series] for name, series in logger.data.items()}
    return toys.weights(model), logged


@pytest.mark.parametrize('name', PARTNERS)
@pytest.mark.parametrize('ours', OURS)
def test_partner(ours, name):
    torch.compiler.reset()  # what an earlier test compiled knows nothing of this one's hooks
    partner, make = PARTNERS[name], OURS[ours]
    dropout = 0.3 if ours == 'RDrop' else 0.0  # without any it has no effect
    theirs, of_the_cut = partner.make, ours in OF_THE_CUT and name in CUTS
    if ours in partner.refused:
        reasons = set()
        for order in (1, -1):
            with pytest.raises(ValueError, match=partner.refused[ours]) as error:
                train(partner, [make(partner.model), theirs()][::order])
            reasons.add(str(error.value))
        assert len(reasons) == 1 and not any('. ' in reason for reason in reasons)
        FOUND[name, ours] = f'refused: {reasons.pop()}'
        return
    orders = (
        [[make(partner.model)]]
        if theirs is None
        else [[make(partner.model), theirs()], [theirs(), make(partner.model)]]
    )
    results = [train(partner, algorithms, dropout=dropout) for algorithms in orders]
    weights, logged = results[0]
    assert torch.isfinite(weights).all()
    for other, other_logged in results[1:]:
        torch.testing.assert_close(other, weights, atol=1e-6, rtol=1e-5)
        assert other_logged.keys() == logged.keys()
    ours_logged = LOGGED.get(ours, f'{ours.lower()}/loss')
    assert len(logged[ours_logged]) == STEPS and all(value == value for value in logged[ours_logged])
    alone, alone_logged = train(partner, [make(partner.model)], mode=False, dropout=dropout)
    if of_the_cut:
        assert (weights - alone).abs().max() > 1e-6, 'the cut does not matter: the page may say so'
    elif partner.same:
        torch.testing.assert_close(weights, alone, atol=1e-9, rtol=1e-7)
        assert logged[ours_logged] == pytest.approx(alone_logged[ours_logged], rel=1e-4)
    else:
        without, _ = train(partner, [theirs()], dropout=dropout)
        assert without.shape == weights.shape and (without - weights).abs().max() > 1e-5, 'ours has no effect'
        if not partner.silent:
            assert weights.shape != alone.shape or (weights - alone).abs().max() > 1e-6, 'the partner has no effect'
    found = 'works' if theirs is None else 'works, in any order'
    FOUND[name, ours] = 'works, by the cut' if of_the_cut else found


@pytest.mark.parametrize('make', [SelectiveBackprop, LabelSmoothing, MixUp, CutMix])
def test_what_composer_itself_does_not_do_with_language_models(make):
    """These want one tensor as input and output; they fail with a Hugging Face model without us as well."""
    keys = {'target_key': 'labels'} if make is LabelSmoothing else {'target_key': 'labels', 'input_key': 'input_ids'}
    if make is SelectiveBackprop:
        keys = {**keys, 'start': 0.0, 'end': 1.0}
    with pytest.raises(
        (AttributeError, AssertionError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError)
    ):
        train(Partner(bert), [make(**keys)])


def in_runs() -> list[str]:
    """Which of Composer's a YAML file can name, and what one reads who names another."""
    names = sorted(registry.composer_algorithms())
    refused: dict[str, list[str]] = {}
    for name in names:
        try:
            get_algorithm(name)
        except ConfigError as error:
            refused.setdefault(str(error).partition(': ')[2], []).append(name)
    works = [name for name in names if name in known_algorithms()]
    lines = ['', '## In a run of a YAML file', '', 'Of these, and of the rest of Composer, a file can name']
    lines += [f'`{"`, `".join(works)}`. The others are refused before the run:', '']
    return lines + [f'* `{"`, `".join(group)}`: {reason}' for reason, group in refused.items()]


def table() -> str:
    """The page of the documentation."""
    lines = [
        '# Beside other algorithms',
        '',
        'What the tests found (`tests/test_partners.py`; `make partners` writes this page). Each pair trains in both',
        'orders of listing, the weights are compared, and both sides must have an effect. Language model: a small BERT;',
        'the rest with a `ComposerClassifier` (CNN). With a Hugging Face model SelectiveBackprop, LabelSmoothing, MixUp',
        'and CutMix fail in Composer itself, with us or without. *By the cut*: what is trained depends on the rows of one',
        'forward pass (SupervisedContrast) or on dropout drawn for one (RDrop).',
        '',
        f'| beside | model | {" | ".join(OURS)} | note |',
        f'|---|---|{"---|" * len(OURS)}---|',
    ]
    for name, partner in PARTNERS.items():
        model = 'BERT' if partner.model is bert else 'CNN'
        found = [FOUND[name, ours].split(' cannot be')[0].split(': ')[0] for ours in OURS]
        lines.append(f'| {name.removesuffix(" (CNN)")} | {model} | {" | ".join(found)} | {partner.note} |')
    lines += ['', 'The reasons, as the user reads them before training starts:', '']
    lines += sorted({f'* {text.removeprefix("refused: ")}' for text in FOUND.values() if text.startswith('refused')})
    return '\n'.join([*lines, *in_runs()]) + '\n'


def test_the_page_says_what_was_found():
    if len(FOUND) < len(PARTNERS) * len(OURS):
        pytest.skip('needs all the tests above to have run and passed')
    if os.environ.get('WRITE_PARTNERS'):
        DOCS.parent.mkdir(exist_ok=True)
        DOCS.write_text(table())
    assert DOCS.read_text() == table(), 'run `make partners`'
