"""The report's pictures as files: drawn from run folders, whatever may be broken in them, below the report's folder."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from composer_cmi.pages import Picture
from composer_cmi.run.outputs.files import write_bytes
from composer_cmi.study.findings.analysis import Comparison
from composer_cmi.study.findings.drawing import run_contents
from composer_cmi.study.findings.drawing.differences import paired_differences
from composer_cmi.study.findings.study import Study

__all__ = ['draw_pictures']


def draw_pictures(
    study: Study, comparisons: dict[str, list[Comparison]], out: Path, failed: list[str]
) -> tuple[list[Picture], list[Picture]]:
    """Draw what the runs hold and write it below `out/pictures`: what is of all settings, and what is of each.

    Args:
        study: the runs.
        comparisons: as `analysis.compare` gives them.
        out: the report's folder.
        failed: gets a sentence for each picture that could not be drawn.
    """
    wanted: list[tuple[str, str, Callable[[], Figure | None]]] = []
    for metric, kind in study.metrics.items():
        if not kind.exploratory:
            better = '; left of 0 is better' if kind.lower_is_better else ''
            reading = 'difference of every seed; black: mean and the 95 % interval that the verdict rests on'
            caption = f'{kind.name}: {reading}{better}'
            draw = lambda found=comparisons[metric]: _differences(found)  # noqa: E731
            wanted.append((f'differences_{metric}', caption, draw))
    of_settings = []
    if study.of_folders:
        weight = 'Score and held-out CMI against lambda, mean and 95 % t interval'
        wanted.append(('weight', weight, lambda: run_contents.against_weight(study)))
        teachers = 'CMI of the teacher against the score of its student'
        wanted.append(('teachers', teachers, lambda: run_contents.teacher_and_student(study)))
        for setting in dict.fromkeys(table.setting for table in study.tables):
            caption = f'{setting}: in training'
            of_settings.append(
                (f'training_{setting}', caption, lambda of=setting: run_contents.over_training(study, of))
            )
            for table in (table for table in study.tables if table.setting == setting):
                caption = f'{table.name}: clusters of f_x and their centroids, arms in one projection'
                draw = lambda of=table: run_contents.clusters(study, of.setting, of.split)  # noqa: E731
                of_settings.append((f'clusters_{setting}_{table.split}', caption, draw))
    taken: set[str] = set()
    return _drawn(wanted, out, failed, taken), _drawn(of_settings, out, failed, taken)


def _drawn(
    wanted: Sequence[tuple[str, str, Callable[[], Figure | None]]], out: Path, failed: list[str], taken: set[str]
) -> list[Picture]:
    pictures = []
    for name, caption, draw in wanted:
        try:
            figure = draw()
            if figure is not None:
                pictures.append(_save(figure, out, f'pictures/{_file_name(name, taken)}.png', caption))
        # What a folder holds for pictures may be broken or of unlike runs: that never costs the numbers.
        except (ValueError, LookupError, TypeError, EOFError, zipfile.BadZipFile, ArithmeticError) as error:
            failed.append(f'NO PICTURE {name}: {type(error).__name__}, {" ".join(str(error).split())[:200]}.')
    return pictures


def _file_name(name: str, taken: set[str]) -> str:
    """A name for a picture, which is made of settings and splits: no path, not too long, and taken once."""
    plain = re.sub(r'[^A-Za-z0-9_.,=+-]+|\.\.+', '_', name).strip('_')[:100]
    number = 1
    while (found := plain if number == 1 else f'{plain}_{number}') in taken:
        number += 1
    taken.add(found)
    return found


def _differences(comparisons: Sequence[Comparison]) -> Figure | None:
    return paired_differences([each for each in comparisons if not each.apart])


def _save(figure: Figure, out: Path, path: str, caption: str) -> Picture:
    picture = io.BytesIO()
    figure.savefig(picture, format='png', dpi=110, metadata={'Software': None})
    write_bytes(out / path, picture.getvalue())
    return Picture(path, caption, picture.getvalue())
