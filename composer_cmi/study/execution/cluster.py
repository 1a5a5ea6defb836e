"""Runs shared out by Ray over the machines of its cluster."""

from __future__ import annotations

from typing import Any

from composer_cmi.errors import ConfigError
from composer_cmi.study.execution.processes import Job, Outcome, run_and_wait

__all__ = ['RayBackend']


class RayBackend:
    """The same jobs, scheduled by Ray over its cluster (`RAY_ADDRESS`); its machines share folder and environment."""

    def __init__(self, threads: int) -> None:
        try:
            import ray  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ConfigError("The Ray backend needs the package ray: pip install 'composer-cmi[ray]'.") from error
        ray.init(log_to_driver=False, configure_logging=False, ignore_reinit_error=True)
        gpus = 1 if ray.cluster_resources().get('GPU') else 0
        # A job that died with its machine is done again elsewhere by the sweep, which looks for results first.
        self._task = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)(run_and_wait)
        self._ray: Any = ray
        self._pending: dict[Any, Job] = {}

    def submit(self, job: Job) -> None:
        """Hand a job to Ray."""
        self._pending[self._task.remote(job)] = job

    def poll(self) -> list[Outcome]:
        """What has ended since the last call."""
        outcomes = []
        for reference in self._ray.wait([*self._pending], num_returns=len(self._pending), timeout=0.05)[0]:
            job = self._pending.pop(reference)
            try:
                outcomes.append(self._ray.get(reference))
            except self._ray.exceptions.RayError as error:
                outcomes.append(
                    Outcome(job.folder, 'failed', 0.0, f'Ray lost it: {" ".join(str(error).split())[:300]}')
                )
        return outcomes

    def stop(self) -> None:
        """Cancel what runs."""
        for reference in self._pending:
            self._ray.cancel(reference, force=False)
        self._pending = {}
