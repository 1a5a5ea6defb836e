"""CMITrainer in a training: checkpoints, evaluation in between, callbacks, logs, what is said."""

from __future__ import annotations

import re
import shutil
import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Trainer, TrainerCallback

from composer_cmi.errors import ConfigError
from composer_cmi.hf import CMITrainer
from composer_cmi.hf.callback import StepCallback
from composer_cmi.hf.start import Start
from hf_tools import Rows, bert, trainer, weights

CMI = {'weight': 0.02, 'start': '1ba', 'ramp': '2ba'}


def taught(**more):
    return {'teacher': bert(seed=9), 'assume_same_labels': True, **more}


def kept(run):
    """Everything that a training ends with."""
    tables = [
        *run._cmi.centroids.tables.values(),
        *run._cmi.term.state_dict().values(),
        run._cmi.guard.peak_information,
    ]
    return torch.cat([weights(run.model), *(table.flatten().double() for table in tables)])


# --- checkpoints ------------------------------------------------------------------------------------------------------

SAVING = {'save_strategy': 'steps', 'save_steps': 1}


def saved_run(folder, **terms):
    run = trainer(folder, accumulation=2, rows=Rows(32), model=bert(dropout=0.2), settings=SAVING, **terms)
    run.train()
    return run


@pytest.mark.parametrize('step', [1, 2, 3])
@pytest.mark.parametrize('term', [{}, {'centroids': 'fixed'}, {'space': 'centered', 'form': 'contrastive'}], ids=str)
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(tmp_path, step, term):
    terms = {'cmi_regularization': {**CMI, **term}, 'knowledge_distillation': taught()}
    whole = saved_run(tmp_path, **terms)
    # Another start of the weights: what counts is read from the checkpoint.
    again = trainer(tmp_path, accumulation=2, rows=Rows(32), model=bert(3, 0.2), settings=SAVING, **terms)
    again.train(resume_from_checkpoint=str(tmp_path / f'checkpoint-{step}'))
    assert torch.equal(kept(again), kept(whole))
    assert again._cmi.state_dict()['schedule'] == whole._cmi.state_dict()['schedule']


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp('saved')
    saved_run(folder, cmi_regularization=CMI, knowledge_distillation=taught())
    return folder / 'checkpoint-2'


@pytest.mark.parametrize(
    ('terms', 'message'),
    [
        ({'cmi_regularization': {**CMI, 'weight': 0.5}}, 'CMIRegularization has weight=0.02, this run asks for 0.5'),
        ({'cmi_regularization': {**CMI, 'start': '2ba'}}, "start='1ba', this run asks for '2ba'"),
        ({'knowledge_distillation': taught(alpha=0.1)}, 'KnowledgeDistillation has alpha=0.5, this run asks for 0.1'),
        ({'knowledge_distillation': {**taught(), 'teacher': bert(7)}}, 'KnowledgeDistillation has teacher='),
    ],
)
@pytest.mark.filterwarnings('ignore:The checkpoint was trained with')
def test_another_objective_is_refused(checkpoint, tmp_path, terms, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        trainer(tmp_path, accumulation=2, rows=Rows(32), **terms).train(resume_from_checkpoint=str(checkpoint))


def test_what_is_lost_at_a_resume_is_said(checkpoint, tmp_path):
    with pytest.warns(UserWarning, match='was trained with KnowledgeDistillation, which this run does not list'):
        trainer(tmp_path, accumulation=2, rows=Rows(32), cmi_regularization=CMI).train(str(checkpoint))
    bare = tmp_path / 'checkpoint-2'
    shutil.copytree(checkpoint, bare)
    (bare / 'composer_cmi.pt').unlink()
    with pytest.warns(UserWarning, match='CMIRegularization: training resumes at step 2 from a checkpoint without'):
        trainer(tmp_path, accumulation=2, rows=Rows(32), cmi_regularization=CMI).train(str(bare))


def test_the_last_short_step_of_a_resumed_epoch_is_not_lost(tmp_path):
    """transformers before 4.57.1 leaves it out: refused; since then the resumed run is the whole one."""
    import transformers

    def run():
        return trainer(tmp_path, accumulation=4, rows=Rows(40), settings=SAVING, cmi_regularization=CMI)

    whole, again = run(), run()
    whole.train()
    if tuple(map(int, transformers.__version__.split('.')[:2])) < (4, 57):
        with pytest.raises(ConfigError, match='leaves out the last short step'):
            again.train(resume_from_checkpoint=str(tmp_path / 'checkpoint-1'))
        return
    again.train(resume_from_checkpoint=str(tmp_path / 'checkpoint-1'))
    assert torch.equal(kept(again), kept(whole))


# --- in between -------------------------------------------------------------------------------------------------------


def test_evaluation_in_between_changes_nothing(tmp_path):
    runs = []
    for settings in ({}, {'eval_strategy': 'steps', 'eval_steps': 1}):
        terms = {'cmi_regularization': CMI, 'eval_dataset': Rows(10)}
        run = trainer(tmp_path, model=bert(dropout=0.2), settings=settings, **terms)
        run.train()
        runs.append(run)
    assert torch.equal(kept(runs[0]), kept(runs[1]))
    assert 'eval_loss' in runs[1].state.log_history[-2]


def test_evaluation_is_that_of_the_stock_trainer_and_rows_may_lack_labels(tmp_path):
    settings = {'label_smoothing_factor': 0.1, 'per_device_eval_batch_size': 5}
    rows = [{key: row[key] for key in row if key != 'example_id'} for row in (Rows(10)[i] for i in range(10))]
    ours = trainer(tmp_path, settings=settings, knowledge_distillation=taught())
    stock = trainer(tmp_path, cls=Trainer, settings=settings)
    assert ours.evaluate(Rows(10))['eval_loss'] == pytest.approx(stock.evaluate(rows)['eval_loss'], rel=1e-6)
    without = [{key: row[key] for key in row if key != 'labels'} for row in (Rows(10)[i] for i in range(10))]
    assert ours.predict(without).predictions.shape == (10, 3)


def test_callbacks_of_others_find_the_step_committed(tmp_path):
    seen = []

    class Watch(TrainerCallback):
        def on_optimizer_step(self, args, state, control, **kwargs):
            seen.append(float(run._cmi.centroids.tables['totals'][:, 1].sum()))

    run = trainer(tmp_path, accumulation=2, rows=Rows(40), callbacks=[Watch()], cmi_regularization=CMI)
    run.train()
    assert seen == [16, 32, 40, 56, 72, 80]


def test_a_step_that_is_broken_off_leaves_nothing_behind(tmp_path):
    class Stop(TrainerCallback):
        def on_substep_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 1

    run = trainer(tmp_path, accumulation=2, rows=Rows(32), callbacks=[Stop()], cmi_regularization=CMI)
    run.train()
    assert float(run._cmi.centroids.tables['totals'][:, 1].sum()) == 16
    run.remove_callback(Stop)
    run.train()  # anew: a table is not carried into another training
    assert float(run._cmi.centroids.tables['totals'][:, 1].sum()) == 64


def test_logged_by_composers_names_and_in_force_from_the_step_asked_for(tmp_path):
    run = trainer(tmp_path, rows=Rows(32), cmi_regularization=CMI, knowledge_distillation=taught())
    run.train()
    logs = [row for row in run.state.log_history if 'loss' in row]
    assert [row['cmi/weight'] for row in logs] == pytest.approx([0, 0, 0.01, 0.02])
    names = {'cmi', 'mutual_information', 'relative_cmi', 'weight', 'loss', 'train_accuracy', 'skipped_rows'}
    assert {f'cmi/{name}' for name in names} | {'distillation/loss', 'distillation/agreement'} <= set(logs[0])


class Waits(TorchDispatchMode):
    """Counts what waits for a device: a value of a tensor that Python asks for."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ('_local_scalar_dense', 'nonzero', 'masked_select', 'equal', 'is_nonzero'):
            self.seen.append(name)
        return function(*args, **(kwargs or {}))


class WaitsInSteps(CMITrainer):
    waits = 0

    def compute_loss(self, *args, **kwargs):
        with Waits() as mode:
            loss = super().compute_loss(*args, **kwargs)
        self.waits += len(mode.seen)
        return loss


def test_nothing_waits_for_the_device_in_a_step(tmp_path):
    terms = {'cmi_regularization': CMI, 'knowledge_distillation': taught()}
    run = trainer(tmp_path, accumulation=2, rows=Rows(32), cls=WaitsInSteps, **terms)
    callback = next(each for each in run.callback_handler.callbacks if isinstance(each, StepCallback))
    ends = callback.on_optimizer_step

    def watched(*args, **kwargs):
        with Waits() as mode:
            ends(*args, **kwargs)
        run.waits += len(mode.seen)

    callback.on_optimizer_step = watched
    run.train()
    # transformers itself looks at the padding once in a forward.
    plain = trainer(tmp_path, accumulation=2, rows=Rows(32), cls=WaitsInSteps)
    plain.train()
    print('WAITS', run.waits, plain.waits)
    assert run.waits == 2 * plain.waits > 0  # the student's forward and the teacher's


def test_a_term_that_never_counted_is_said(tmp_path):
    with pytest.warns(UserWarning, match='never added to the loss until step 4 .*training ended before it was due'):
        trainer(tmp_path, rows=Rows(32), cmi_regularization={'start': '100ba'}).train()


@pytest.mark.parametrize(('start', 'due'), [('100ba', True), ('4ba', True), ('1dur', True), ('3ba', False)])
def test_a_term_that_would_come_too_late_is_said_before_the_first_step(tmp_path, start, due):
    run, seen = trainer(tmp_path, rows=Rows(32), cmi_regularization={'start': start}), []

    class FirstStep(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            seen.append(len([w for w in caught if 'will not be added' in str(w.message)]))

    run.add_callback(FirstStep())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        run.train()
    assert set(seen) == {int(due)}


@pytest.mark.parametrize(
    ('start', 'ramp', 'expected'),
    [('0.3dur', '0dur', [0] * 6 + [1] * 14), ('1ep', '1ep', [0] * 11 + [0.1 * i for i in range(1, 10)])],
)
def test_times_are_counted_in_optimizer_steps(start, ramp, expected):
    schedule = Start(start, ramp)
    schedule.settle(0, max_steps=20, steps_per_epoch=10)
    assert [schedule.progress(done) for done in range(20)] == pytest.approx(expected)


@pytest.mark.parametrize('time', ['3', '-1ba', '5sec', 'dur', '0.3 dur', 3, None, '1tok'])
def test_no_time_is_refused(time):
    with pytest.raises(ValueError, match="start must be a time such as '0.3dur'"):
        Start(time, '0dur')


def test_nothing_warns_in_a_plain_run(tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings('error', category=UserWarning)
        trainer(tmp_path, rows=Rows(32), cmi_regularization=CMI, knowledge_distillation=taught()).train()
