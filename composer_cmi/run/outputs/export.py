"""The trained model as a Hugging Face folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from composer.models import HuggingFaceModel
from composer.utils import dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

__all__ = ['export_model']


def export_model(
    model: HuggingFaceModel, folder: str | Path, *, rebuild: Callable[[], HuggingFaceModel] | None = None
) -> None:
    """Save a folder that ``transformers.pipeline('text-classification', model=FOLDER)`` loads. All ranks call it.

    Args:
        model: The trained model. LoRA weights are merged into it.
        folder: Replaced as a whole.
        rebuild: For a sharded model: makes the model anew, unsharded, to take up the gathered weights.
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
        aside = folder.with_name(f'.{folder.name}.{os.getpid()}.tmp')
        plain.save_pretrained(aside)
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(aside)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(aside, folder)
    dist.barrier()
