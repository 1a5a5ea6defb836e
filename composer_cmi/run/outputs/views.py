"""The picture and the card of a finished run, drawn from its files: what fails here costs no result."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from composer_cmi.run.calibrate.diagram import plot_reliability
from composer_cmi.run.evaluate import Evaluation
from composer_cmi.run.outputs.files import read_features, sweep_up
from composer_cmi.run.outputs.history import HISTORY_FILE, read_history
from composer_cmi.run.outputs.model_card import write_model_card
from composer_cmi.run.outputs.plots import plot_run
from composer_cmi.run.outputs.results import RunResults

__all__ = ['add_views']


def add_views(folder: Path, results: RunResults, label_names: Sequence[str], score_key: str) -> None:
    """Draw ``cmi.png`` and write the model's card where they are missing; a failure is a warning.

    Args:
        folder: Of a finished run.
        results: Its results.
        label_names: Class names by index.
        score_key: The logged name of the score on the first evaluation split.
    """
    card, picture = folder / 'model' / 'README.md', folder / 'cmi.png'
    views: dict[Path, Callable[[], None]] = {
        card: lambda: write_model_card(card, results, label_names),
        picture: lambda: _draw(picture, folder, results, label_names, score_key),
    }
    if (calibration := results.calibration) is not None:
        diagram = folder / 'calibration.png'
        title = f'{results.run_name}: are its probabilities to be believed? ({next(iter(calibration.splits))})'
        views[diagram] = lambda: plot_reliability(diagram, title, calibration)
    for path, make in views.items():
        # A model folder that was deleted, to make room, is not begun again by its card.
        if path.is_file() or not path.parent.is_dir():
            continue
        try:
            sweep_up(path.parent)  # of a process that was killed over it
            make()
        except Exception as error:
            reason = ' '.join(str(error).split())[:300]
            warnings.warn(
                f'{path} could not be made ({type(error).__name__}: {reason}); the results are complete '
                'without it, and the same command tries again.'
            )


def _draw(path: Path, folder: Path, results: RunResults, label_names: Sequence[str], score_key: str) -> None:
    split = next(iter(results.scores))
    stored = read_features(folder / f'features_{split}.npz', 'the picture needs it')
    ids, labels, features = (torch.from_numpy(stored[key]) for key in ('example_ids', 'labels', 'features'))
    plot_run(
        path,
        title=f'{results.run_name} ({results.task}, seed {results.seed})',
        history=read_history(folder / HISTORY_FILE),
        after=Evaluation(ids, labels, torch.zeros(len(ids), len(label_names)), features.float()),
        label_names=label_names,
        score_key=score_key,
        score_name=results.metric,
        information=results.model_dump()['cmi'],
    )
