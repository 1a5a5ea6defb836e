"""The trained model as a Hugging Face folder, read back before the run says that it is done."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from composer.models import HuggingFaceModel
from composer.utils import dist
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from composer_cmi.data.splits import Split
from composer_cmi.errors import ConfigError, naming
from composer_cmi.run.calibrate.temperature import divide_head, inputs_of
from composer_cmi.run.evaluate import Evaluation
from composer_cmi.teachers.pretrained import first_sentence

__all__ = ['Sample', 'export_model', 'sample_of']


@dataclass(frozen=True)
class Sample:
    """A few texts or pairs of texts, and the run's logits `[N, C]` of them."""

    texts: Sequence[tuple[str, ...]]
    logits: Tensor


def sample_of(split: Split, evaluation: Evaluation, rows: int = 4) -> Sample:
    """The longest row of a split and some of the others."""
    lengths = (sum(map(len, row)) for row in split.rows())
    longest = max(enumerate(lengths), key=lambda each: each[1])[0]
    chosen = list(dict.fromkeys((longest, *range(0, len(split), -(-len(split) // rows)))))
    places = torch.searchsorted(evaluation.example_ids, torch.from_numpy(split.example_ids[chosen]))
    return Sample([tuple(column[row] for column in split.texts) for row in chosen], evaluation.logits[places])


def export_model(
    model: HuggingFaceModel,
    folder: str | Path,
    *,
    rebuild: Callable[[], HuggingFaceModel] | None = None,
    max_length: int | None = None,
    sample: Sample | None = None,
    tolerance: float = 1e-2,
    temperature: float = 1.0,
    trust_remote_code: bool = False,
) -> None:
    """Save a folder that ``transformers.pipeline('text-classification', model=FOLDER)`` loads. All ranks call it.

    Args:
        model: The trained model. LoRA weights are merged into it.
        folder: Replaced as a whole.
        rebuild: For a sharded model: makes the model anew, unsharded, to take up the gathered weights.
        max_length: Tokens that the model was trained with, where its tokenizer cuts a text if asked to (`truncation`).
        sample: What the pipeline must answer as the run did.
        tolerance: How far it may be off, as a share of the largest logit.
        temperature: Folded into the head; the sample's logits have been divided by it.
        trust_remote_code: Whether the model brings code of its own, which goes into the folder too.

    Raises:
        ConfigError: The folder cannot be loaded, or answers otherwise; `folder` is then as it was.
    """
    folder = Path(folder)
    weights = None
    if rebuild is not None:
        # A collective: every rank takes part, rank 0 receives the whole.
        weights = get_model_state_dict(model.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if dist.get_global_rank() == 0:
        if rebuild is not None and weights is not None:
            model = rebuild()
            model.model.load_state_dict(weights)
        plain: Any = model.model.merge_and_unload() if model.using_peft else model.model  # pyright: ignore[reportCallIssue]
        if temperature != 1.0 and sample is not None:
            divide_head(plain, inputs_of(plain, model.tokenizer, sample.texts[0], max_length), temperature)
        if trust_remote_code and model.tokenizer is not None:
            # The pipeline knows tokenizers by the kind of model, and of this kind it has never heard.
            plain.config.tokenizer_class = type(model.tokenizer).__name__
        aside = folder.with_name(f'.{folder.name}.{os.getpid()}.tmp')
        with naming(aside):
            plain.save_pretrained(aside)
            if model.tokenizer is not None:
                _save_tokenizer(model.tokenizer, aside, max_length)
        if model.tokenizer is not None and sample is not None:
            try:
                _check(aside, sample, tolerance, trust_remote_code)
            except ConfigError:
                shutil.rmtree(aside)
                raise
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(aside, folder)
    dist.barrier()


def _save_tokenizer(tokenizer: Any, folder: Path, max_length: int | None) -> None:
    before = tokenizer.model_max_length
    tokenizer.model_max_length = max_length or before
    try:
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.model_max_length = before


def _check(folder: Path, sample: Sample, tolerance: float, trust_remote_code: bool) -> None:
    from transformers.pipelines import pipeline

    inputs = [dict(zip(('text', 'text_pair'), texts, strict=False)) for texts in sample.texts]
    try:
        classify: Any = pipeline(
            'text-classification', model=str(folder), device='cpu', trust_remote_code=trust_remote_code
        )
        names = classify.model.config.id2label
        answers = classify(inputs, top_k=None, function_to_apply='none', truncation=True)
        logits = [
            [{one['label']: one['score'] for one in answer}[names[i]] for i in range(len(names))] for answer in answers
        ]
    except Exception as error:  # whatever a model of somebody else's stumbles over
        raise ConfigError(
            f'The exported model cannot be used by transformers.pipeline: {first_sentence(error)}'
        ) from error
    off = float((torch.tensor(logits) - sample.logits).abs().max())
    if off > tolerance * float(sample.logits.abs().max()) + 1e-4:
        raise ConfigError(
            f'The exported model answers otherwise than the trained one, its logits are off by {off:.3g}.'
        )
