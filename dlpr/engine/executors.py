"""Who does the tasks: Dask workers, or processes that know nothing of each other."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from dlpr.core.blas import blas_kernel
from dlpr.engine.dask_executor import DaskExecutor
from dlpr.engine.memory import tasks_at_once
from dlpr.engine.starter import Running, Starter
from dlpr.engine.stopping import leave
from dlpr.stages.tasks import run_task
from dlpr.store.files import look_again
from dlpr.store.folder import Receipt, StageFolder
from dlpr.store.lease import Lease

logger = logging.getLogger(__name__)

_POLL = 0.1
"""Seconds between two looks at what others do, at first; later ten times that."""
CLAIM_PATIENCE = 120.0
"""Seconds for which another host's claim may be silent: as SciPy's LAPACK makes it be."""

Note = Callable[[str], None]
"""Told what a user should know while tasks are done."""


class Executor(Protocol):
    """Does tasks of a stage in any order, each at least once."""

    def run(
        self, folder: StageFolder, tasks: Sequence[int], nbytes: int, note: Note = logger.info
    ) -> Iterator[Receipt]:
        """Do ``tasks`` of a stage; each may need ``nbytes`` of memory beside the process's own.

        Raises
        ------
        StoppedError
            If the run is asked to leave.
        """
        ...

    def require(self, nbytes: int) -> None:
        """Refuse before the run what tasks of ``nbytes`` will need and no worker has.

        Raises
        ------
        ResourceError
        """
        ...

    def close(self) -> None:
        """Give back what was started."""
        ...


class ClusterExecutor:
    """A cluster that is started, or attached to, when the first task asks for it.

    Parameters
    ----------
    starter : Starter
    kernel : str, optional
        The plan's BLAS kernel, to which the workers are brought.
    """

    def __init__(self, starter: Starter, kernel: str | None = None) -> None:
        self.starter = starter
        self.kernel = kernel or blas_kernel()
        self._running: Running | None = None
        self._executor: DaskExecutor | None = None

    def run(
        self, folder: StageFolder, tasks: Sequence[int], nbytes: int, note: Note = logger.info
    ) -> Iterator[Receipt]:
        """Do tasks on the cluster."""
        if self._executor is None:
            self._running = self.starter.start(self.kernel)
            self._executor = DaskExecutor(self._running)
        return self._executor.run(folder, tasks, nbytes, note)

    def require(self, nbytes: int) -> None:
        """Refuse tasks that a worker cannot hold."""
        size = self.starter.size
        tasks_at_once(nbytes, size.memory, size.threads)

    def close(self) -> None:
        """Give back what was started."""
        running, self._running, self._executor = self._running, None, None
        if running is not None:
            running.close()


class WorkExecutor:
    """Tasks in this process, without Dask, beside others that do the same.

    A lease per task keeps two processes from doing the same one; should both do it, they write the
    same bytes.

    Parameters
    ----------
    rank : int
        Where in the list of tasks to begin; different for every process.
    patience : float
        Seconds without a sign of life after which another host's claim is taken over.
    """

    def __init__(self, rank: int | None = None, patience: float = CLAIM_PATIENCE) -> None:
        self.rank = _own_rank() if rank is None else rank
        self.patience = patience

    def run(
        self, folder: StageFolder, tasks: Sequence[int], nbytes: int, note: Note = logger.info
    ) -> Iterator[Receipt]:
        """Do every task that nobody else does, and wait for those that somebody does."""
        start = self.rank * 7919 % max(1, len(tasks))
        claims = {
            task: Lease(folder.path / "claims" / f"{task:06d}.json", self.patience)
            for task in [*tasks[start:], *tasks[:start]]
        }
        pause = _POLL
        while claims:
            n_claims = len(claims)
            look_again(folder.path / "receipts")
            for task, claim in list(claims.items()):
                leave()
                receipt = folder.receipt(task)
                if receipt is None and claim.try_acquire():
                    with claim.held():
                        receipt = run_task(str(folder.path), task)
                if receipt is not None:
                    del claims[task]
                    yield receipt
            pause = _POLL if len(claims) < n_claims else min(2 * pause, 10 * _POLL)
            if claims:
                time.sleep(pause)

    def require(self, nbytes: int) -> None:
        """This process has whatever memory its user gave it."""

    def close(self) -> None:
        """Nothing was started."""


def _own_rank() -> int:
    for name in ("SLURM_ARRAY_TASK_ID", "SLURM_PROCID"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return os.getpid()
