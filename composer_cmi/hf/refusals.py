"""What a `CMITrainer` cannot do exactly, each in one sentence, before training."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import transformers
from accelerate.data_loader import BatchSamplerShard

from composer_cmi.errors import ConfigError
from composer_cmi.registry import nearest
from composer_cmi.teachers.compatibility import num_labels_of
from composer_cmi.teachers.matching import DistillationArguments
from composer_cmi.terms.arguments import CMIArguments, MaximizationArguments, RegularizationArguments

__all__ = ['read_arguments', 'refuse_data', 'refuse_settings']


def read_arguments(
    regularization: Any, maximization: Any, distillation: Any
) -> tuple[tuple[str, CMIArguments] | None, DistillationArguments | None]:
    """The terms' arguments, checked: name and arguments of the CMI term, and those of distillation.

    Raises:
        ConfigError: For unknown arguments, or two CMI terms.
        ValueError: For values out of range.
    """
    if regularization is not None and maximization is not None:
        raise ConfigError('Only one CMI term can be used in a run: cmi_regularization or cmi_maximization.')
    cmi = None
    if regularization is not None:
        cmi = 'CMIRegularization', _read('cmi_regularization', RegularizationArguments, regularization)
    if maximization is not None:
        cmi = 'CMIMaximization', _read('cmi_maximization', MaximizationArguments, maximization)
    if distillation is None:
        return cmi, None
    return cmi, _read('knowledge_distillation', DistillationArguments, distillation)


def _read(name: str, cls: Any, given: Any) -> Any:
    if not isinstance(given, Mapping):
        raise ConfigError(
            f'{name} must be a mapping of its arguments, {{}} for the defaults, got a {type(given).__name__}.'
        )
    known = [field.name for field in dataclasses.fields(cls)]
    for key in given:
        if key not in known:
            raise ConfigError(f'{name} has no argument {key!r}.{nearest(str(key), known)} It takes {", ".join(known)}.')
    return cls(**given)


def refuse_settings(trainer: Any) -> None:
    """Refuse what can be seen when the Trainer is made.

    Raises:
        ConfigError: With the first thing that does not work, and what would.
    """
    args, model = trainer.args, trainer.model
    accelerator = args.accelerator_config
    config = getattr(model, 'config', None)
    kind = getattr(config, 'problem_type', None)
    parallel = [
        kind.upper()
        for kind in ('tp', 'cp', 'sp')
        if getattr(trainer, f'get_{kind}_size', lambda: 1)() > 1 or getattr(trainer, f'is_{kind}_enabled', False)
    ]
    rows = trainer.train_dataset
    strategy = getattr(args, 'train_sampling_strategy', None)
    problems = {
        'CMITrainer owns the loss, compute_loss_func would be left out: do without it.': trainer.compute_loss_func,
        f'CMITrainer trains single-label classifiers, this model is for {kind or "regression (one label)"}.': (
            num_labels_of(model) == 1 or kind in ('regression', 'multi_label_classification')
        ),
        'Several GPUs in one process (DataParallel) mix up the features of the replicas: start one process a GPU, '
        'torchrun --nproc_per_node N.': args.n_gpu > 1,
        'CMITrainer does not run under DeepSpeed: use DDP (torchrun).': trainer.is_deepspeed_enabled,
        'CMITrainer does not run under FSDP: use DDP (torchrun).': trainer.is_fsdp_enabled,
        f'CMITrainer does not run with {"/".join(parallel)} parallelism, where ranks share rows: use DDP.': parallel,
        'accelerator_config: even_batches=False gives ranks different numbers of batches, and they wait for each other '
        'for ever: leave it True, repeated rows are not counted.': accelerator.even_batches is False,
        'accelerator_config: split_batches and dispatch_batches deal the rows in an order in which repeated ones '
        'cannot be told: leave them out.': accelerator.split_batches or accelerator.dispatch_batches,
        'CMITrainer needs a map-style train_dataset with a length: which rows a rank repeats, and what a share of the '
        'training is, cannot be told of a stream.': rows is not None
        and not (hasattr(rows, '__len__') and hasattr(rows, '__getitem__')),
        f'train_sampling_strategy={strategy!r} deals rows in an order in which repeated ones cannot be told: use '
        "'random', 'sequential' or 'group_by_length'.": strategy == 'batch_rebalance',
        'ignore_data_skip=True begins an epoch anew in its middle, which continues no run exactly: leave it out.': (
            args.ignore_data_skip
        ),
    }
    for sentence, wrong in problems.items():
        if wrong:
            raise ConfigError(sentence)


def refuse_data(trainer: Any, loader: Any, steps_per_epoch: int) -> None:
    """Refuse what can be seen when training begins.

    Raises:
        ConfigError: Over several ranks, a dataloader whose repeated rows cannot be told; in transformers before 4.57.1,
            a resume that would lose the last short step of the epoch.
    """
    accumulation = trainer.args.gradient_accumulation_steps
    version = tuple(int(part) for part in re.findall(r'\d+', transformers.__version__)[:3])
    if version < (4, 57, 1) and trainer.state.global_step % steps_per_epoch and len(loader) % accumulation:
        raise ConfigError(
            f'transformers {transformers.__version__} leaves out the last short step of an epoch that is resumed in '
            'its middle: resume from a checkpoint at the end of an epoch, or use transformers 4.57.1 or later.'
        )
    if trainer.accelerator.num_processes == 1:
        return
    sampler = getattr(loader, 'batch_sampler', None)
    if not isinstance(sampler, BatchSamplerShard) or sampler.batch_size != trainer._train_batch_size:
        raise ConfigError(
            'Over several ranks CMITrainer must know which rows a rank repeats: leave get_train_dataloader as Trainer '
            'has it.'
        )
