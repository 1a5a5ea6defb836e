"""KnowledgeDistillation: the numbers, then in a real Trainer: cached as online, any split, any order, resumed."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from composer.algorithms import SAM, SWA, CutMix, GradientClipping, LabelSmoothing, MixUp
from composer.core import Algorithm, Event
from composer.loggers import InMemoryLogger
from composer.models import ComposerClassifier
from composer.utils import dist
from torch import nn
from torch.utils.data import default_collate

import toys
from composer_cmi.algorithms import CMIRegularization, KnowledgeDistillation
from composer_cmi.algorithms.distillation import distillation_loss
from composer_cmi.functional import distillation_divergence
from composer_cmi.logit_cache import CacheError, CacheKey, LogitCache
from composer_cmi.teacher import load_teacher
from composer_cmi.teacher_pass import run_teacher

NAMES = ['sport', 'tech', 'business']
SAME = {'assume_same_labels': True}


def teacher_bert(seed: int = 9) -> nn.Module:
    """Another BERT with dropout, with logits far enough apart to teach something."""
    model = toys.tiny_bert(dropout=0.3, seed=seed, layers=3).model
    with torch.no_grad():
        model.classifier.weight.mul_(20)
    return model


def cached(data, teacher, **changes) -> LogitCache:
    ids, logits = run_teacher(load_teacher(copy.deepcopy(teacher)), data, default_collate)
    return LogitCache(ids, logits, key=CacheKey(load_teacher(teacher).fingerprint, 'd'), **changes)


class Losses(Algorithm):
    """Keeps the loss of every microbatch: listed first, it comes last at AFTER_LOSS but for KnowledgeDistillation."""

    def __init__(self):
        self.values: list[float] = []

    def match(self, event, state):
        return event == Event.BEFORE_BACKWARD

    def apply(self, event, state, logger):
        self.values.append(float(state.loss.detach()))


def train(algorithms, data=None, *, model=None, **kwargs) -> tuple[torch.Tensor, list[float]]:
    """Weights and losses after three epochs of a small BERT with dropout."""
    model = toys.tiny_bert(dropout=0.1) if model is None else model
    losses = Losses()
    data = toys.Sentences(48) if data is None else data
    options = {'max_duration': '3ep', **kwargs}
    trainer = toys.trainer(model, data, [losses, *algorithms], **options)
    trainer.fit()
    trainer.close()
    return toys.weights(model), losses.values


# --- the formula ------------------------------------------------------------------------------------------------------


def test_literal_numbers():
    """t / tau = (0, ln 3) gives (1/4, 3/4), s = 0 gives (1/2, 1/2); tau = 2, so that t = (0, 2 ln 3)."""
    teacher, student = torch.tensor([[0.0, 2 * math.log(3)]]), torch.zeros(1, 2)
    kl = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)  # 0.13081
    divergence = distillation_divergence(student, teacher, 2.0)
    assert divergence.tolist() == pytest.approx([4 * kl])
    own = torch.tensor(math.log(2))
    loss = distillation_loss(own, divergence, torch.tensor(1.0), 0.25)
    assert float(loss) == pytest.approx(0.75 * 0.693147 + 0.25 * 0.523248, abs=1e-6)


def test_rows_without_labels():
    """Four rows, one labelled: its CE is a quarter of the mean over the rows."""
    divergence = torch.tensor([1.0, 2.0, 3.0, 6.0])
    loss = distillation_loss(torch.tensor(8.0), divergence, torch.tensor(0.25), 0.5)
    assert float(loss) == 0.5 * 8 / 4 + 0.5 * 3
    nothing = distillation_loss(torch.tensor(math.nan), divergence, torch.tensor(0.0), 0.5)
    assert float(nothing) == 1.5


def test_the_edges_are_exact():
    own, divergence, share = torch.tensor(0.1), torch.tensor([0.3, 0.7]), torch.tensor(1.0)
    assert torch.equal(distillation_loss(own, divergence, share, 0.0), own)
    assert torch.equal(distillation_loss(own, divergence, share, 1.0), divergence.mean())
    assert float(distillation_loss(own, torch.tensor([math.inf]), share, 0.0)) == pytest.approx(0.1)
    assert float(distillation_loss(torch.tensor(math.nan), divergence, share, 1.0)) == 0.5


def test_a_microbatch_without_a_label_has_no_nan_gradient():
    logits = torch.randn(3, 4, requires_grad=True)
    own = F.cross_entropy(logits, torch.full((3,), -100))
    teacher = torch.randn(3, 4)
    assert bool(own.isnan())
    loss = distillation_loss(own, distillation_divergence(logits, teacher, 1.0), torch.tensor(0.0), 0.5)
    loss.backward()
    # d KL / d s = softmax(s) - softmax(t)
    expected = 0.5 * (logits.softmax(-1) - teacher.softmax(-1)) / 3
    torch.testing.assert_close(logits.grad, expected)


@pytest.mark.parametrize('tau', [1.0, 4.0])
def test_gradient_at_every_temperature(tau):
    """tau^2 KL has the gradient tau (softmax(s / tau) - softmax(t / tau)): dropping tau^2 at tau = 4 gives 1/16."""
    student, teacher = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3)
    distillation_divergence(student, teacher, tau).mean().backward()
    expected = tau * ((student / tau).softmax(-1) - (teacher / tau).softmax(-1)) / 2
    torch.testing.assert_close(student.grad, expected)


# --- arguments and partners -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'alpha': 1.5}, 'between 0 and 1, got 1.5'),
        ({'alpha': -0.1}, 'between 0 and 1'),
        ({'temperature': 0.0}, 'temperature must be positive'),
        ({'teacher': None}, 'needs a teacher'),
        ({'teacher': None, 'cache': 'folder'}, 'needs a teacher'),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        KnowledgeDistillation(**{'teacher': nn.Linear(2, 2), **arguments})
    with pytest.raises(FileNotFoundError):
        KnowledgeDistillation(cache='nothing.safetensors')


def start(*algorithms, model=None, data=None, fit: bool = False) -> None:
    model = toys.tiny_bert() if model is None else model
    trainer = toys.trainer(model, toys.Sentences(16) if data is None else data, list(algorithms), max_duration='1ba')
    try:
        if fit:
            trainer.fit()
    finally:
        trainer.close()


def test_checked_before_training():
    """In the Trainer's constructor."""
    with pytest.raises(ValueError, match='only default ones'):
        start(KnowledgeDistillation(teacher_bert()))
    with pytest.raises(ValueError, match='The teacher has 4 classes, the student 3'):
        start(KnowledgeDistillation(ComposerClassifier(nn.Linear(6, 4), num_classes=4), **SAME))
    with pytest.raises(ValueError, match='Only one KnowledgeDistillation'):
        start(KnowledgeDistillation(teacher_bert(), **SAME), KnowledgeDistillation(teacher_bert(), **SAME))
    student = toys.tiny_bert()
    with pytest.raises(ValueError, match='shares weights with the student'):
        start(KnowledgeDistillation(student, **SAME), model=student)
    assert all(p.requires_grad for p in student.parameters())
    for mixing in (MixUp(interpolate_loss=True), CutMix(interpolate_loss=True)):
        with pytest.raises(ValueError, match='use interpolate_loss=False'):
            start(KnowledgeDistillation(toys.mlp(seed=5), **SAME), mixing, model=toys.mlp())
    table = LogitCache(torch.arange(4), torch.zeros(4, 3), key=CacheKey('t', 'd'))
    with pytest.raises(ValueError, match='with a cache cannot be combined with MixUp'):
        start(KnowledgeDistillation(cache=table, **SAME), MixUp(), model=toys.mlp())


def test_swapped_label_maps_in_training():
    """A teacher that calls its classes in another order teaches the same student."""
    student = toys.tiny_bert()
    student.model.config.id2label = dict(enumerate(NAMES))
    straight = teacher_bert()
    straight.config.id2label = dict(enumerate(NAMES))
    swapped = copy.deepcopy(straight)
    order = [2, 0, 1]
    swapped.config.id2label = {i: NAMES[j] for i, j in enumerate(order)}
    with torch.no_grad():
        swapped.classifier.weight.copy_(straight.classifier.weight[order])
        swapped.classifier.bias.copy_(straight.classifier.bias[order])
    data = toys.Sentences(48)
    names = [NAMES[j] for j in order]
    runs = [
        KnowledgeDistillation(straight),
        KnowledgeDistillation(swapped),
        KnowledgeDistillation(cache=cached(data, swapped, label_names=names)),
    ]
    weights = [train([run], model=copy.deepcopy(student))[0] for run in runs]
    torch.testing.assert_close(weights[1], weights[0])
    torch.testing.assert_close(weights[2], weights[0])


def test_cache_of_another_teacher():
    data = toys.Sentences(16)
    with pytest.raises(CacheError, match='filled by another teacher'):
        start(KnowledgeDistillation(teacher_bert(3), cache=cached(data, teacher_bert(4)), **SAME))


def test_dropped_example_ids(tmp_path):
    class WithoutIds(toys.Sentences):
        def __getitem__(self, i):
            return {key: value for key, value in super().__getitem__(i).items() if key != 'example_id'}

    class Columns(WithoutIds):
        column_names = ('input_ids', 'labels')

    table = cached(toys.Sentences(16), teacher_bert())
    with pytest.raises(ValueError, match="batches have no 'example_id'"):
        start(KnowledgeDistillation(cache=table, **SAME), data=WithoutIds(16), fit=True)
    with pytest.raises(ValueError, match="batches have no 'example_id'"):
        start(KnowledgeDistillation(cache=table, **SAME), data=Columns(16), fit=True)
    with pytest.raises(ValueError, match="training rows have no 'example_id'"):
        start(KnowledgeDistillation(teacher_bert(), cache=tmp_path, **SAME), data=WithoutIds(16), fit=True)


def test_examples_that_the_cache_lacks():
    class Known(toys.Sentences):
        example_ids = torch.arange(32)

    table = cached(toys.Sentences(16), teacher_bert())
    with pytest.raises(KeyError, match='16 examples have no stored logits'):
        start(KnowledgeDistillation(cache=table, **SAME), data=Known(32), fit=True)  # seen at FIT_START
    trainer = toys.trainer(toys.tiny_bert(), toys.Sentences(32), [KnowledgeDistillation(cache=table, **SAME)])
    with pytest.raises(KeyError, match='no stored logits'):
        trainer.fit()
    trainer.close()


def test_shapes_that_only_a_forward_pass_shows():
    with pytest.raises(ValueError, match=r'shape \[16, 4\], the student'):
        start(KnowledgeDistillation(nn.Linear(6, 4), **SAME), model=toys.mlp(), data=toys.points(16), fit=True)


def test_a_batch_without_labels():
    class WithoutLabels(toys.Sentences):
        def __getitem__(self, i):
            return {key: value for key, value in super().__getitem__(i).items() if key != 'labels'}

    with pytest.raises(ValueError, match="no labels at 'labels'"):
        start(KnowledgeDistillation(teacher_bert(), **SAME), data=WithoutLabels(16), fit=True)


# --- training ---------------------------------------------------------------------------------------------------------


def test_alpha_0_is_the_student_alone_bit_by_bit():
    """Dropout masks included: a teacher draws no random numbers."""
    alone = train([])
    for run in ({}, {'device_train_microbatch_size': 4}):
        alone = train([], **run)
        taught = train([KnowledgeDistillation(teacher_bert(), alpha=0.0, **SAME)], **run)
        assert torch.equal(taught[0], alone[0]) and taught[1] == alone[1]


def test_alpha_1_is_the_divergence_alone():
    """No label is looked at."""
    data = toys.Sentences(48)
    run = {'alpha': 1.0, **SAME}
    weights, losses = train([KnowledgeDistillation(teacher_bert(), **run)], data)
    data.labels = (data.labels + 1) % 3
    others = train([KnowledgeDistillation(teacher_bert(), **run)], data)
    assert torch.equal(weights, others[0]) and losses == others[1]
    data.labels = torch.full((48,), -100)
    assert torch.equal(weights, train([KnowledgeDistillation(teacher_bert(), **run)], data)[0])


def test_first_loss_by_hand():
    data, student, teacher = toys.Sentences(16), toys.tiny_bert(), teacher_bert()
    batch = default_collate([data[i] for i in range(16)])
    s, t = student(batch)['logits'].detach(), load_teacher(teacher).logits(batch)
    tau = 3.0
    kl = (F.softmax(t / tau, -1) * (F.log_softmax(t / tau, -1) - F.log_softmax(s / tau, -1))).sum(-1).mean()
    expected = 0.3 * F.cross_entropy(s, batch['labels']) + 0.7 * tau**2 * kl
    run = KnowledgeDistillation(teacher, alpha=0.7, temperature=tau, **SAME)
    assert train([run], data, model=student)[1][0] == pytest.approx(float(expected), rel=1e-5)


def test_the_student_follows_the_teacher():
    """Trained on the divergence alone it comes to agree; the teacher stays as it was."""
    teacher = teacher_bert()
    before = copy.deepcopy(teacher.state_dict())
    logger = InMemoryLogger()
    run = KnowledgeDistillation(teacher, alpha=1.0, **SAME)
    train([run], model=toys.tiny_bert(), max_duration='30ep', loggers=logger)
    loss = [float(value) for _, value in logger.data['distillation/loss']]
    agreement = [float(value) for _, value in logger.data['distillation/agreement']]
    assert len(loss) == 90 and loss[-1] < 0.3 * loss[0]
    assert all(0 <= value <= 1 for value in agreement)
    assert sum(agreement[-3:]) / 3 > max(0.75, sum(agreement[:3]) / 3)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_logged_values_do_not_depend_on_the_microbatch():
    curves = []
    for size in (16, 4, 3):
        logger = InMemoryLogger()
        run = KnowledgeDistillation(teacher_bert(), **SAME)
        train([run], model=toys.tiny_bert(), loggers=logger, device_train_microbatch_size=size)
        curves.append([float(value) for _, value in logger.data['distillation/loss']])
    assert curves[1] == pytest.approx(curves[0], rel=1e-4) and curves[2] == pytest.approx(curves[0], rel=1e-4)


def test_a_teacher_in_train_mode():
    """The caller's module is in train mode and has dropout; still the same weights as with an evaluated copy."""
    left = teacher_bert().train()
    weights = train([KnowledgeDistillation(left, **SAME)])[0]
    assert torch.equal(weights, train([KnowledgeDistillation(teacher_bert().eval(), **SAME)])[0])


@pytest.mark.parametrize('run', [{}, {'device_train_microbatch_size': 4}, {'device_train_microbatch_size': 3}])
@pytest.mark.parametrize('unlabelled', [0, 30])
def test_cached_is_online(tmp_path, run, unlabelled):
    """Over three epochs of shuffled batches, with dropout in the student, with rows without labels."""
    data = toys.Sentences(48, unlabelled=unlabelled)
    losses = []
    for cache in (None, tmp_path, cached(data, teacher_bert())):
        teacher = teacher_bert() if not isinstance(cache, LogitCache) else None
        algorithm = KnowledgeDistillation(teacher, cache=cache, **SAME)
        sampler = toys.loader(data, shuffle=True)
        losses.append(train([algorithm], data, train_dataloader=sampler, **run)[1])
    assert len(losses[0]) == 9 * -(-16 // run.get('device_train_microbatch_size', 16))
    assert all(math.isfinite(value) for value in losses[0])
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], abs=1e-6, rel=1e-6)
    assert len(list(Path(tmp_path).glob('*.safetensors'))) == 1


def test_the_folder_is_used_again(tmp_path):
    data, logits = toys.Sentences(48), []
    for _ in range(2):
        algorithm = KnowledgeDistillation(teacher_bert(), cache=tmp_path, **SAME)
        train([algorithm], data)
        (file,) = tmp_path.glob('*.safetensors')
        logits.append((file.stat().st_mtime_ns, LogitCache.open(file).logits))
    assert logits[0][0] == logits[1][0]
    train([KnowledgeDistillation(teacher_bert(4), cache=tmp_path, **SAME)], data)  # another teacher, another file
    assert len(list(tmp_path.glob('*.safetensors'))) == 2


class Unlabelled(toys.Sentences):
    """A batch of 16 in which rows 4-7 and every odd row have no label: a microbatch of 4 has none at all."""

    def __init__(self, n: int = 48):
        super().__init__(n)
        row = torch.arange(n)
        self.labels[(row % 16 // 4 == 1) | (row % 2 == 1)] = -100


PARTNERS = {
    'alone': lambda: [],
    'cmi': lambda: [CMIRegularization(3.0, form='plain', start='0ba')],
    'clipping': lambda: [GradientClipping('norm', 0.1)],
    'sam': lambda: [SAM(rho=0.05)],
}


@pytest.mark.parametrize('partner', PARTNERS)
def test_same_weights_for_any_microbatch_and_order(partner):
    weights = []
    for size in (16, 8, 4, 3):
        for flip in (False, True):
            algorithms = [KnowledgeDistillation(teacher_bert(), alpha=0.6, **SAME), *PARTNERS[partner]()]
            algorithms = algorithms[::-1] if flip else algorithms
            model = toys.tiny_bert()
            final, losses = train(algorithms, Unlabelled(), model=model, device_train_microbatch_size=size)
            assert all(math.isfinite(value) for value in losses)
            weights.append(final)
    assert not torch.allclose(weights[0], train([], Unlabelled(), model=toys.tiny_bert())[0], atol=1e-3)
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], atol=5e-6, rtol=1e-5)


def test_one_sum_of_gradients_over_mixed_rows():
    """One step from a batch of labelled and unlabelled rows is that of the formula, row by row."""
    data, student, teacher = Unlabelled(16), toys.tiny_bert(), teacher_bert()
    batch = default_collate([data[i] for i in range(16)])
    reference = copy.deepcopy(student)
    s, t = reference.model(batch['input_ids'], batch['attention_mask']).logits, load_teacher(teacher).logits(batch)
    ce = F.cross_entropy(s, batch['labels'], reduction='none')  # 0 for ignored rows
    (0.4 * ce + 0.6 * distillation_divergence(s, t, 2.0)).mean().backward()
    expected = torch.cat([(p - 0.05 * p.grad).detach().flatten() for p in reference.parameters()])
    algorithm = KnowledgeDistillation(teacher, alpha=0.6, **SAME)
    run = {'max_duration': '1ba', 'optimizers': torch.optim.SGD(student.parameters(), lr=0.05)}
    weights = train([algorithm], data, model=student, device_train_microbatch_size=4, **run)[0]
    torch.testing.assert_close(weights, expected, atol=1e-6, rtol=1e-5)


def composer_run(*algorithms, **kwargs) -> torch.Tensor:
    model = toys.mlp()
    trainer = toys.trainer(model, toys.points(), list(algorithms), **kwargs)
    trainer.fit()
    trainer.close()
    return toys.weights(model)


@pytest.mark.parametrize('cmi', [False, True])
def test_label_smoothing_in_either_order(cmi):
    """Smoothing turns labels dense before the loss and back after it; the smoothed CE is what gets weighted."""

    def run(flip: bool, size: int = 16) -> torch.Tensor:
        algorithms = [KnowledgeDistillation(toys.mlp(seed=5), **SAME), LabelSmoothing(0.2)]
        algorithms += [CMIRegularization(3.0, form='plain', start='0ba')] if cmi else []
        return composer_run(*(algorithms[::-1] if flip else algorithms), device_train_microbatch_size=size)

    torch.testing.assert_close(run(True), run(False), atol=5e-6, rtol=1e-5)
    torch.testing.assert_close(run(True, 3), run(False), atol=5e-6, rtol=1e-5)
    plain = [KnowledgeDistillation(toys.mlp(seed=5), **SAME), *PARTNERS['cmi']()][: 2 if cmi else 1]
    assert (run(False) - composer_run(*plain)).abs().max() > 1e-3


def test_swa_copies_the_student_only():
    teacher = toys.mlp(seed=5)
    swa = SWA(swa_start='1ep', swa_end='2ep', update_interval='1ba')
    model = toys.mlp()
    algorithms = [KnowledgeDistillation(teacher, **SAME), swa]
    trainer = toys.trainer(model, toys.points(), algorithms, max_duration='3ep')
    trainer.fit()
    trainer.close()
    assert sum(p.numel() for p in swa.swa_model.parameters()) == sum(p.numel() for p in model.parameters())


@pytest.mark.world_size(2)
@pytest.mark.parametrize('kind', ['online', 'folder', 'cmi'])
def test_two_ranks(shared_tmp_path, kind):
    """The weights of one process, and online and cached alike."""
    data = Unlabelled()
    reference = _reference_by_hand(data, epochs=1) if kind != 'cmi' else None
    cache = shared_tmp_path / 'cache' if kind == 'folder' else None
    algorithms = [KnowledgeDistillation(teacher_bert(), alpha=0.6, cache=cache, **SAME)]
    if kind == 'cmi':
        algorithms += PARTNERS['cmi']()
    weights = {}
    for size in (8, 3):
        model, run = toys.tiny_bert(), {'device_train_microbatch_size': size, 'max_duration': '1ep'}
        weights[size] = train(copy.deepcopy(algorithms), data, model=model, **run)[0]
        for other in dist.all_gather(weights[size]):
            assert torch.equal(other, weights[size])
        torch.testing.assert_close(weights[size], weights[8], atol=5e-6, rtol=1e-5)
    if reference is not None:
        torch.testing.assert_close(weights[8], reference, atol=5e-6, rtol=1e-5)
    if cache is not None:
        dist.barrier()
        assert len(list(cache.glob('*.safetensors'))) == 1


def _reference_by_hand(data, epochs: int = 3) -> torch.Tensor:
    """Three steps an epoch of SGD with momentum over whole batches of 16 in one process, without Composer."""
    student, teacher = toys.tiny_bert(), load_teacher(teacher_bert())
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    for _ in range(epochs):
        for start_row in range(0, 48, 16):
            batch = default_collate([data[i] for i in range(start_row, start_row + 16)])
            logits = student.model(batch['input_ids'], batch['attention_mask']).logits
            ce = F.cross_entropy(logits, batch['labels'], reduction='none')
            loss = (0.4 * ce + 0.6 * distillation_divergence(logits, teacher.logits(batch), 2.0)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return toys.weights(student)


def test_composer_trains_what_the_formula_says():
    """On one rank: the reference that the ranks are held against."""
    algorithm = KnowledgeDistillation(teacher_bert(), alpha=0.6, **SAME)
    weights = train([algorithm], Unlabelled(), model=toys.tiny_bert())[0]
    torch.testing.assert_close(weights, _reference_by_hand(Unlabelled()), atol=5e-6, rtol=1e-5)


# --- checkpoints ------------------------------------------------------------------------------------------------------


def saved(folder: Path, name: str) -> Path:
    (file,) = folder.glob(f'{name}*.pt')
    return file


@pytest.mark.parametrize('kind', ['online', 'cached'])
def test_resumed_in_mid_epoch_is_bit_identical(tmp_path, kind):
    data = toys.Sentences(64, unlabelled=20)

    def fit(folder: str, **kwargs) -> tuple[torch.Tensor, list[float]]:
        model, losses = toys.tiny_bert(dropout=0.1), Losses()
        cache = tmp_path / 'cache' if kind == 'cached' else None
        algorithms = [losses, KnowledgeDistillation(teacher_bert(), cache=cache, **SAME)]
        options = {'save_folder': str(tmp_path / folder), 'save_interval': '1ba', 'save_num_checkpoints_to_keep': -1}
        loader = toys.loader(data, shuffle=True)
        trainer = toys.trainer(model, data, algorithms, train_dataloader=loader, **{**options, **kwargs})
        trainer.fit()
        trainer.close()
        return toys.weights(model), losses.values

    weights, losses = fit('whole')
    for batch in (2, 5):
        checkpoint = str(saved(tmp_path / 'whole', f'ep{batch // 4}-ba{batch}-'))
        again, later = fit(f'again{batch}', load_path=checkpoint)
        assert torch.equal(again, weights) and later == losses[batch:]


def checkpoint_of(folder: Path, algorithms) -> Path:
    student = toys.tiny_bert()
    options = {'max_duration': '1ba', 'save_folder': str(folder)}
    trainer = toys.trainer(student, toys.Sentences(16), algorithms, **options)
    trainer.fit()
    trainer.close()
    return saved(folder, 'ep0-ba1-')


def test_a_checkpoint_is_the_students_and_loads_without_the_teacher(tmp_path):
    alone = checkpoint_of(tmp_path / 'alone', [])
    algorithm = KnowledgeDistillation(teacher_bert(), **SAME)
    taught = checkpoint_of(tmp_path / 'taught', [algorithm])
    assert abs(taught.stat().st_size / alone.stat().st_size - 1) < 0.01
    student = toys.tiny_bert()
    trainer = toys.trainer(student, toys.Sentences(16), [], load_path=str(taught), max_duration='2ba')
    trainer.fit()
    trainer.close()
    state = torch.load(taught, map_location='cpu', weights_only=False)['state']
    assert not [name for name in state['model'] if 'teacher' in name]
    assert set(state['model']) == set(torch.load(alone, weights_only=False)['state']['model'])
    assert dict(state['algorithms'])['KnowledgeDistillation'] == {
        'repr': 'KnowledgeDistillation(alpha=0.5, temperature=2.0)',
        'schema_version': 1,
        'fingerprint': load_teacher(teacher_bert()).fingerprint,
        'alpha': 0.5,
        'temperature': 2.0,
    }


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'alpha': 0.25}, 'alpha=0.5, this run asks for 0.25'),
        ({'temperature': 1.0}, 'temperature=2.0, this run asks for 1.0'),
        ({'teacher': teacher_bert(4)}, 'distilled from another teacher'),
    ],
)
def test_resumed_with_another_objective(tmp_path, change, message):
    checkpoint = checkpoint_of(tmp_path, [KnowledgeDistillation(teacher_bert(), **SAME)])
    other = KnowledgeDistillation(**{'teacher': teacher_bert(), **SAME, **change})
    with pytest.raises(ValueError, match=message):
        toys.trainer(toys.tiny_bert(), toys.Sentences(16), [other], load_path=str(checkpoint))
    run = KnowledgeDistillation(**{'teacher': teacher_bert(), **SAME, **change})
    options = {'load_path': str(checkpoint), 'load_weights_only': True, 'max_duration': '1ba'}
    trainer = toys.trainer(toys.tiny_bert(), toys.Sentences(16), [run], **options)
    trainer.fit()
    trainer.close()


def test_newer_schema_and_state_before_the_teacher():
    state = {**KnowledgeDistillation(nn.Linear(6, 3)).state_dict(), 'fingerprint': 'other'}
    with pytest.raises(ValueError, match='schema version 2, this composer-cmi reads up to 1'):
        KnowledgeDistillation(nn.Linear(6, 3)).load_state_dict({**state, 'schema_version': 2})
    algorithm = KnowledgeDistillation(toys.mlp(seed=5), **SAME)
    algorithm.load_state_dict(state)  # the teacher is not read yet: compared when it is
    with pytest.raises(ValueError, match='another teacher'):
        start(algorithm, model=toys.mlp(), data=toys.points(16))


def test_state_is_plain(tmp_path):
    """Newer Composer reads with weights_only=True."""
    state = KnowledgeDistillation(teacher_bert()).state_dict()
    torch.save(state, tmp_path / 'x.pt')
    assert torch.load(tmp_path / 'x.pt', weights_only=True) == state
    assert '0x' not in repr(KnowledgeDistillation(teacher_bert()))


def test_no_wait_for_the_device_in_a_step(monkeypatch):
    """Nothing in the loss reads a tensor's value."""
    algorithm = KnowledgeDistillation(toys.mlp(seed=5), **SAME)  # a Hugging Face model looks at its mask itself
    trainer = toys.trainer(toys.mlp(), toys.points(16), [algorithm], max_duration='1ba')
    calls = []
    for event in ('_ask_teacher', '_weigh', '_log', '_begin_pass'):
        inner = getattr(algorithm, event)

        def watched(state, logger, inner=inner):
            with monkeypatch.context() as patch:
                for name in ('item', 'tolist', 'cpu', '__bool__', '__float__', '__int__'):
                    patch.setattr(torch.Tensor, name, lambda *_, name=name: calls.append(name) or 0)
                inner(state, logger)

        monkeypatch.setattr(algorithm, event, watched)
    logger = trainer.logger
    monkeypatch.setattr(logger, 'log_metrics', lambda *_, **__: None)
    trainer.fit()
    trainer.close()
    assert calls == []
