"""The embedded cluster: a scheduler in this process, workers beside it, on loopback with TLS."""

from __future__ import annotations

import logging
import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from dlpr.engine.memory import BASE_NBYTES
from dlpr.errors import ClusterError

ALLOWED_FAILURES = 20
"""Deaths of workers under one task before the run gives up: preemption is no fault of a task."""

DASK_CONFIG: dict[str, Any] = {
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 0.97,
    "distributed.scheduler.allowed-failures": ALLOWED_FAILURES,
    "distributed.scheduler.worker-ttl": None,
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
}
"""Workers hold blocks, never results: nothing is spilled, and the plan keeps memory in bounds.

SciPy's LAPACK keeps the interpreter for itself, so a worker that factorizes sends no heartbeat for
minutes: it is not taken for dead while its connection stands. Dask always starts web servers; they
listen on loopback, and there is nothing on them.
"""


@dataclass(frozen=True)
class LocalSpec:
    """Workers on this machine.

    Attributes
    ----------
    workers, threads_per_worker : int
    memory_per_worker : int
        Bytes.
    scratch : Path or None
        Where Dask keeps its own files.
    """

    workers: int
    threads_per_worker: int
    memory_per_worker: int
    scratch: Path | None = None


def start_local(spec: LocalSpec, environment: dict[str, str]) -> tuple[Any, Any]:
    """Start a local cluster whose workers take the plan's BLAS kernel.

    Returns
    -------
    cluster, client

    Raises
    ------
    ClusterError
        If no worker process can be started.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise SystemExit(1)  # a worker that imports a script without a main guard
    import dask
    from distributed import Client, LocalCluster, system

    memory = min(spec.memory_per_worker, int(system.MEMORY_LIMIT))
    cluster = None
    try:
        with dask.config.set(DASK_CONFIG), _interrupts_later():
            cluster = LocalCluster(
                n_workers=spec.workers,
                threads_per_worker=spec.threads_per_worker,
                memory_limit=memory,
                resources={"dlpr_nbytes": usable_nbytes(memory)},
                processes=True,
                protocol="tls://",
                security=True,
                host="127.0.0.1",
                dashboard_address=None,
                scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
                local_directory=None if spec.scratch is None else str(spec.scratch),
                silence_logs=logging.CRITICAL,
                config=DASK_CONFIG,  # for workers that are started again after this block
                env={**environment, "RAYON_NUM_THREADS": str(spec.threads_per_worker)},
            )
        return cluster, Client(cluster, set_as_default=False)
    except BaseException as error:
        if cluster is not None:
            cluster.close()
        if isinstance(error, RuntimeError):
            raise ClusterError(
                f"no worker process can be started ({error}). A script that calls dlpr is imported "
                f"by its workers: put the call under `if __name__ == '__main__':`."
            ) from error
        raise


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Keep Ctrl-C from threads and processes that begin in this block: it is for the run alone.

    They inherit that it is blocked, and so do the workers that Dask starts later from them. This
    thread hears of it at the end of the block.
    """
    resource_tracker.ensure_running()  # later it would let the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def usable_nbytes(memory_per_worker: int) -> float:
    """What tasks may take of a worker's memory: all but the process itself."""
    return float(max(0, memory_per_worker - BASE_NBYTES))
