"""One temperature for a model's logits: fitted on held-out rows, folded into the head that makes them.

Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from torch import nn

from composer_cmi.batch import class_logits
from composer_cmi.errors import ConfigError
from composer_cmi.features.heads import find_heads, modules_by_name
from composer_cmi.run.evaluate import Evaluation

__all__ = ['best_temperature', 'divide_head', 'divided', 'fit_temperature', 'inputs_of']

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_WIDEST = math.log(100)  # temperatures from 1/100 to 100


def best_temperature(logits: Floats, labels: Ints, unknown: float = 0.0) -> float:
    """The temperature with the lowest NLL on these rows, from 1/100 to 100.

    Args:
        logits: ``[N, C]``.
        labels: ``[N]`` class indices.
        unknown: So many rows more, like these but of a class that is not known: each class counts the same there.
    """
    share = unknown / len(labels)

    def loss(log_t: float) -> float:
        log_p = log_softmax(logits / math.exp(log_t), axis=1)
        return -(log_p[np.arange(len(labels)), labels].mean() + share * log_p.mean())

    # NLL is convex in the inverse temperature, so it has one minimum in its logarithm too.
    best = minimize_scalar(loss, bounds=(-_WIDEST, _WIDEST), method='bounded')
    return math.exp(min((float(best.x), 0.0), key=loss))


def fit_temperature(evaluation: Evaluation) -> float:
    """The temperature of a model, from rows that it was not trained on.

    One row of unknown class is added, as Platt (1999, section 2.2) adds one to each class: where all rows are right,
    NLL has no lowest temperature, and with few of them it would promise more than they can show.
    """
    labelled = evaluation.labels >= 0
    logits, labels = evaluation.logits[labelled].double().numpy(), evaluation.labels[labelled].numpy()
    return best_temperature(logits, labels, unknown=1.0)


def divided(evaluation: Evaluation, temperature: float) -> Evaluation:
    """The same answers with their logits divided by the temperature."""
    return dataclasses.replace(evaluation, logits=evaluation.logits / temperature)


def inputs_of(model: Any, tokenizer: Any, texts: Sequence[str], max_length: int | None) -> dict[str, torch.Tensor]:
    """What a model is given of one row: a text, or the two of a pair."""
    encoded = tokenizer(*texts, truncation=True, max_length=max_length, return_tensors='pt')
    device = next(model.parameters()).device
    return {name: values.to(device) for name, values in encoded.items()}


@torch.no_grad()
def divide_head(model: Any, inputs: dict[str, torch.Tensor], temperature: float) -> None:
    """Divide the head that makes the logits, in place: W / T and b / T.

    Args:
        model: A Hugging Face classifier without adapters.
        inputs: Of the model, a text or more, by which the head is found and the result is checked.
        temperature: T.

    Raises:
        ConfigError: The logits are not what one linear layer makes, so that it cannot be divided.
    """
    was_training = model.training
    model.eval()
    try:
        wanted = class_logits(model(**inputs)) / temperature
        modules = modules_by_name(model)
        for name in reversed([*find_heads(modules, model.config.num_labels)]):
            kept = _scale(modules[name], 1 / temperature)
            if torch.allclose(class_logits(model(**inputs)), wanted, rtol=1e-4, atol=1e-5):
                return
            for parameter, value in kept:
                parameter.copy_(value)
    finally:
        model.train(was_training)
    raise ConfigError(
        f'calibrate: the logits of {type(model).__name__} are not made by one linear layer that a temperature could be '
        'folded into: leave calibrate out, and divide the logits by one where they are used.'
    )


def _scale(module: nn.Module, factor: float) -> list[tuple[nn.Parameter, torch.Tensor]]:
    kept = [(parameter, parameter.clone()) for parameter in module.parameters(recurse=False)]
    for parameter, _ in kept:
        parameter.mul_(factor)
    return kept
