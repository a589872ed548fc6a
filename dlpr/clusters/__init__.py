"""Where tasks are done: this machine, SLURM, or a running cluster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dlpr.engine.starter import Starter
from dlpr.job.cluster import Attach, Cluster, Local, Slurm


def _local(spec: Local, base: Path) -> Starter:
    from dlpr.clusters.local import LocalStarter

    scratch = None if spec.scratch is None else base / Path(spec.scratch).expanduser()
    return LocalStarter(spec.workers, spec.threads_per_worker, spec.memory_per_worker, scratch)


def _slurm(spec: Slurm, base: Path) -> Starter:
    from dlpr.clusters.slurm import SlurmStarter

    return SlurmStarter(spec)


def _attach(spec: Attach, base: Path) -> Starter:
    from dlpr.clusters.connect import AttachStarter

    return AttachStarter(spec.name, spec.address)


_KINDS: dict[str, Callable[..., Starter]] = {"local": _local, "slurm": _slurm, "attach": _attach}


def starter(cluster: Cluster, base: Path) -> Starter:
    """What starts the cluster of a job; relative paths begin at ``base``."""
    return _KINDS[cluster.kind](cluster.spec, base)
