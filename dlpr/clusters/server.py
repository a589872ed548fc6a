"""The process of a named cluster: its scheduler, and whoever keeps its workers up."""

from __future__ import annotations

import os
import shutil
import socket
import time
from contextlib import suppress
from typing import Any, Protocol

from dlpr.clusters import queue
from dlpr.clusters.config import DASHBOARD, worker_environment
from dlpr.clusters.crew import Crew
from dlpr.clusters.local import LocalStarter
from dlpr.clusters.registry import ClusterFolder
from dlpr.clusters.script import ask
from dlpr.core.blas import blas_kernel
from dlpr.engine.probe import versions
from dlpr.engine.stopping import is_asked, soft_stops
from dlpr.errors import ClusterError
from dlpr.store.files import Json

PERIOD = 1.0
"""Seconds between two looks at what is wanted."""
STATE_PERIOD = 2.0
"""Seconds between two reports."""


class _Workers(Protocol):
    """Those who keep workers up."""

    cluster: Any

    def scale(self, jobs: int) -> None: ...

    def report(self) -> Json: ...

    def close(self) -> None: ...


class _LocalWorkers:
    def __init__(self, folder: ClusterFolder, security: Any) -> None:
        spec = folder.spec().spec
        begin = LocalStarter(spec.workers, spec.threads_per_worker, spec.memory_per_worker)
        environment = worker_environment(blas_kernel(), spec.threads_per_worker)
        self.cluster: Any = begin.open(security, environment, DASHBOARD)

    def scale(self, jobs: int) -> None:
        self.cluster.scale(jobs)

    def report(self) -> Json:
        return {"jobs": [], "numbers": {}, "explanation": "", "failure": None}

    def close(self) -> None:
        self.cluster.close()


class _SlurmWorkers:
    def __init__(self, folder: ClusterFolder, security: Any) -> None:
        found = ask(folder.spec().spec)
        self._crew = Crew(found, folder.path, folder.name, blas_kernel(), security, DASHBOARD)
        self.cluster = self._crew.cluster
        self._crew.start()

    def scale(self, jobs: int) -> None:
        self._crew.wanted = jobs

    def report(self) -> Json:
        with suppress(ClusterError):
            return {
                "jobs": [str(job) for job in self._crew.jobs()],
                "numbers": self._crew.numbers,
                "explanation": self._crew.explain(),
                "failure": self._crew.failure(),
            }
        return {}

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
            _serve(folder)
        except ClusterError as error:
            folder.say("state", {"explanation": str(error), "failure": str(error)})
            raise


def _serve(folder: ClusterFolder) -> None:
    cluster = folder.spec()
    idle = cluster.spec.idle_timeout
    kind = _LocalWorkers if cluster.kind == "local" else _SlurmWorkers
    workers: _Workers = kind(folder, folder.credentials().security())
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
        while not is_asked() and not folder.wanted().get("stop"):
            if idle and time.time() - (scheduler.idle_since or time.time()) > idle:
                break
            workers.scale(int(folder.wanted().get("jobs", _jobs(cluster.spec))))
            if time.monotonic() - reported >= STATE_PERIOD:
                folder.say("state", {**_state(scheduler), **workers.report()})
                reported = time.monotonic()
            time.sleep(PERIOD)
    finally:
        (folder.path / "scheduler.json").unlink(missing_ok=True)
        workers.close()
        shutil.rmtree(folder.tls, ignore_errors=True)
        folder.say("state", {"explanation": "it was stopped, or idle for long"})


def _jobs(spec: Any) -> int:
    return int(spec.workers if isinstance(spec.workers, int) else spec.jobs)


def _state(scheduler: Any) -> Json:
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
        for worker in list(scheduler.workers.values())
    ]
    return {"workers": workers, "tasks": len(scheduler.tasks), "clients": len(scheduler.clients)}


def stop(folder: ClusterFolder, patience: float = 30.0) -> bool:
    """Have a cluster's scheduler end itself and its workers; cancel what does not.

    Returns
    -------
    bool
        Whether it ended by itself.
    """
    record = folder.record()
    folder.want(stop=True)
    until = time.monotonic() + patience
    alive = folder.is_alive()
    while alive and time.monotonic() < until:
        time.sleep(0.5)
        alive = folder.is_alive()
    numbers = [str(record["job"])] if record.get("job") else []
    if alive:
        numbers += folder.state().get("numbers", {}).values()
    if numbers:
        queue.cancel(numbers)
    folder.remove()
    return not alive
