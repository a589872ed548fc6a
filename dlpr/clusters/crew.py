"""A crew: the worker jobs of one scheduler, kept at a number whatever happens to them."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from dlpr.clusters import queue
from dlpr.clusters.config import DASK_CONFIG
from dlpr.clusters.script import Ask, worker_arguments
from dlpr.engine.starter import Fate
from dlpr.errors import ClusterError

logger = logging.getLogger(__name__)

PERIOD = 2.0
"""Seconds between two looks at the jobs."""
STILLBORN = 3
"""Jobs in a row, or as many as are wanted, that end without a worker before no more are tried."""
LOST = 120.0
"""Seconds for which a job may run on without the worker that it had: a nanny starts it anew in
less; the node has vanished, which SLURM takes minutes to believe."""
BIRTHS = 4096
"""Workers whose jobs are remembered."""


class Crew:
    """A scheduler in this process and its worker jobs.

    Parameters
    ----------
    found : Ask
    folder : Path
        The cluster's.
    name : str
    kernel : str
    security : distributed.Security
    web : dict, optional
        Dask's settings of what the scheduler's web server shows; by default nothing.

    Attributes
    ----------
    cluster : dask_jobqueue.SLURMCluster
    births : dict of str to str
        The job of every worker by its address.
    """

    def __init__(
        self,
        found: Ask,
        folder: Path,
        name: str,
        kernel: str,
        security: Any,
        web: dict[str, Any] | None = None,
    ) -> None:
        import dask

        from dlpr.clusters.jobs import Jobs, job_class

        self.found, self.folder, self.name = found, folder, name
        self.births: dict[str, str] = {}
        self._wanted = found.spec.jobs
        self._steps = found.spec.within == "allocation"
        self._alone: dict[str, float] = {}
        self._stillborn = 0
        self._refusal = self._last_words = ""
        self._stop = threading.Event()
        with dask.config.set({**DASK_CONFIG, **(web or {})}):
            self.cluster: Any = Jobs(
                name=name,
                job_cls=job_class(folder, self._steps, self._refused),
                scheduler_options={"dashboard_address": "127.0.0.1:0"},
                silence_logs=logging.CRITICAL,
                **worker_arguments(found, folder, name, kernel, security),
            )
        self._thread = threading.Thread(target=self._keep, name="dlpr-crew", daemon=True)

    @property
    def address(self) -> str:
        """The scheduler's, where workers and clients find it."""
        return str(self.cluster.scheduler.contact_address or self.cluster.scheduler_address)

    def want(self, jobs: int) -> None:
        """Keep so many workers from now on."""
        if jobs != self._wanted:
            self._wanted, self._stillborn = jobs, 0

    def start(self) -> None:
        """Ask for the first workers, then keep them up.

        Raises
        ------
        ClusterError
            With SLURM's words, if it refuses the first of them.
        """
        self.tend()
        until = time.monotonic() + queue.SECONDS
        while not (self._refusal or self._numbers()) and time.monotonic() < until:
            time.sleep(0.05)
        if self._refusal and not queue.is_silence(self._refusal):
            raise ClusterError(
                f"SLURM refused a worker job (sbatch): {self._refusal}. Its script is that of "
                f"`dlpr cluster script PROFILE`: try it by hand."
            )
        self._thread.start()

    def _keep(self) -> None:
        while not self._stop.wait(PERIOD):
            try:
                self.tend()
            except Exception:
                logger.warning("the crew could not be looked after", exc_info=True)

    def tend(self) -> None:
        """Let go of jobs that have ended, and ask for what is missing."""
        self.cluster.sync(self._tend)

    async def _tend(self) -> None:
        known = dict(self.cluster.workers)
        states = await asyncio.to_thread(self._states, [job.job_id for job in known.values()])
        born = {str(w.name): str(w.address) for w in self.cluster.scheduler.workers.values()}
        for name, job in known.items():
            if self.cluster.workers.get(name) is not job:
                continue
            if name in born and job.job_id:
                if born[name] not in self.births:
                    self._stillborn = 0
                self.births[born[name]] = job.job_id
                self._alone.pop(job.job_id, None)
            elif not job.is_alive(states):
                del self.cluster.workers[name]
                await asyncio.to_thread(self._lost, job.job_id, states.get(job.job_id or ""))
            elif self._is_deserted(job.job_id, states):
                await asyncio.to_thread(queue.cancel, [job.job_id])
                self.cluster.workers.pop(name, None)
        for address in list(self.births)[:-BIRTHS]:
            del self.births[address]
        await self._shrink(born)
        if self._stillborn < max(STILLBORN, self._wanted):
            self.cluster.scale(self._wanted)

    async def _shrink(self, born: dict[str, str]) -> None:
        """Have the workers that are too many leave before their jobs are cancelled."""
        names = sorted(self.cluster.worker_spec, key=lambda name: name in born)
        extra = names[: max(0, len(names) - self._wanted)]
        leaving = [name for name in extra if name in born]
        if leaving:
            await self.cluster.scheduler.retire_workers(names=leaving)
        for name in extra:
            del self.cluster.worker_spec[name]

    def _is_deserted(self, number: str, states: dict[str, queue.QueueJob]) -> bool:
        """Whether a job has long run on without the worker that it had."""
        job = states.get(number)
        if job is None or job.state != "RUNNING" or number not in self.births.values():
            self._alone.pop(number, None)
            return False
        return time.monotonic() - self._alone.setdefault(number, time.monotonic()) > LOST

    def _states(self, numbers: list[str]) -> dict[str, queue.QueueJob]:
        return {} if self._steps else queue.jobs(numbers)

    def _lost(self, number: str | None, state: queue.QueueJob | None) -> None:
        """A job has ended. Without a worker, and by no hand of others, it counts."""
        if number is None or number in self.births.values():
            return
        if state is None or state.state not in queue.TAKEN:
            self._stillborn += 1
            self._last_words = f"{state or f'job {number}'}: {self._log(number) or 'no log'}"

    def _refused(self, words: str) -> None:
        self._stillborn += not queue.is_silence(words)
        self._refusal = self._last_words = words
        logger.warning("SLURM refused a job: %s", words)

    def _log(self, number: str) -> str:
        return queue.tail(self.folder / "logs" / f"dlpr-{self.name}-{number}.err")

    def _numbers(self) -> list[str]:
        return [job.job_id for job in list(self.cluster.workers.values()) if job.job_id]

    def jobs(self) -> list[queue.QueueJob]:
        """The workers' jobs as SLURM sees them."""
        return list(self._states(self._numbers()).values())

    def explain(self) -> str:
        """Why there are no workers: each reason of SLURM once, a log, and what to try."""
        try:
            found = self.jobs()
            lines = queue.reasons(found)
            running = {job.number: job.node for job in found if job.state == "RUNNING"}
            if self._steps:
                running = dict.fromkeys(self._numbers(), "")
                lines = [f"{len(running)} step(s) of this allocation"]
            if running and not self.cluster.scheduler.workers:
                first = next(iter(running))
                lines += queue.troubles(running.values())
                lines += [f"log of {first}: {self._log(first) or 'empty as yet'}"]
        except ClusterError as error:
            return str(error)
        if self._last_words:
            lines.append(f"earlier: {self._last_words}")
        return "; ".join(lines) or "no job is in the queue"

    def failure(self) -> str | None:
        """What keeps every job from becoming a worker, None while there is hope."""
        if self._stillborn < max(STILLBORN, self._wanted) or self._numbers():
            return None
        return (
            f"{self._stillborn} worker jobs in a row ended before their worker was there or were "
            f"refused. The last: {self._last_words}. Try the script of `dlpr cluster script` by "
            f"hand, with sbatch."
        )

    def fate(self, address: str) -> Fate:
        """What became of the worker that was at an address."""
        number = self.births.get(address)
        return queue.fate_of(number, self._log(number)) if number else ""

    def close(self) -> None:
        """Cancel the jobs and end the scheduler."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(2 * queue.SECONDS)
        try:
            if not self._steps:
                with suppress(ClusterError):
                    queue.cancel(self._numbers())
        finally:
            self.cluster.close()
