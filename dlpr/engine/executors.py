"""Who does the tasks: Dask workers, or processes that know nothing of each other."""

from __future__ import annotations

import os
import secrets
import time
from asyncio import CancelledError as AsyncCancelledError
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from typing import Any, Protocol

from dlpr.core.blas import blas_kernel, kernel_environment
from dlpr.engine.cluster import LocalSpec, start_local
from dlpr.errors import ClusterError, OwnerError, ResourceError
from dlpr.stages.tasks import run_task
from dlpr.store.folder import Receipt, StageFolder
from dlpr.store.lease import PATIENCE, Lease
from dlpr.units import format_bytes

_WINDOW = 4
"""Tasks that wait at the scheduler per thread; the rest wait here."""


class Executor(Protocol):
    """Does tasks of a stage in any order, each at least once."""

    def run(self, folder: StageFolder, tasks: Sequence[int], nbytes: int) -> Iterator[Receipt]:
        """Do ``tasks`` of a stage; each may need ``nbytes`` of memory beside the process's own."""
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
        self._checked: set[str] = set()

    def _slots(self, nbytes: int) -> tuple[int, dict[str, float] | None]:
        """How many tasks of this size run at once, and the resource each takes.

        Raises
        ------
        ResourceError
            If a worker cannot hold one task (or, without dlpr's resource, one per thread).
        """
        from dlpr.engine.memory import BASE_NBYTES

        workers = self.client.scheduler_info(n_workers=-1)["workers"]
        slots = 0
        managed = all("dlpr_nbytes" in worker["resources"] for worker in workers.values())
        for address, worker in workers.items():
            threads = int(worker["nthreads"])
            limit = int(worker["memory_limit"]) or 1 << 62
            fit = (limit - BASE_NBYTES) // max(1, nbytes)
            if fit < (1 if managed else threads):
                raise ResourceError(
                    f"worker {address} has {format_bytes(limit)} for {threads} threads; dlpr needs "
                    f"{format_bytes(BASE_NBYTES)} and {format_bytes(nbytes)} for each task. Start "
                    f"it with fewer threads or more memory, or lower numerics.block_environments."
                )
            slots += min(threads, fit)
        return slots, {"dlpr_nbytes": float(nbytes)} if managed else None

    def run(self, folder: StageFolder, tasks: Sequence[int], nbytes: int) -> Iterator[Receipt]:
        """Do tasks, a window of them at a time, and yield their receipts as they come."""
        from distributed import KilledWorker, as_completed

        self.client.wait_for_workers(1, timeout=60)
        slots, resources = self._slots(nbytes)
        queue = iter(tasks)
        token = secrets.token_hex(4)

        def submit(task: int) -> Any:
            return self.client.submit(
                run_task,
                str(folder.path),
                task,
                key=f"{folder.name}-{task}-{token}",
                pure=False,
                resources=resources,
            )

        window = max(_WINDOW * slots, 16)
        waiting = [submit(task) for _, task in zip(range(window), queue, strict=False)]
        completed = as_completed(waiting, loop=self.client.loop)
        del waiting
        try:
            for future in completed:
                yield future.result()
                following = next(queue, None)
                if following is not None:
                    completed.add(submit(following))
        except KilledWorker as error:
            raise ClusterError(
                f"workers died {error.allowed_failures} times while they did {error.task}: most "
                f"likely out of memory (the plan promised {format_bytes(nbytes)} a task). Finished "
                f"tasks are kept; give the workers more memory and run the same command again."
            ) from error
        except (CancelledError, AsyncCancelledError, OSError, TimeoutError) as error:
            raise ClusterError(
                f"the scheduler is gone ({error or type(error).__name__}). Finished tasks are "
                f"kept; run the same command again."
            ) from error

    def close(self) -> None:
        """The client belongs to whoever made it."""


class EmbeddedExecutor:
    """A cluster on this machine, started when the first task asks for it.

    Parameters
    ----------
    spec : LocalSpec
    """

    def __init__(self, spec: LocalSpec) -> None:
        self.spec = spec
        self._cluster: Any = None
        self._client: Any = None

    def run(self, folder: StageFolder, tasks: Sequence[int], nbytes: int) -> Iterator[Receipt]:
        """Do tasks on the cluster."""
        if self._client is None:
            self._cluster, self._client = start_local(self.spec, kernel_environment(blas_kernel()))
        return DaskExecutor(self._client).run(folder, tasks, nbytes)

    def close(self) -> None:
        """Stop the cluster."""
        for part in (self._client, self._cluster):
            if part is not None:
                part.close()
        self._client = self._cluster = None


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

    def __init__(self, rank: int | None = None, patience: float = PATIENCE) -> None:
        self.rank = _own_rank() if rank is None else rank
        self.patience = patience

    def run(self, folder: StageFolder, tasks: Sequence[int], nbytes: int) -> Iterator[Receipt]:
        """Do every task that nobody else does, and wait for those that somebody does."""
        start = self.rank * 7919 % max(1, len(tasks))
        pending = [*tasks[start:], *tasks[:start]]
        while pending:
            left: list[int] = []
            for task in pending:
                receipt = folder.receipt(task) or self._claim(folder, task, wait=False)
                if receipt is None:
                    left.append(task)
                else:
                    yield receipt
            if len(left) == len(pending):
                receipt = self._claim(folder, left[0], wait=True)
                if receipt is None:
                    time.sleep(0.2)
                else:
                    yield receipt
                    left = left[1:]
            pending = left

    def _claim(self, folder: StageFolder, task: int, wait: bool) -> Receipt | None:
        lease = Lease(folder.path / "claims" / f"{task:06d}.json", self.patience)
        try:
            if not lease.try_acquire():
                if not wait:
                    return None
                lease.acquire()
        except OwnerError:
            return None
        with lease.held():
            return run_task(str(folder.path), task)

    def close(self) -> None:
        """Nothing was started."""


def _own_rank() -> int:
    for name in ("SLURM_ARRAY_TASK_ID", "SLURM_PROCID"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return os.getpid()
