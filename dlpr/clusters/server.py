"""The process of a named cluster: its scheduler, and whoever keeps its workers up."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Protocol

from dlpr.clusters import queue
from dlpr.clusters.config import DASHBOARD, worker_environment
from dlpr.clusters.credentials import make_credentials
from dlpr.clusters.crew import Crew
from dlpr.clusters.local import LocalStarter
from dlpr.clusters.registry import VALID, ClusterFolder, end_jobs
from dlpr.clusters.script import ask
from dlpr.core.blas import blas_kernel
from dlpr.engine.probe import versions
from dlpr.engine.stopping import is_asked, soft_stops
from dlpr.errors import ClusterError, DlprError
from dlpr.store.files import Json
from dlpr.store.lease import Lease

PERIOD = 1.0
"""Seconds between two looks at what is wanted."""
STATE_PERIOD = 2.0
"""Seconds between two reports."""
PATIENCE = 30.0
"""Seconds in which a scheduler has to end itself."""
_NOBODY = frozenset({"fire-and-forget"})
"""Clients of a scheduler that are none."""


class _Workers(Protocol):
    """Those who keep workers up."""

    cluster: Any

    def want(self, jobs: int) -> None: ...

    def report(self) -> Json: ...

    def close(self) -> None: ...


class _LocalWorkers:
    def __init__(self, folder: ClusterFolder, security: Any) -> None:
        spec = folder.spec().spec
        begin = LocalStarter(spec.workers, spec.threads_per_worker, spec.memory_per_worker)
        environment = worker_environment(blas_kernel(), spec.threads_per_worker)
        self.cluster: Any = begin.open(security, environment, DASHBOARD)
        self._jobs = spec.workers

    def want(self, jobs: int) -> None:
        if jobs != self._jobs:
            self._jobs = jobs
            self.cluster.scale(jobs)

    def report(self) -> Json:
        return {}

    def close(self) -> None:
        self.cluster.close()


class _SlurmWorkers:
    def __init__(self, folder: ClusterFolder, security: Any) -> None:
        found = ask(folder.spec().spec)
        self._crew = Crew(found, folder.path, folder.name, blas_kernel(), security, DASHBOARD)
        self.cluster = self._crew.cluster
        try:
            self._crew.start()
        except BaseException:
            self._crew.close()
            raise

    def want(self, jobs: int) -> None:
        self._crew.want(jobs)

    def report(self) -> Json:
        return {
            "jobs": [str(job) for job in self._crew.jobs()],
            "births": self._crew.births,
            "explanation": self._crew.explain(),
            "failure": self._crew.failure(),
        }

    def close(self) -> None:
        self._crew.close()


def serve(folder: ClusterFolder) -> None:
    """Be the scheduler of a named cluster until it is stopped, idle for long, or out of time.

    Raises
    ------
    DlprError
        What keeps it from starting; it is in ``state.json`` as well.
    """
    lease = folder.lease()
    lease.acquire()
    with lease.held(), soft_stops():
        try:
            _begin_anew(folder)
            _serve(folder, lease)
            folder.say("state", {"explanation": "it was stopped, or idle for long"})
        except ClusterError as error:
            folder.say("state", {"explanation": str(error), "failure": str(error)})
            raise
        finally:
            shutil.rmtree(folder.tls, ignore_errors=True)


def _begin_anew(folder: ClusterFolder) -> None:
    """Where SLURM has queued a scheduler's job again: no old workers, and new credentials."""
    end_jobs(folder)
    if not folder.tls.exists():
        make_credentials(folder.tls, VALID)


def _serve(folder: ClusterFolder, lease: Lease) -> None:
    cluster, credentials = folder.spec(), folder.credentials()
    kind, jobs = (
        (_LocalWorkers, cluster.spec.workers)
        if cluster.kind == "local"
        else (_SlurmWorkers, cluster.spec.jobs)
    )
    workers: _Workers = kind(folder, credentials.security())
    scheduler = workers.cluster.scheduler
    try:
        folder.say(
            "scheduler",
            {
                "address": str(scheduler.contact_address or workers.cluster.scheduler_address),
                "dashboard": f"127.0.0.1:{scheduler.http_server.port}",
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "slurm_job": os.environ.get("SLURM_JOB_ID"),
                "kernel": blas_kernel(),
                "versions": versions(),
            },
        )
        reported = -STATE_PERIOD
        while not is_asked() and not lease.lost and folder.exists():
            wanted = folder.wanted()
            idle = workers.cluster.sync(_idle_seconds, scheduler)
            if wanted.get("stop") or 0 < cluster.spec.idle_timeout < idle:
                break
            if datetime.now(UTC) >= credentials.expires:
                break
            workers.want(int(wanted.get("jobs", jobs)))
            if time.monotonic() - reported >= STATE_PERIOD:
                with suppress(DlprError):  # a full disk, or a silent SLURM, is no reason to end
                    state = workers.cluster.sync(_state, scheduler)
                    folder.say("state", {**state, **workers.report()})
                reported = time.monotonic()
            time.sleep(PERIOD)
    finally:
        with suppress(OSError):
            (folder.path / "scheduler.json").unlink(missing_ok=True)
        workers.close()


async def _idle_seconds(scheduler: Any) -> float:
    """For how long nobody has used it: a client that waits for workers uses it."""
    if scheduler.clients.keys() - _NOBODY and not scheduler.workers:
        scheduler.idle_since = time.time()
    return time.time() - (scheduler.idle_since or time.time())


async def _state(scheduler: Any) -> Json:
    """What the scheduler knows of workers and tasks."""
    workers = [
        {
            "name": str(worker.name),
            "address": worker.address,
            "threads": worker.nthreads,
            "limit_nbytes": worker.memory_limit,
            "resident_nbytes": worker.metrics.get("memory", 0),
            "executing": len(worker.executing),
        }
        for worker in scheduler.workers.values()
    ]
    clients = scheduler.clients.keys() - _NOBODY
    return {"workers": workers, "tasks": len(scheduler.tasks), "clients": len(clients)}


def stop(folder: ClusterFolder) -> bool:
    """Have a cluster's scheduler end itself and its workers; cancel what does not.

    Returns
    -------
    bool
        Whether it ended by itself.
    """
    record, scheduler = folder.record(), folder.scheduler()
    folder.want(stop=True)
    until = time.monotonic() + PATIENCE
    alive = folder.is_alive()
    while alive and time.monotonic() < until:
        time.sleep(0.5)
        alive = folder.is_alive()
    if alive and scheduler is not None and scheduler["host"] == socket.gethostname():
        with suppress(ProcessLookupError):
            os.kill(scheduler["pid"], signal.SIGKILL)
    if record.get("job"):
        queue.cancel([str(record["job"])])
    end_jobs(folder)
    folder.remove()
    return not alive
