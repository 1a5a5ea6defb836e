"""``results.json``: what a finished run found, in a schema that a study can rely on."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from composer_cmi.errors import ConfigError
from composer_cmi.run.outputs.files import read_checked

__all__ = [
    'RESULTS_FILE',
    'Calibration',
    'Information',
    'Reliability',
    'RunResults',
    'Selection',
    'Timing',
    'git_state',
    'load_results',
    'versions',
]

RESULTS_FILE = 'results.json'


class _Part(BaseModel):
    model_config = ConfigDict(extra='forbid', frozen=True)


class Information(_Part):
    """Held-out information in nats, and the share rho = CMI / I(X;Z)."""

    cmi: float
    mutual_information: float
    relative_cmi: float


class Timing(_Part):
    """Seconds; ``train_seconds`` adds up over resumed parts and leaves evaluation out.

    ``before_seconds`` are those from the start of the process, or from the end of the arm before, to the first step,
    ``after_seconds`` those from the last step to ``results.json``, after which the picture and the card are made. Where
    a start had no step left to do, and in results of earlier versions, they are not there.
    """

    train_seconds: float = Field(ge=0)
    steps: int = Field(ge=0)
    seconds_per_step: float = Field(ge=0)
    total_seconds: float = Field(ge=0)
    before_seconds: float | None = None
    after_seconds: float | None = None


class Selection(_Part):
    """Which evaluation's weights were kept: a choice by rows that are reported too."""

    metric: str
    split: str
    value: float
    step: int
    evaluations: int


class Reliability(_Part):
    """How far probabilities can be believed: NLL (nats), ECE, Brier score, and what the first two are made of.

    Of each of fifteen equal intervals of the answer's probability: rows, their mean probability, how many are right.
    """

    nll: float
    ece: float
    brier: float
    rows: list[int]
    confidence: list[float]
    right: list[int]


class Calibration(_Part):
    """A temperature, the rows that it was fitted on, and each evaluation split without and with it."""

    temperature: float = Field(gt=0)
    rows: int
    splits: dict[str, dict[Literal['before', 'after'], Reliability]]


class RunResults(_Part):
    """Everything that a study or a report reads of a run. Scores are shares in [0, 1], information is in nats."""

    schema_version: Literal[1] = 1
    run_name: str
    task: str
    seed: int
    metric: str
    """Name of the task's primary score, of the first evaluation split."""
    scores: dict[str, dict[str, float]]
    cmi: dict[Literal['before', 'after'], dict[Literal['features', 'logits'], Information]]
    """Of the first evaluation split, before and after training."""
    timing: Timing
    num_examples: dict[str, int]
    majority: dict[str, float]
    data_fingerprint: str
    fingerprints: dict[str, str] = {}
    """Of everything that was read: data, files of the model and the teacher, the user's code."""
    versions: dict[str, str]
    git: dict[str, Any]
    teacher: dict[str, Any] | None = None
    selection: Selection | None = None
    """Where the weights are not those of the last step (``train.keep_best``)."""
    calibration: Calibration | None = None
    """Where a temperature is in the exported model (``calibrate``); scores and predictions have it too."""
    notes: list[str] = []
    config: dict[str, Any]

    @property
    def primary_score(self) -> float:
        """The score by ``metric`` on the first evaluation split."""
        return next(iter(self.scores.values()))[self.metric]


def load_results(folder: str | Path) -> RunResults | None:
    """The results of a run folder, or None while it has not finished.

    Raises:
        ConfigError: if ``results.json`` is damaged, or not what this version writes.
    """
    path = Path(folder) / RESULTS_FILE
    if not path.is_file():
        return None
    try:
        content = read_checked(path, 'delete it, and the same command writes it anew from the last checkpoint')
        return RunResults.model_validate(json.loads(content))
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, a number of thousands of digits
        if isinstance(error, ConfigError):
            raise
        reason = error.errors()[0]['msg'] if isinstance(error, ValidationError) else str(error)
        raise ConfigError(f'{path} is not a results file of this version: {reason}; delete it to run again.') from error


def versions() -> dict[str, str]:
    """Versions of what a number may depend on."""
    packages = ('composer-cmi', 'mosaicml', 'torch', 'transformers', 'datasets', 'torchmetrics', 'numpy', 'peft')
    found = {'python': platform.python_version(), 'platform': platform.platform()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if torch.cuda.is_available():
        found['gpu'] = torch.cuda.get_device_name()
    return found


def git_state(folder: str | Path = '.') -> dict[str, Any]:
    """Commit and whether the tree was changed, of the repository around ``folder``; empty outside of one."""

    def git(*arguments: str) -> str:
        command = ['git', '-C', str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        return {'commit': git('rev-parse', 'HEAD'), 'dirty': bool(git('status', '--porcelain', '-uno'))}
    except (OSError, subprocess.SubprocessError):
        return {}
