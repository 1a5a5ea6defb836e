"""The classifier as Composer trains it: its loss, and adapters where they are asked for."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from composer.models import HuggingFaceModel, huggingface
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics import Metric
from transformers.modeling_utils import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from composer_cmi import registry
from composer_cmi.arguments import argument_types
from composer_cmi.batch import class_labels, class_logits
from composer_cmi.errors import ConfigError
from composer_cmi.run.config.loading import check_values
from composer_cmi.run.models import encoder_layers

__all__ = ['build_composer_model', 'class_weights', 'lora_config', 'weighted_cross_entropy']


def class_weights(
    given: str | Mapping[str, float] | Sequence[float], label_names: Sequence[str], labels: np.ndarray
) -> Tensor:
    """Weights ``[C]`` whose mean over the training rows is 1.

    Args:
        given: ``'balanced'``, a weight for each class by name, or one for each in their order.
        label_names: The C classes.
        labels: ``[N]`` class indices of the labelled training rows.

    Raises:
        ConfigError: if it does not name each class once.
    """
    counts = np.bincount(labels, minlength=len(label_names))
    if isinstance(given, str):
        weights = 1 / np.maximum(counts, 1)
    elif isinstance(given, Mapping):
        if unknown := [name for name in given if name not in label_names]:
            near = registry.nearest(unknown[0], label_names)
            raise ConfigError(
                f'train.class_weights: there is no class {unknown[0]!r}.{near} Classes: {_some(label_names)}.'
            )
        if missing := [name for name in label_names if name not in given]:
            raise ConfigError(f'train.class_weights: the class {missing[0]!r} has no weight; each class needs one.')
        weights = np.array([given[name] for name in label_names])
    else:
        if len(given) != len(label_names):
            raise ConfigError(
                f'train.class_weights: {len(given)} weights for {len(label_names)} classes ({_some(label_names)}).'
            )
        weights = np.array(given)
    return torch.tensor(weights * (len(labels) / (counts @ weights)), dtype=torch.float32)


def _some(names: Sequence[str]) -> str:
    return ', '.join(names[:12]) + (', ...' if len(names) > 12 else '')


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """``sum_n w[y_n] ce_n / N`` over the N labelled rows, 0-d; 0 where no row has a label.

    torch's own weighted mean divides by the weights of the rows at hand, so that a row would count more among rows of
    light classes, and the mean over a batch would not be that over its microbatches. Here the normaliser is fixed: the
    weights have mean 1 over the training set (:func:`class_weights`), and the loss stays a mean over rows, which any
    cut into microbatches and ranks leaves as it is.

    Args:
        logits: ``[N, C]``.
        labels: ``[N]``, -100 for rows without a label.
        weights: ``[C]``.
        label_smoothing: Of the targets; the weight is that of the row's own class.
    """
    losses = cross_entropy(logits, labels, reduction='none', label_smoothing=label_smoothing)
    weighted = losses * weights.to(losses.dtype)[labels.clamp(min=0)]
    return weighted.sum() / (labels >= 0).sum().clamp(min=1)


def build_composer_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    eval_metrics: Sequence[Metric] = (),
    label_smoothing: float | None = None,
    weights: Tensor | None = None,
    peft: Mapping[str, Any] | None = None,
    fsdp: bool = False,
    bfloat16: bool = False,
) -> HuggingFaceModel:
    """Wrap for Composer, with LoRA where ``peft`` (arguments of ``peft.LoraConfig``) is given.

    ``weights`` are those of the classes in the loss (:func:`class_weights`). With ``bfloat16`` the forward passes of
    training on a CPU run under autocast, which Composer's own precision would leave out there.

    Raises:
        ConfigError: if the ``peft`` section does not fit the model.
    """
    if fsdp:
        # Composer asks the model which modules become FSDP units of their own: each layer.
        layers = set(encoder_layers(model))
        model.fsdp_wrap_fn = lambda module: module in layers  # pyright: ignore[reportArgumentType]
    try:
        return _ClassifierModel(
            model,
            tokenizer,  # pyright: ignore[reportArgumentType]
            use_logits=True,
            eval_metrics=list(eval_metrics),
            shift_labels=False,
            peft_config=None if peft is None else lora_config(peft),
            label_smoothing=label_smoothing,
            weights=weights,
            bfloat16=bfloat16,
        )
    except ValueError as error:
        raise ConfigError(f'{"model" if peft is None else "peft"}: {str(error).strip().split(chr(10))[0]}') from error


class _ClassifierModel(HuggingFaceModel):
    """Smooths labels and weighs classes itself: Composer's LabelSmoothing does not reach the loss of such a model."""

    class_weights: Tensor | None

    def __init__(
        self, *args: Any, label_smoothing: float | None, weights: Tensor | None, bfloat16: bool = False, **kwargs: Any
    ) -> None:
        with _no_causal_lm():
            super().__init__(*args, **kwargs)
        self.label_smoothing, self.in_bfloat16 = label_smoothing or 0.0, bfloat16
        self.register_buffer('class_weights', weights, persistent=False)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        if not self.using_peft:
            return super().load_state_dict(state_dict, strict, assign)
        # Of an adapted model the state dict has what is trained alone, and Composer's SWA reads one back.
        result = super().load_state_dict(state_dict, strict=False, assign=assign)
        missing = self.state_dict().keys() - state_dict.keys()
        if strict and (missing or result.unexpected_keys):
            raise RuntimeError(f'Missing: {sorted(missing)}. Unexpected: {result.unexpected_keys}.')
        return result

    def eval_forward(self, batch: Any, outputs: Any = None) -> Any:
        # Composer would give an encoder-decoder the classes as its decoder's words; it makes those of the text itself.
        self.labels = batch.pop('labels')
        return class_logits(self.forward(batch) if outputs is None else outputs)

    def forward(self, batch: Any) -> Any:
        if self.in_bfloat16 and self.training:
            with torch.autocast('cpu', torch.bfloat16):
                outputs = super().forward(batch)
            outputs['logits'] = class_logits(outputs).float()  # no term of the loss is computed in eight bits
        else:
            outputs = super().forward(batch)
        own = self.label_smoothing or self.class_weights is not None
        if own and self.training and 'labels' in batch:
            # In the outputs and not in `loss`: what mixes losses, as distillation does, reads the model's own there.
            logits, labels = class_logits(outputs), class_labels(batch)
            if self.class_weights is None:
                outputs['loss'] = cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
            else:
                outputs['loss'] = weighted_cross_entropy(logits, labels, self.class_weights, self.label_smoothing)
        return outputs


@contextmanager
def _no_causal_lm() -> Iterator[None]:
    """Answers for Composer whether the model is a causal language model, for which it would import all there are.

    That is a second and hundreds of files, for a warning about `shift_labels` alone, which is given here; a model that
    answers with one row of logits a text is none.
    """
    asked = getattr(huggingface, '_is_registered_causal_lm', None)
    if asked is None:  # another version of Composer
        yield
        return
    huggingface._is_registered_causal_lm = lambda model: False
    try:
        yield
    finally:
        huggingface._is_registered_causal_lm = asked


def lora_config(section: Mapping[str, Any]) -> Any:
    """The ``peft`` section as a ``peft.LoraConfig``.

    Raises:
        ConfigError: for an unknown key or a value that it refuses, or where peft is not installed.
    """
    try:
        from peft import LoraConfig, PeftConfig
    except ImportError as error:
        raise ConfigError("peft: LoRA needs the package peft: pip install 'composer-cmi[peft]'.") from error
    # What the file of any adapter holds (its kind, its base model ...) is not a choice for a run.
    known = sorted(inspect.signature(LoraConfig).parameters.keys() - inspect.signature(PeftConfig).parameters.keys())
    for key in section:
        if key not in known:
            raise ConfigError(
                f'unknown key {f"peft.{key}"!r}.{registry.nearest(key, known)} Known here: {", ".join(known)}.'
            )
    check_values(argument_types(LoraConfig), section, 'peft')
    try:
        return LoraConfig(task_type='SEQ_CLS', **section)
    except (ValueError, TypeError) as error:
        raise ConfigError(f'peft: {" ".join(str(error).split())}') from error
