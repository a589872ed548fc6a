"""A crew: the worker jobs of one scheduler, kept at a number whatever happens to them."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from dlpr.clusters import queue
from dlpr.clusters.config import DASK_CONFIG
from dlpr.clusters.script import Ask, worker_arguments
from dlpr.errors import ClusterError

logger = logging.getLogger(__name__)

PERIOD = 2.0
"""Seconds between two looks at the jobs."""
STILLBORN = 3
"""Jobs in a row that end without a worker, or are refused, before the crew is given up."""


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
    wanted : int
        Workers that there should be.
    cluster : dask_jobqueue.SLURMCluster
    numbers : dict of str to str
        The latest job of every worker.
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
        from dask_jobqueue.slurm import SLURMCluster

        self.found, self.folder, self.name = found, folder, name
        self.wanted = found.spec.jobs
        self.numbers: dict[str, str] = {}
        self._born: set[str] = set()
        self._ends: Counter[str] = Counter()
        self._stillborn = 0
        self._last_words = ""
        self._stop = threading.Event()
        arguments = worker_arguments(found, folder, name, kernel, security)
        with dask.config.set({**DASK_CONFIG, **(web or {})}):
            self.cluster: Any = SLURMCluster(
                name=name,
                job_cls=_job_class(self),
                scheduler_options={"dashboard_address": "127.0.0.1:0"},
                silence_logs=logging.CRITICAL,
                **arguments,
            )
        self._thread = threading.Thread(target=self._keep, name="dlpr-crew", daemon=True)

    @property
    def address(self) -> str:
        """The scheduler's, where workers and clients find it."""
        return str(self.cluster.scheduler.contact_address or self.cluster.scheduler_address)

    def start(self) -> None:
        """Ask for the first workers, then keep them up.

        Raises
        ------
        ClusterError
            With SLURM's words, if it refuses the first of them.
        """
        (self.folder / "worker.sh").write_text(self.cluster.job_script())
        self.tend()
        until = time.monotonic() + queue.SECONDS
        while self.wanted and not self._last_words and time.monotonic() < until:
            if any(job.job_id for job in list(self.cluster.workers.values())):
                break
            time.sleep(0.05)
        if self._last_words:
            raise ClusterError(
                f"SLURM refused a worker job: {self._last_words}. Its script is that of `dlpr "
                f"cluster script PROFILE`: try it with sbatch by hand."
            )
        self._thread.start()

    def _keep(self) -> None:
        while not self._stop.wait(PERIOD):
            try:
                self.tend()
            except ClusterError as error:
                logger.warning("%s", error)

    def tend(self) -> None:
        """Let go of jobs that have ended, and ask for what is missing."""
        known = {name: job.job_id for name, job in list(self.cluster.workers.items())}
        self.numbers |= {name: number for name, number in known.items() if number}
        connected = self._connected()
        self._born |= {known[name] for name in connected & known.keys() if known[name]}
        if self._born & set(known.values()):
            self._stillborn = 0
        states = self._states(known)
        for name, number in known.items():
            state = states.get(number or "")
            if name not in connected and (state is None or not state.is_alive):
                self._let_go(name, number, state)
        self.cluster.scale(self.wanted if self.failure() is None else 0)

    def _connected(self) -> set[str]:
        return {str(worker.name) for worker in list(self.cluster.scheduler.workers.values())}

    def _states(self, known: dict[str, str | None]) -> dict[str, queue.QueueJob]:
        if self.found.spec.workers == "steps":
            steps = list(self.cluster.workers.items())
            alive = {job.job_id: name for name, job in steps if getattr(job, "is_alive", False)}
            return {
                number: queue.QueueJob(number, name, "RUNNING", "", "")
                for number, name in alive.items()
            }
        return queue.jobs(number for number in known.values() if number)

    def _let_go(self, name: str, number: str | None, state: queue.QueueJob | None) -> None:
        end = state.state if state is not None else "gone"
        if number is not None:
            self._ends[end] += 1
            if number not in self._born:
                self._stillborn += 1
                self._last_words = f"{state or f'job {number}'}: {self._log(number) or 'no log'}"
        self.cluster.loop.add_callback(self.cluster.workers.pop, name, None)

    def refused(self, words: str) -> None:
        """A job was not taken."""
        self._stillborn += not queue.is_silence(words)
        self._last_words = words
        logger.warning("SLURM refused a job: %s", words)

    def _log(self, number: str) -> str:
        return queue.tail(self.folder / "logs" / f"dlpr-{self.name}-{number}.err")

    def jobs(self) -> list[queue.QueueJob]:
        """The workers' jobs as SLURM sees them now."""
        numbers = [job.job_id for job in list(self.cluster.workers.values()) if job.job_id]
        if self.found.spec.workers == "steps":
            return [queue.QueueJob(number, self.name, "RUNNING", "", "") for number in numbers]
        return list(queue.jobs(numbers).values())

    def explain(self) -> str:
        """Why there are no workers: each reason of SLURM once, and what to try."""
        try:
            waiting = [job for job in self.jobs() if job.is_alive]
        except ClusterError as error:
            return str(error)
        reasons: dict[tuple[str, str, str], list[str]] = {}
        for job in waiting:
            reasons.setdefault((job.state, job.reason, job.advice), []).append(job.number)
        lines = [
            f"{len(numbers)} job(s) {state}"
            + (f" ({reason})" if reason not in ("", "None") else "")
            + f", the first of them {numbers[0]}"
            + (f": {advice}" if advice else "")
            for (state, reason, advice), numbers in reasons.items()
        ]
        if self._last_words:
            lines.append(f"earlier: {self._last_words}")
        return "; ".join(lines) or "no job is in the queue"

    def failure(self) -> str | None:
        """What keeps every job from becoming a worker, None while there is hope."""
        if self._stillborn < STILLBORN:
            return None
        return (
            f"{self._stillborn} worker jobs in a row ended before their worker was there or were "
            f"refused. The last: {self._last_words}\nLogs: {self.folder / 'logs'}. Try the script "
            f"by hand: `dlpr cluster script`, then sbatch."
        )

    def fate(self, name: str) -> str:
        """What became of a worker: "memory", "preempted", or "" if that is not known."""
        number = self.numbers.get(name)
        if number is None or self.found.spec.workers == "steps":
            return ""
        with suppress(ClusterError):
            return queue.fate(queue.jobs([number]).get(number), self._log(number))
        return ""

    def close(self) -> None:
        """Cancel the jobs and end the scheduler."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(2 * queue.SECONDS)
        numbers = [job.job_id for job in list(self.cluster.workers.values())]
        self.cluster.close()
        if self.found.spec.workers == "jobs":
            with suppress(ClusterError):
                queue.cancel(number for number in numbers if number)


def _job_class(crew: Crew) -> Any:
    """A kind of worker for dask-jobqueue that tells the crew when it is refused."""
    from dask_jobqueue import slurm
    from distributed.core import Status

    SLURMJob: Any = slurm.SLURMJob

    class Submitted(SLURMJob):  # type: ignore[misc]
        """A worker in a job of its own."""

        async def start(self) -> None:
            """Submit the job."""
            try:
                await super().start()
            except (RuntimeError, ValueError, OSError) as error:
                crew.refused(queue.said(str(error).partition("stderr:")[2] or str(error)))
                raise

    class Step(SLURMJob):  # type: ignore[misc]
        """A worker in a step of the job that this process is in."""

        process: asyncio.subprocess.Process | None = None

        @property
        def is_alive(self) -> bool:
            """Whether the step runs."""
            return self.process is not None and self.process.returncode is None

        async def start(self) -> None:
            """Start the step."""
            script = crew.folder / f"{self.name}.sh"
            script.write_text(self.job_script())
            logs = f"--error={crew.folder}/logs/{self.name}.err"
            self.process = await asyncio.create_subprocess_exec(
                *("srun", "--ntasks=1", "--exact", f"--cpus-per-task={self.worker_cores}"),
                *(f"--mem={crew.found.memory >> 20}M", "--overlap", logs, "--job-name", self.name),
                *("bash", str(script)),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
            self.job_id = str(self.process.pid)
            self.status = Status.running

        async def close(self) -> None:
            """End the step."""
            if self.process is not None and self.is_alive:
                self.process.terminate()
                await self.process.wait()

    return Step if crew.found.spec.workers == "steps" else Submitted
