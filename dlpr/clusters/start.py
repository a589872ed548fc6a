"""Starting a named cluster: its scheduler as a job of its own, or as a process that stays."""

from __future__ import annotations

import os
import sys

from dlpr.clusters import queue
from dlpr.clusters.config import CONFIG
from dlpr.clusters.registry import ClusterFolder, create
from dlpr.clusters.script import ask, own_kernel, scheduler_script
from dlpr.errors import ClusterError
from dlpr.job.cluster import Cluster


def start(folder: ClusterFolder, cluster: Cluster) -> str:
    """Start a cluster; its scheduler is up when `ClusterFolder.scheduler` says where.

    Parameters
    ----------
    folder : ClusterFolder
    cluster : Cluster
        Of kind local or slurm.

    Returns
    -------
    str
        What was started: a process, or a job.

    Raises
    ------
    ClusterError
        If one of this name is alive, or SLURM refuses a script.
    """
    _refuse_waiting(folder)
    create(folder, cluster)
    try:
        if cluster.kind == "slurm" and cluster.spec.scheduler.place == "job":
            return _submit(folder, cluster)
        return _stay(folder, cluster)
    except BaseException:
        folder.remove()
        raise


def _refuse_waiting(folder: ClusterFolder) -> None:
    """A cluster whose scheduler's job is in the queue is no dead one."""
    number = folder.record().get("job") if folder.path.exists() else None
    job = queue.jobs([number]).get(number) if number else None
    if job is not None and job.is_alive:
        raise ClusterError(
            f"cluster {folder.name!r} has its scheduler's {job}: wait for it, or `dlpr cluster "
            f"stop {folder.name}` first."
        )


def _submit(folder: ClusterFolder, cluster: Cluster) -> str:
    found = ask(cluster.spec)
    script = folder.path / "scheduler.sh"
    script.write_text(scheduler_script(found, folder.path, folder.name))
    number = queue.submit(script)
    folder.say("record", {**folder.record(), "job": number})
    return f"job {number}"


def _stay(folder: ClusterFolder, cluster: Cluster) -> str:
    if cluster.kind == "slurm":
        ask(cluster.spec)
    environment = {**os.environ, "DASK_CONFIG": str(folder.path / CONFIG)}
    if cluster.kind == "slurm":
        environment |= own_kernel(cluster.spec)
    log, flags = str(folder.logs / "scheduler.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND
    number = os.posix_spawn(
        sys.executable,
        [sys.executable, "-m", "dlpr", "cluster", "serve", str(folder.path)],
        environment,
        setsid=True,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, log, flags, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
    )
    return f"process {number}"
