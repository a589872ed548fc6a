"""Tasks on Dask workers that may leave, die and come back at any moment."""

from __future__ import annotations

import logging
import secrets
import time
from asyncio import CancelledError as AsyncCancelledError
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from itertools import chain
from queue import Empty, SimpleQueue
from typing import Any

from dlpr.engine import probe
from dlpr.engine.memory import BASE_NBYTES
from dlpr.engine.starter import Running
from dlpr.engine.stopping import is_asked, leave
from dlpr.engine.watch import death, watched_task
from dlpr.errors import ClusterError, DlprError, ResourceError
from dlpr.stages.naming import task_words
from dlpr.store.folder import Receipt, StageFolder
from dlpr.units import format_bytes

logger = logging.getLogger(__name__)

_WINDOW = 4
"""Tasks that wait at the scheduler per thread; the rest wait here."""
_LOOK = 5.0
"""Seconds after which the workers are counted again: they may have become more, or none."""
_POLL = 0.2
"""Seconds after which they are, while there are none."""
_PATIENCE = 60.0
"""Seconds in which a worker has to appear where nobody can say why there is none."""
_FAILURES = 2
"""Times that a task may fail, or outgrow its worker's memory, before the run gives up."""
_DEATHS = 20
"""Deaths of workers under one task that nobody can explain, before the run gives up."""


class DaskExecutor:
    """Tasks on the workers of a `distributed.Client`.

    Parameters
    ----------
    running : Running
        A client whose workers see the same file system, and who knows more about them.
    """

    def __init__(self, running: Running) -> None:
        self.client, self.running = running.client, running
        self._managed: bool | None = None
        self._known: set[str] = set()

    def run(
        self,
        folder: StageFolder,
        tasks: Sequence[int],
        nbytes: int,
        note: Callable[[str], None] = logger.info,
    ) -> Iterator[Receipt]:
        """Do tasks, a window of them at a time, and yield their receipts as they come.

        Raises
        ------
        ClusterError
            If no worker appears, the scheduler dies, workers keep dying under one task, or it
            fails on two of them.
        StoppedError
            If the run is asked to leave: when the tasks in hand are done.
        """
        waiting: dict[Any, int] = {}
        done: SimpleQueue[Any] = SimpleQueue()
        queue, judge = deque(tasks), _Judge(self.running, folder, nbytes)
        watch, leaving = _Watch(self.running, note), False
        try:
            while queue or waiting:
                with _scheduler_needed():
                    if watch.is_due():
                        slots, resources = self._slots(nbytes, folder)
                        watch.saw(slots)
                    if is_asked() and not leaving:
                        leaving = True
                        self._take_back(waiting)
                    while slots and queue and len(waiting) < _WINDOW * slots and not is_asked():
                        future = self._submit(folder, queue[0], resources)
                        waiting[future] = queue.popleft()
                        future.add_done_callback(done.put)
                    if not (waiting and slots):
                        leave()
                    try:
                        future = done.get(timeout=_LOOK if waiting else _POLL)
                    except Empty:
                        continue
                    if future not in waiting:  # taken back
                        continue
                    task = waiting.pop(future)
                    error = future.exception() if future.status != "finished" else None
                    receipt = None
                    if error is None:  # the disk is nearer than the worker
                        receipt = folder.receipt(task) or future.result()
                if receipt is not None:
                    yield receipt
                else:
                    judge.hear(task, error, future.key)
                    queue.appendleft(task)
        finally:
            with suppress(CancelledError, AsyncCancelledError, OSError, RuntimeError):
                self.client.cancel(list(waiting))

    def _take_back(self, waiting: dict[Any, int]) -> None:
        """Withdraw the tasks that no worker has begun."""
        begun = set(chain(*self.client.run(_executing, on_error="ignore").values()))
        for future in [one for one in waiting if one.key not in begun]:
            del waiting[future]
            future.cancel()

    def _slots(self, nbytes: int, folder: StageFolder) -> tuple[int, dict[str, float] | None]:
        """How many tasks of this size run at once, and the resource each takes.

        Raises
        ------
        ResourceError
            If no worker can hold a task (or, without dlpr's resource, one cannot hold as many as
            it has threads).
        """
        workers = self.client.scheduler_info(n_workers=-1)["workers"]
        new = workers.keys() - self._known
        if new:
            probe.check_workers(self.client, new, folder.path.parent)
        self._known = set(workers)
        return self._fit(workers, nbytes)

    def _fit(self, workers: dict[str, Any], nbytes: int) -> tuple[int, dict[str, float] | None]:
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

    def require(self, nbytes: int) -> None:
        """Refuse tasks that the workers of the moment cannot hold."""
        with _scheduler_needed():
            self._fit(self.client.scheduler_info(n_workers=-1)["workers"], nbytes)

    def _submit(self, folder: StageFolder, task: int, resources: dict[str, float] | None) -> Any:
        return self.client.submit(
            watched_task,
            str(folder.path),
            task,
            key=f"{folder.name}-{task}-{secrets.token_hex(4)}",
            pure=False,
            resources=resources,
        )

    def close(self) -> None:
        """The client belongs to whoever made it."""


class _Watch:
    """Counts the workers now and then, and says why there are none."""

    def __init__(self, running: Running, note: Callable[[str], None]) -> None:
        self._running, self._note = running, note
        self._looked = -_LOOK
        self._since: float | None = None
        self._told = 0.0

    def is_due(self) -> bool:
        pause = _LOOK if self._since is None else _POLL
        return time.monotonic() - self._looked >= pause

    def saw(self, slots: int) -> None:
        """Take note of how many tasks can run.

        Raises
        ------
        ClusterError
            If there are no workers and will be none, as far as anybody knows.
        """
        now = self._looked = time.monotonic()
        if slots:
            self._since = None
            return
        if self._since is None:
            self._since, self._told = now, now
        failure = self._running.failure()
        if failure is not None:
            raise ClusterError(f"there will be no workers: {failure}")
        if now - self._told < _PATIENCE:
            return
        reason = self._running.explain()
        if not reason:
            raise ClusterError(
                f"there has been no worker for {now - self._since:.0f} s. Finished tasks are kept: "
                f"start workers, and run the same command again."
            )
        self._told = now
        self._note(f"no worker for {now - self._since:.0f} s: {reason}")


class _Judge:
    """Decides whether a task that did not end well is tried again."""

    def __init__(self, running: Running, folder: StageFolder, nbytes: int) -> None:
        self._running, self._folder, self._nbytes = running, folder, nbytes
        self._deaths, self._failures = Counter[int](), Counter[int]()

    def hear(self, task: int, error: BaseException | None, key: str) -> None:
        """Take note of a task's end; return if it may be tried again.

        Raises
        ------
        DlprError
            The task's own error meant for users, or a ClusterError that names the task.
        """
        from distributed import KilledWorker

        if error is None or isinstance(error, CancelledError | AsyncCancelledError):
            raise ClusterError(_GONE.format("its tasks were cancelled")) from error
        if isinstance(error, DlprError):
            raise error
        if not isinstance(error, KilledWorker):
            self._count(self._failures, task, _FAILURES, f"{type(error).__name__}: {error}", error)
            return
        found = death(str(self._folder.path), task)
        worker = error.last_worker
        if found is not None:
            cause = (
                f"it held {format_bytes(found['resident_nbytes'])} of a limit of "
                f"{format_bytes(found['limit_nbytes'])} on {found['host']}; the plan promised "
                f"{format_bytes(BASE_NBYTES + self._nbytes)}. Give workers more memory"
            )
            self._count(self._failures, task, _FAILURES, cause, error)
        elif not worker.executing or key in worker.executing:
            fate = self._running.fate(str(worker.address))
            if fate == "memory":
                cause = (
                    f"SLURM ended its job for memory; the plan promised "
                    f"{format_bytes(BASE_NBYTES + self._nbytes)}. Give the jobs more memory"
                )
                self._count(self._failures, task, _FAILURES, cause, error)
            elif fate != "preempted":
                n_deaths = error.allowed_failures + 1
                cause = (
                    f"workers died under it, most likely for memory (the plan promised "
                    f"{format_bytes(BASE_NBYTES + self._nbytes)}) or because somebody ended them. "
                    f"Give workers more memory"
                )
                self._count(self._deaths, task, _DEATHS, cause, error, n_deaths)

    def _count(
        self,
        counter: Counter[int],
        task: int,
        limit: int,
        cause: str,
        error: BaseException,
        times: int = 1,
    ) -> None:
        counter[task] += times
        if counter[task] >= limit:
            words = task_words(self._folder, task)
            raise ClusterError(
                f"{words} failed {counter[task]} times: {cause.rstrip('.')}. Finished tasks are "
                f"kept: run the same command again."
            ) from error


def _executing(dask_worker: Any) -> list[str]:
    """In a worker: keys of the tasks that it has begun."""
    return [str(task.key) for task in dask_worker.state.executing]


_GONE = (
    "the scheduler is gone or has no workers ({}). Finished tasks are kept: start the cluster anew "
    "if it is yours, and run the same command again."
)


@contextmanager
def _scheduler_needed() -> Iterator[None]:
    """Turn what Dask raises when it cannot reach scheduler or workers into a message for users."""
    from distributed.client import ClosedClientError

    try:
        yield
    except (
        *(CancelledError, AsyncCancelledError, ClosedClientError),
        *(OSError, TimeoutError),
    ) as error:
        raise ClusterError(_GONE.format(str(error) or type(error).__name__)) from error
