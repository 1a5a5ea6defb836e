"""What a temperature changed, where the runs of a study have fitted one."""

from __future__ import annotations

import numpy as np

from composer_cmi.pages import Block, Paragraph, Rows
from composer_cmi.study.findings.study import Study

__all__ = ['calibration_blocks']

_NOTE = (
    'Means over the seeds, without -> with the temperature that is in the exported model; it was fitted on training '
    'rows that were not trained on. The scores above have it.'
)


def calibration_blocks(study: Study) -> list[Block]:
    """A table of the arms whose runs are calibrated; nothing where none is."""
    rows = []
    for table in study.tables:
        for arm in study.arms:
            found = [run.results.calibration for run in study.of(table.setting, arm).values()]
            found = [each for each in found if each is not None and table.split in each.splits]
            if not found:
                continue
            splits = [{when: part.model_dump() for when, part in each.splits[table.split].items()} for each in found]
            changes = [
                ' -> '.join(f'{np.mean([split[when][key] for split in splits]):.4f}' for when in ('before', 'after'))
                for key in ('nll', 'ece', 'brier')
            ]
            temperature = np.median([each.temperature for each in found])
            rows.append([table.name, arm, str(len(found)), f'{temperature:.3g}', *changes])
    if not rows:
        return []
    header = ['setting', 'arm', 'seeds', 'temperature, median', 'NLL, nats', 'ECE', 'Brier score']
    return [Paragraph(_NOTE), Rows(header, rows, 2)]
