"""A `transformers.Trainer` with our terms, whose step is the same however it is cut into microbatches and ranks.

The stock Trainer scales losses by rules that differ between versions and are wrong for classifiers in several of them.
So this one owns the loss: each microbatch gives *sums* over its rows, which are divided by the rows of the whole step
over all ranks, and the Trainer is told that nothing is left to scale.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.trainer import Trainer

from composer_cmi.batch import class_labels, class_logits
from composer_cmi.hf import states
from composer_cmi.hf.callback import StepCallback
from composer_cmi.hf.refusals import read_arguments, refuse_data, refuse_settings
from composer_cmi.hf.rows import outputs_of_all_rows, rows_kept
from composer_cmi.hf.start import Start
from composer_cmi.teachers.compatibility import num_labels_of
from composer_cmi.teachers.steps import DistillationSteps
from composer_cmi.terms.objective import require_same_on_all_ranks
from composer_cmi.terms.steps import CMISteps

__all__ = ['CMITrainer']

_KEPT = '_rows_kept'  # beside a microbatch: how many of its rows are not repetitions
_IGNORED = -100


class CMITrainer(Trainer):
    """`transformers.Trainer` for single-label classifiers, with CMI and distillation; without terms an exact Trainer.

    The arguments of the terms, and their defaults, are those of the Composer classes of the same names (see there),
    without `label_key` and `allow_weak_teacher`. Times are strings: `'0.3dur'`, `'2ep'`, `'100ba'` (optimizer steps).

    Args:
        *args: As of `Trainer`.
        cmi_regularization: Arguments of `composer_cmi.CMIRegularization`; `{}` for the defaults.
        cmi_maximization: Arguments of `composer_cmi.CMIMaximization`, instead.
        knowledge_distillation: Arguments of `composer_cmi.KnowledgeDistillation`. A cache needs an int64 column
            `'example_id'` (`id_key`) in the training dataset.
        **kwargs: As of `Trainer`.

    Raises:
        ConfigError: For unknown arguments, and for what the step would not be exact with.
        ValueError: For values out of range, features that cannot be found, a teacher that does not fit.

    Example:
        .. code-block:: python

            trainer = CMITrainer(model, training_arguments, train_dataset=rows, cmi_regularization={'weight': 0.05})
    """

    loss_is_scaled_for_ga: ClassVar[bool] = True  # transformers 5; 4 looks at model_accepts_loss_kwargs

    def __init__(
        self,
        *args: Any,
        cmi_regularization: Mapping[str, Any] | None = None,
        cmi_maximization: Mapping[str, Any] | None = None,
        knowledge_distillation: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ):
        cmi, distillation = read_arguments(cmi_regularization, cmi_maximization, knowledge_distillation)
        self._id_key = distillation.id_key if distillation else 'example_id'
        self._id_needed = distillation is not None and distillation.cache is not None
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True
        refuse_settings(self)
        self._arguments, self._cmi = cmi, None
        self._begin_cmi()  # what cannot work is said before training
        tokenizer = getattr(self, 'processing_class', None)
        model: Any = self.model
        self._distillation = DistillationSteps(distillation, model, tokenizer) if distillation else None
        self._metrics: dict[str, Any] = {}  # of the last step
        self._checkpoint: str | None = None
        self._steps_per_epoch = 1
        # First, so that other callbacks find the step finished.
        self.callback_handler.callbacks.insert(0, StepCallback(self))

    # --- the loss ---------------------------------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device | None = None
    ) -> tuple[list[Any], Any]:
        """The microbatches of a step, and `[2]` its rows and its labelled rows over all ranks."""
        batches = [*itertools.islice(epoch_iterator, num_batches)]
        if not batches:  # transformers 4 asks an exhausted iterator once more
            return batches, None
        device = device or self.args.device
        counts = torch.zeros(2, dtype=torch.float64, device=device)
        first = self.state.global_step % self._steps_per_epoch * self.args.gradient_accumulation_steps
        for index, batch in enumerate(batches, first):
            labels = class_labels(batch)
            batch[_KEPT] = kept = rows_kept(self, index, len(labels))
            counts[0] += kept
            counts[1] += (labels[:kept] != _IGNORED).sum().to(device)
        return batches, self.accelerator.reduce(counts, 'sum')

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """In training this microbatch's share of the step's loss; in evaluation its mean cross-entropy."""
        inputs = dict(inputs)
        labels, ids = class_labels(inputs), inputs.pop(self._id_key, None)
        kept = inputs.pop(_KEPT, len(labels))
        del inputs['labels']
        taught = None
        if model.training:
            if self._cmi:
                self._cmi.clear()
            if self._distillation:
                taught = self._distillation.ask(inputs, self.accelerator.autocast(), ids)
        outputs = model(**inputs)
        logits = class_logits(outputs)
        with torch.autocast(logits.device.type, enabled=False):
            if model.training:
                loss = self._share_of_step(inputs, logits, labels, kept, taught, num_items_in_batch)
            else:
                loss = self._cross_entropy(logits, labels) / (labels != _IGNORED).sum()
        if not return_outputs:
            return loss
        whole = outputs if isinstance(outputs, (dict, tuple)) else (outputs,)
        return loss, whole if isinstance(whole, dict) else (loss, *whole)

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        smoothing = self.args.label_smoothing_factor
        return F.cross_entropy(
            logits.float(), labels, ignore_index=_IGNORED, label_smoothing=smoothing, reduction='sum'
        )

    def _share_of_step(
        self, inputs: Any, logits: Tensor, labels: Tensor, kept: int, taught: Tensor | None, counts: Tensor
    ) -> Tensor:
        rows, labelled = counts.clamp(min=1).unbind()
        # A microbatch without rows of its own gives 0 with a graph: the other ranks wait for its backward.
        loss = self._cross_entropy(logits[:kept], labels[:kept])
        if self._distillation is None:
            loss = loss / labelled
        else:
            alpha = self._distillation.arguments.alpha
            loss = (1 - alpha) * loss / rows
            if taught is not None:
                loss = loss + alpha * self._distillation.divergence(logits[:kept], taught[:kept]).sum() / rows
                if (related := self._distillation.relation(inputs, logits, labels, kept)) is not None:
                    loss = loss + related.sum() / rows
        if self._cmi and kept and (added := self._cmi.add(inputs, logits, labels, kept)) is not None:
            loss = loss + added * kept / rows
        # DDP takes the mean over the ranks.
        return (loss * self.accelerator.num_processes).float()

    # --- evaluation and columns -------------------------------------------------------------------------------------

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """As of `Trainer`; the ids are not for the model."""
        return super().prediction_step(model, {k: v for k, v in inputs.items() if k != self._id_key}, *args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As of `Trainer`, without drawing random numbers: a run that is evaluated in between is the same run."""
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            return super().evaluation_loop(*args, **kwargs)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if self._id_needed and self._id_key not in self._signature_columns:  # pyright: ignore
            self._signature_columns = [*self._signature_columns, self._id_key]  # pyright: ignore

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As of `Trainer`, with the terms of the last step; the one place that waits for the device."""
        if 'loss' in logs:
            logs.update({name: float(value) for name, value in self._metrics.items()})
            for term in self._terms():
                term.check()
        super().log(logs, *args, **kwargs)

    # --- a training -------------------------------------------------------------------------------------------------

    def _terms(self) -> list[CMISteps | DistillationSteps]:
        return [term for term in (self._cmi, self._distillation) if term is not None]

    def _begin_cmi(self) -> int | None:
        """The CMI term anew; the number of classes."""
        if self._arguments is None:
            return None
        name, arguments = self._arguments
        model: Any = self.model
        self._start = Start(arguments.start, arguments.ramp)
        self._cmi = CMISteps(name, arguments, self._start)
        return self._cmi.find(model) or num_labels_of(model)

    def _begin_training(self, loader: Any) -> None:
        """Before the first step, with everything wrapped and the Trainer's own state restored."""
        self._steps_per_epoch = -(-len(loader) // self.args.gradient_accumulation_steps)
        self._metrics, classes = {}, self._begin_cmi()
        if self._cmi:
            require_same_on_all_ranks(self._cmi.name, {**self._cmi.objective, 'number of classes': classes})
        if self._distillation:
            self._distillation.require_same_on_all_ranks()
            self._distillation.begin_anew()
        folder, self._checkpoint = self._checkpoint, None
        if folder is not None:
            states.restore(folder, self._terms(), self.state.global_step)
        refuse_data(self, loader, self._steps_per_epoch)
        if self._cmi:
            wrapped: Any = self.model_wrapped
            if classes:
                self._cmi.allocate(classes, self.args.device)
            self._cmi.attach(wrapped)
            lengths = {'max_steps': self.state.max_steps, 'steps_per_epoch': self._steps_per_epoch}
            self._start.settle(self.state.global_step, **lengths)
            self._cmi.begin(self.state.max_steps)
        if self._distillation:
            mixed = self.accelerator.mixed_precision
            precision = 'fp32' if mixed == 'no' else f'amp_{mixed}'
            context: Any = self.accelerator.autocast
            model: Any = self.model_wrapped
            self._distillation.begin(loader.dataset, loader.collate_fn, self.args.device, precision, context, model)

    def _fix_centroids(self) -> None:
        assert self._cmi is not None
        model: Any = self.model
        wrapped: Any = self.model_wrapped
        self._cmi.attach(model, always=True)
        self._cmi.fix(outputs_of_all_rows(self, without=self._id_key))
        self._cmi.attach(wrapped)

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save and self._terms():
            states.save(output_dir, self._terms())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        self._checkpoint = checkpoint
