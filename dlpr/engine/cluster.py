"""The embedded cluster: a scheduler in this process, workers beside it, all on loopback with TLS."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ALLOWED_FAILURES = 20
"""Deaths of workers under one task before the run gives up: preemption is no fault of a task."""

DASK_CONFIG = {
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 0.97,
    "distributed.scheduler.allowed-failures": ALLOWED_FAILURES,
    "distributed.admin.log-format": "%(name)s - %(levelname)s - %(message)s",
}
"""Workers hold blocks, never results: nothing is spilled, and the plan keeps memory in bounds."""


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
    """
    import dask
    from distributed import Client, LocalCluster

    dask.config.set(DASK_CONFIG)
    threads = str(spec.threads_per_worker)
    cluster = LocalCluster(
        n_workers=spec.workers,
        threads_per_worker=spec.threads_per_worker,
        memory_limit=spec.memory_per_worker,
        resources={"dlpr_nbytes": usable_nbytes(spec.memory_per_worker)},
        processes=True,
        protocol="tls://",
        security=True,
        host="127.0.0.1",
        dashboard_address=None,
        worker_dashboard_address=None,
        local_directory=None if spec.scratch is None else str(spec.scratch),
        silence_logs=logging.CRITICAL,
        env={**environment, "RAYON_NUM_THREADS": threads},
    )
    return cluster, Client(cluster, set_as_default=False)


def usable_nbytes(memory_per_worker: int) -> float:
    """What tasks may take of a worker's memory: all but the process itself."""
    from dlpr.engine.memory import BASE_NBYTES

    return float(max(0, memory_per_worker - BASE_NBYTES))
