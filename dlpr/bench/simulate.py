"""A real scheduler with hundreds of workers that have nothing to do.

The workers are coroutines of one process, as many as one likes; scheduler and client are in this
one, as they are in `dlpr run`. What they spend on a task is the program's own cost, and the rate
at which tasks pass is what bounds the number of workers.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from dlpr.bench.frames import SMALL, carbon_job, write_carbon
from dlpr.bench.measure import Bench, Json, Row, timed
from dlpr.clusters.config import DASK_CONFIG
from dlpr.engine.dask_executor import DaskExecutor
from dlpr.engine.starter import Running
from dlpr.job.cluster import n_cores
from dlpr.stages import tasks
from dlpr.store.folder import StageFolder

MEMORY = 1 << 30
"""Memory of a simulated worker, in bytes, which nothing fills."""
QUIET = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.admin.tick.interval": "1s",
}
"""Workers of one process look after themselves less often than those that have one each."""
_PATIENCE = 120.0
_IDLE_SECONDS = 3.0
_ROUNDS = 3
_SLEEPERS_PER_SECOND = 40.0
"""Tasks of a known length: as many in a second as one process of workers can begin and end."""


def run(folder: StageFolder, task: int) -> tuple[dict[str, Any], Json]:
    """A task that sleeps and writes nothing but its receipt."""
    time.sleep(folder.settings["seconds"])
    return {}, {}


def register() -> None:
    """Make this module a stage."""
    tasks.STAGES["simulated"] = __name__


def make_stage(work: Path, n_tasks: int, seconds: float) -> StageFolder:
    """A stage of tasks that sleep."""
    return StageFolder.create(work, "simulated", {"seconds": seconds}, {}, n_tasks)


@dataclass(frozen=True)
class Spent:
    """Seconds: of the wall, and of CPU in this process (client, scheduler) and in the workers'."""

    wall: float
    own: float
    theirs: float

    def beside(self, idle: Spent) -> Spent:
        """CPU time without what the same length of idleness takes."""
        share = self.wall / idle.wall
        return Spent(self.wall, self.own - share * idle.own, self.theirs - share * idle.theirs)


@dataclass
class Simulated:
    """A cluster of simulated workers, and the process they live in."""

    executor: DaskExecutor
    process: Any

    def run(self, folder: StageFolder) -> Spent:
        """Do all tasks of a stage."""
        tasks = range(folder.n_tasks)
        return self._watch(lambda: deque(self.executor.run(folder, tasks, 1), 0))

    def idle(self) -> Spent:
        """Do nothing for a while."""
        return self._watch(lambda: time.sleep(_IDLE_SECONDS))

    def _watch(self, work: Callable[[], object]) -> Spent:
        own, theirs = time.process_time(), self._worker_seconds()
        wall = timed(work)
        return Spent(wall, time.process_time() - own, self._worker_seconds() - theirs)

    def _worker_seconds(self) -> float:
        spent = psutil.Process(self.process.pid).cpu_times()
        return float(spent.user + spent.system)


@contextmanager
def simulated_cluster(n_workers: int) -> Iterator[Simulated]:
    """A scheduler in this process and ``n_workers`` workers in another, with TLS on loopback."""
    import dask
    from distributed import Client, LocalCluster
    from distributed.security import Security

    security = Security.temporary()
    with dask.config.set(DASK_CONFIG):
        cluster = LocalCluster(
            n_workers=0,
            processes=False,
            protocol="tls://",
            security=security,
            host="127.0.0.1",
            dashboard_address=None,
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
            silence_logs=50,
        )
    context = multiprocessing.get_context("spawn")
    process = context.Process(
        target=_host_workers, args=(cluster.scheduler_address, security, n_workers), daemon=True
    )
    try:
        process.start()
        with Client(cluster, set_as_default=False) as client:
            client.wait_for_workers(n_workers, timeout=_PATIENCE)
            yield Simulated(DaskExecutor(Running(client, lambda: None)), process)
    finally:
        process.terminate()
        process.join()
        cluster.close()


def _host_workers(address: str, security: Any, n_workers: int) -> None:
    import logging

    import dask
    from distributed import Worker

    register()
    logging.getLogger("distributed").setLevel(logging.CRITICAL)

    async def host() -> None:
        workers = [
            Worker(
                address,
                nthreads=1,
                memory_limit=MEMORY,
                resources={"dlpr_nbytes": float(MEMORY)},
                security=security,
                dashboard=False,
            )
            for _ in range(n_workers)
        ]
        for worker in workers:
            await worker
        await asyncio.gather(*(worker.finished() for worker in workers))

    with dask.config.set({**DASK_CONFIG, **QUIET}):
        asyncio.run(host())


def measure(bench: Bench) -> Iterator[Row]:
    """Tasks per second, and what a task costs client with scheduler, worker, and disk."""
    register()
    n_tasks = bench.sizes.simulated_tasks
    done = make_stage(bench.scratch / "done", n_tasks, 0.0)
    seconds = timed(lambda: [tasks.run_task(str(done.path), task) for task in range(n_tasks)])
    yield Row("receipt", 1e3 * seconds / n_tasks, "ms/task", {"tasks": n_tasks})
    yield Row("smallest run", _smallest_run(bench.scratch / "smallest"), "s")
    for n_workers in bench.sizes.workers:
        with simulated_cluster(n_workers) as cluster:
            cluster.run(make_stage(bench.scratch / f"warm-{n_workers}", 2 * n_workers, 0.0))
            idle = cluster.idle()
            spent = cluster.run(done)
            net = spent.beside(idle)
            size = {"workers": n_workers}
            share = 100 * idle.own / idle.wall
            yield Row("idle scheduler", share, "% of a core", size)
            yield Row("client and scheduler", 1e3 * net.own / n_tasks, "ms/task", size)
            yield Row("worker's own", 1e3 * net.theirs / n_tasks, "ms/task", size)
            note = f"all workers in one process, which took {100 * spent.theirs / spent.wall:.0f} %"
            yield Row("tasks per second", n_tasks / spent.wall, "1/s", size, note=note)
            yield _sleepers(bench, cluster, n_workers, net.own / n_tasks)


def _smallest_run(folder: Path) -> float:
    """Seconds of `dlpr run` that has next to nothing to do: programs, cluster, stages."""
    write_carbon(folder, SMALL, 2)
    path = folder / "job.json"
    path.write_text(json.dumps(carbon_job(folder, n_cores()).resolved()))
    command = [sys.executable, "-m", "dlpr", "run", str(path)]
    return timed(lambda: subprocess.run(command, capture_output=True, check=True))


def _sleepers(bench: Bench, cluster: Simulated, n_workers: int, handed_out: float) -> Row:
    """Tasks of a known length, with receipts, beside what the model of `scaling` says of them."""
    from dlpr.bench.scaling import stage_seconds

    n_tasks, seconds = _ROUNDS * n_workers, n_workers / _SLEEPERS_PER_SECOND
    folder = make_stage(bench.scratch / "sleeping", n_tasks, seconds)
    wall = cluster.run(folder).wall
    model = stage_seconds(n_tasks, seconds, n_workers, handed_out)
    size = {"workers": n_workers, "tasks": n_tasks, "task seconds": seconds}
    samples = {"seconds": [wall], "model": [model]}
    name, against = "model of a stage / simulated workers", "real scheduler"
    return Row(name, model / wall, "", size, against, samples=samples)
