"""Worker jobs as dask-jobqueue knows them: submitted, or steps of the allocation we are in."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dask_jobqueue import slurm
from distributed.core import Status
from distributed.deploy.cluster import Cluster

from dlpr.clusters import queue
from dlpr.clusters.registry import NUMBERS

_Job: Any = slurm.SLURMJob
_Cluster: Any = slurm.SLURMCluster


class Jobs(_Cluster):  # type: ignore[misc]
    """A scheduler and worker jobs; nobody but their crew decides which jobs are lost."""

    def _update_worker_status(self, op: str, msg: Any) -> None:
        Cluster._update_worker_status(self, op, msg)


class WorkerJob(_Job):  # type: ignore[misc]
    """A worker in a job of its own.

    Attributes
    ----------
    folder : Path
        The cluster's; scripts lie there, for their owner alone.
    refused : callable
        Told of SLURM's words where it takes no job.
    """

    folder: Path
    refused: Callable[[str], None]

    @contextmanager
    def job_file(self) -> Iterator[str]:
        """The script, where nobody else can read or replace it."""
        script = self.folder / f"{self.name}.sh"
        script.write_text(self.job_script())
        yield str(script)

    async def start(self) -> None:
        """Submit the job."""
        try:
            await super().start()
        except (RuntimeError, ValueError, OSError) as error:
            self.status = Status.failed
            type(self).refused(queue.said(str(error).partition("stderr:")[2] or str(error)))
            raise
        with (self.folder / NUMBERS).open("a") as file:
            file.write(f"{self.job_id}\n")

    async def close(self) -> None:
        """Cancel it."""
        await super().close()
        self.status = Status.closed

    def is_alive(self, states: dict[str, queue.QueueJob]) -> bool:
        """Whether SLURM has it, waiting or running."""
        state = states.get(self.job_id or "")
        return state is not None and state.is_alive


class WorkerStep(_Job):  # type: ignore[misc]
    """A worker in a step of the job that this process is in."""

    folder: Path
    numbers = itertools.count()
    process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start the step; its log has srun's words too."""
        script = self.folder / f"{self.name}.sh"
        script.write_text(self.job_script())
        self.job_id = f"step-{next(self.numbers)}"
        with (self.folder / "logs" / f"{self.job_name}-{self.job_id}.err").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *("srun", "--nodes=1", "--ntasks=1", "--exact", "--job-name", str(self.name)),
                *(f"--cpus-per-task={self.worker_cores}", f"--mem={self.job_memory}"),
                *("bash", str(script)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=log,
            )
        self.status = Status.running

    @property
    def job_memory(self) -> str:
        """Memory of the step, as the header of a job would ask for it."""
        return str(self.job_header.partition("--mem=")[2].split()[0])

    async def close(self) -> None:
        """End the step."""
        if self.process is not None and self.process.returncode is None:
            self.process.terminate()
            await self.process.wait()
        self.status = Status.closed

    def is_alive(self, states: dict[str, queue.QueueJob]) -> bool:
        """Whether the step runs."""
        return self.process is not None and self.process.returncode is None


def job_class(folder: Path, steps: bool, refused: Callable[[str], None]) -> Any:
    """A kind of worker job for one crew."""
    kind = WorkerStep if steps else WorkerJob
    return type(kind.__name__, (kind,), {"folder": folder, "refused": staticmethod(refused)})
