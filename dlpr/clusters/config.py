"""What every cluster of dlpr has in common: Dask's settings, and what a worker may take."""

from __future__ import annotations

from typing import Any

from dlpr.core.blas import kernel_environment
from dlpr.engine.memory import BASE_NBYTES

DASK_CONFIG: dict[str, Any] = {
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 1.03,
    "distributed.worker.memory.monitor-interval": "500ms",
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "2s",
    "distributed.scheduler.allowed-failures": 0,
    "distributed.scheduler.worker-ttl": None,
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 1 << 26,
    "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": 1 << 25,
}
"""Workers hold blocks, never results: nothing is spilled, and the plan keeps memory in bounds.

SciPy's LAPACK keeps the interpreter for itself, so a worker that factorizes sends no heartbeat for
minutes: it is not taken for dead while its connection stands. The executor hears of every death and
decides itself (``allowed-failures``). Dask always starts web servers; they listen on loopback, and
there is nothing on them.

Dask looks at itself a hundred times a second (a profile of every thread, ticks of event loops),
which took 3 % of two cores. What a task holds is watched by `dlpr.engine.watch`.

Dask has workers give freed memory back at once, to look small; the next block then pays for every
page of it again, which doubles the time of features. What a task frees is kept for the next one:
up to 64 MiB, in pieces of up to 32 MiB, where glibc's own rule ends as well.
"""


CONFIG = "dask.yaml"
"""These settings, in a cluster's folder, for its workers."""
DASHBOARD: dict[str, Any] = {
    "distributed.scheduler.http.routes": [
        "distributed.http.scheduler.prometheus",
        "distributed.http.scheduler.info",
        "distributed.http.scheduler.json",
        "distributed.http.health",
        "distributed.http.proxy",
        "distributed.http.statics",
    ]
}
"""On loopback of the scheduler's host: an ssh tunnel or jupyter-server-proxy leads there."""


def usable_nbytes(memory: int) -> float:
    """What tasks may take of a worker's memory: all but the process itself."""
    return float(max(0, memory - BASE_NBYTES))


def worker_environment(kernel: str, threads: int) -> dict[str, str]:
    """Environment of a worker: the plan's BLAS kernel, and featomic's threads."""
    return {**kernel_environment(kernel), "RAYON_NUM_THREADS": str(threads)}
