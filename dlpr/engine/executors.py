"""Who does the tasks: Dask workers, or processes that know nothing of each other."""

from __future__ import annotations

import os
import secrets
import time
from asyncio import CancelledError as AsyncCancelledError
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from dlpr.core.blas import blas_kernel, kernel_environment
from dlpr.engine.cluster import ALLOWED_FAILURES, LocalSpec, start_local
from dlpr.engine.memory import BASE_NBYTES, tasks_at_once
from dlpr.errors import ClusterError, ResourceError
from dlpr.stages.tasks import run_task
from dlpr.store.files import look_again
from dlpr.store.folder import Receipt, StageFolder
from dlpr.store.lease import Lease
from dlpr.units import format_bytes

_WINDOW = 4
"""Tasks that wait at the scheduler per thread; the rest wait here."""
_LOOK = 5.0
"""Seconds after which the workers are counted again: they may have become more."""
_FIRST_WORKER = 60.0
"""Seconds in which a worker has to appear."""
_POLL = 0.1
"""Seconds between two looks at what others do, at first; later ten times that."""
CLAIM_PATIENCE = 120.0
"""Seconds for which another host's claim may be silent: as SciPy's LAPACK makes it be."""


class Executor(Protocol):
    """Does tasks of a stage in any order, each at least once."""

    def run(self, folder: StageFolder, tasks: Sequence[int], nbytes: int) -> Iterator[Receipt]:
        """Do ``tasks`` of a stage; each may need ``nbytes`` of memory beside the process's own."""
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


class DaskExecutor:
    """Tasks on the workers of a `distributed.Client`.

    Parameters
    ----------
    client : distributed.Client
        Whose workers see the same file system.
    """

    def __init__(self, client: Any) -> None:
        self.client = client
        self._managed: bool | None = None

    def _slots(self, nbytes: int) -> tuple[int, dict[str, float] | None]:
        """How many tasks of this size run at once, and the resource each takes.

        Raises
        ------
        ResourceError
            If no worker can hold a task (or, without dlpr's resource, one cannot hold as many as
            it has threads).
        """
        workers = self.client.scheduler_info(n_workers=-1)["workers"]
        if self._managed is None and workers:
            self._managed = all("dlpr_nbytes" in one["resources"] for one in workers.values())
        managed = bool(self._managed)
        slots = 0
        for address, worker in workers.items():
            threads = int(worker["nthreads"])
            limit = int(worker["memory_limit"] or 1 << 62)
            fit = max(0, limit - BASE_NBYTES) // max(1, nbytes)
            slots += min(threads, fit)
            if fit < (1 if managed else threads):
                refusal = (
                    f"worker {address} has {format_bytes(limit)} for {threads} threads; dlpr needs "
                    f"{format_bytes(BASE_NBYTES)} and {format_bytes(nbytes)} for each task. Start "
                    f"it with fewer threads or more memory, or lower numerics.block_environments."
                )
                if not managed:
                    raise ResourceError(refusal)
        if workers and not slots:
            raise ResourceError(refusal)
        return slots, {"dlpr_nbytes": float(nbytes)} if managed else None

    def run(self, folder: StageFolder, tasks: Sequence[int], nbytes: int) -> Iterator[Receipt]:
        """Do tasks, a window of them at a time, and yield their receipts as they come.

        Raises
        ------
        ClusterError
            If no worker appears, the scheduler dies, or workers keep dying under one task.
        """
        from distributed import KilledWorker, as_completed

        with _scheduler_needed():
            self.client.wait_for_workers(1, timeout=_FIRST_WORKER)
        queue, deaths = deque(tasks), Counter[int]()
        waiting: dict[Any, int] = {}
        completed = as_completed(loop=self.client.loop)
        looked = -_LOOK
        try:
            while queue or waiting:
                with _scheduler_needed():
                    if time.monotonic() - looked >= _LOOK:
                        slots, resources = self._slots(nbytes)
                        looked = time.monotonic()
                    while queue and len(waiting) < max(_WINDOW * slots, 16):
                        future = self._submit(folder, queue[0], resources)
                        waiting[future] = queue.popleft()
                        completed.add(future)
                    future = next(completed)
                    task = waiting.pop(future)
                    error = future.exception() if future.status == "error" else None
                    receipt = None
                    if error is None:  # the disk is nearer than the worker
                        receipt = folder.receipt(task) or future.result()
                if receipt is not None:
                    yield receipt
                elif isinstance(error, KilledWorker):
                    deaths[task] += error.allowed_failures + 1
                    if deaths[task] > ALLOWED_FAILURES:
                        raise ClusterError(_killed(folder, task, deaths[task], nbytes)) from error
                    queue.appendleft(task)
                elif error is not None:
                    raise error.with_traceback(future.traceback())
        finally:
            with suppress(CancelledError, AsyncCancelledError, OSError, RuntimeError):
                self.client.cancel(list(waiting))

    def require(self, nbytes: int) -> None:
        """Refuse tasks that the workers of the moment cannot hold."""
        self._slots(nbytes)

    def _submit(self, folder: StageFolder, task: int, resources: dict[str, float] | None) -> Any:
        return self.client.submit(
            run_task,
            str(folder.path),
            task,
            key=f"{folder.name}-{task}-{secrets.token_hex(4)}",
            pure=False,
            resources=resources,
        )

    def close(self) -> None:
        """The client belongs to whoever made it."""


def _killed(folder: StageFolder, task: int, n_deaths: int, nbytes: int) -> str:
    return (
        f"workers died {n_deaths} times while they did task {task} of {folder.name}: most likely "
        f"out of memory (the plan promised {format_bytes(nbytes)} a task). Finished tasks are "
        f"kept; give the workers more memory and run the same command again."
    )


@contextmanager
def _scheduler_needed() -> Iterator[None]:
    """Turn what Dask raises when it cannot reach scheduler or workers into a message for users."""
    try:
        yield
    except (CancelledError, AsyncCancelledError, OSError, TimeoutError) as error:
        said = str(error) or type(error).__name__
        raise ClusterError(
            f"the scheduler is gone or has no workers ({said}). Finished tasks are kept: start the "
            f"cluster anew if it is yours, and run the same command again."
        ) from error


class EmbeddedExecutor:
    """A cluster on this machine, started when the first task asks for it.

    Parameters
    ----------
    spec : LocalSpec
    kernel : str, optional
        The plan's BLAS kernel, to which the workers are brought.
    """

    def __init__(self, spec: LocalSpec, kernel: str | None = None) -> None:
        self.spec = spec
        self.kernel = kernel or blas_kernel()
        self._cluster: Any = None
        self._client: Any = None

    def run(self, folder: StageFolder, tasks: Sequence[int], nbytes: int) -> Iterator[Receipt]:
        """Do tasks on the cluster."""
        if self._client is None:
            self._cluster, self._client = start_local(self.spec, kernel_environment(self.kernel))
        return DaskExecutor(self._client).run(folder, tasks, nbytes)

    def require(self, nbytes: int) -> None:
        """Refuse tasks that a worker cannot hold."""
        tasks_at_once(nbytes, self.spec.memory_per_worker, self.spec.threads_per_worker)

    def close(self) -> None:
        """Stop the cluster."""
        client, cluster = self._client, self._cluster
        self._client = self._cluster = None
        try:
            if client is not None:
                client.close()
        finally:
            if cluster is not None:
                cluster.close()


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

    def run(self, folder: StageFolder, tasks: Sequence[int], nbytes: int) -> Iterator[Receipt]:
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
