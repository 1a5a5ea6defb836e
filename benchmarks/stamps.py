"""When a run's training begins and ends, for its `code_paths`: an algorithm that adds nothing to the loss."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from composer.core import Algorithm, Event, State
from composer.loggers import Logger

from composer_cmi.registry import register_algorithm

sys.path.insert(0, str(Path(__file__).parent))
from job import Stamps


@register_algorithm('stamps')
class StampSteps(Algorithm):
    """Notes the clock before the first batch is read and after the last step.

    Args:
        out: The file of a `job.Stamps`.
        device: `cpu` or `cuda`.
    """

    def __init__(self, out: str, device: str) -> None:
        self.stamps, self.objective = Stamps(out, device), {}

    def match(self, event: Event, state: State) -> bool:
        return event in (Event.EPOCH_START, Event.BATCH_END, Event.FIT_END)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if event == Event.EPOCH_START:
            self.stamps.begin()
        elif event == Event.BATCH_END and state.timestamp.batch == state.max_duration:
            self.stamps.end()
        elif event == Event.FIT_END:
            self.stamps.write()

    def state_dict(self) -> dict[str, Any]:
        return {}
