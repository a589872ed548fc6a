"""Job scripts: what a profile asks of SLURM, as dask-jobqueue writes it."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlpr.clusters.config import CONFIG, usable_nbytes, worker_environment
from dlpr.clusters.credentials import AUTHORITY, CERTIFICATE, KEY
from dlpr.core.blas import blas_kernel, with_kernel
from dlpr.engine.starter import Size
from dlpr.errors import ClusterError
from dlpr.job.cluster import Cluster, Slurm
from dlpr.units import parse_bytes

if TYPE_CHECKING:
    from distributed import Security

MIB = 1 << 20
HEADROOM = 256 * MIB
"""Of a job's memory, for the nanny and for what the kernel counts with it; and a twentieth."""
DEATH_TIMEOUT = 300
"""Seconds after which a worker without a scheduler gives its job back."""


@dataclass(frozen=True)
class Ask:
    """What one worker job asks for, all gaps filled from Dask's ``jobqueue.yaml``.

    Attributes
    ----------
    spec : Slurm
    cores : int
    memory : int
        Bytes of the job; the worker has less.
    """

    spec: Slurm
    cores: int
    memory: int

    @property
    def size(self) -> Size:
        """What the worker in the job has."""
        limit = self.memory - HEADROOM - self.memory // 20
        life = self.spec.lifetime
        return Size(limit, self.cores, None if life is None else life - 2 * self.stagger)

    @property
    def stagger(self) -> int:
        """Seconds by which workers' lives differ, so that they do not all end at once."""
        return (self.spec.lifetime or 0) // 20

    @property
    def host_python(self) -> str:
        """The command that runs the scheduler, which calls SLURM's: never in a container."""
        if self.spec.python is None or self.spec.container is not None:
            return shlex.quote(sys.executable)
        return self.spec.python

    @property
    def python(self) -> str:
        """The command that runs Python for a worker."""
        if self.spec.container is None:
            return self.host_python
        words = shlex.split(self.spec.container)
        inside = words if len(words) > 1 else ["apptainer", "exec", *words]
        return shlex.join([*inside, self.spec.python or "python3"])


def ask(spec: Slurm) -> Ask:
    """Fill the gaps of a section from ``jobqueue.yaml``, and refuse what cannot work.

    Raises
    ------
    ClusterError
    """
    import dask.config
    import dask_jobqueue  # noqa: F401  (its defaults are Dask's then)

    site = dask.config.get("jobqueue.slurm", {})
    cores, memory = spec.cores or site.get("cores"), spec.memory or site.get("memory")
    missing = [name for name, value in (("cores", cores), ("memory", memory)) if value is None]
    if missing:
        raise ClusterError(
            f"neither cluster.slurm nor Dask's jobqueue.yaml says {' and '.join(missing)} of a "
            f"worker job: add for instance `cores: 4` and `memory: 8GiB`."
        )
    filled = {
        "partition": spec.partition or site.get("queue"),
        "account": spec.account or site.get("account"),
        "walltime": spec.walltime or site.get("walltime"),
        "interface": spec.interface or site.get("interface"),
        "scratch": spec.scratch or site.get("local-directory"),
        "directives": (*(site.get("job-extra-directives") or ()), *spec.directives),
        "prologue": (*(site.get("job-script-prologue") or ()), *spec.prologue),
    }
    found = Ask(spec.model_copy(update=filled), int(cores), parse_bytes(memory))
    if usable_nbytes(found.size.memory) <= 0:
        raise ClusterError(
            f"cluster.slurm.memory is {found.memory // MIB} MiB; a worker needs 1 GiB at least."
        )
    return found


def worker_size(cluster: Cluster) -> Size:
    """What a worker of a cluster has, of kind local or slurm."""
    if cluster.kind == "slurm":
        return ask(cluster.spec).size
    return Size(cluster.spec.memory_per_worker, cluster.spec.threads_per_worker)


def worker_arguments(
    found: Ask, folder: Path, name: str, kernel: str, security: Security | None
) -> dict[str, Any]:
    """Keywords of dask-jobqueue's ``SLURMJob`` for one worker job.

    Parameters
    ----------
    found : Ask
    folder : Path
        The cluster's own, which its workers see: credentials, logs, Dask's settings.
    name : str
        The cluster's.
    kernel : str
        The BLAS that workers take.
    security : distributed.Security or None
    """
    spec, size = found.spec, found.size
    extra = ["--no-dashboard", "--dashboard-address", "127.0.0.1:0"]
    extra += ["--resources", f"dlpr_nbytes={usable_nbytes(size.memory):.0f}"]
    if spec.lifetime is not None:
        life = spec.lifetime - found.stagger
        extra += ["--lifetime", f"{life}s", "--lifetime-stagger", f"{found.stagger}s"]
    arguments = {
        "cores": found.cores,
        "memory": f"{size.memory} B",
        "job_mem": f"{found.memory // MIB}M",
        "processes": 1,
        "queue": spec.partition,
        "account": spec.account,
        "walltime": spec.walltime,
        "interface": spec.interface,
        "job_name": f"dlpr-{name}",
        "job_extra_directives": [*_worker_directives(spec), *_logs(folder)],
        "job_script_prologue": [
            *_prologue(spec, folder, worker_environment(kernel, found.cores)),
            "exec \\",
        ],
        "worker_extra_args": extra,
        "local_directory": f'"{spec.scratch}"' if spec.scratch else None,
        "death_timeout": DEATH_TIMEOUT,
        "python": found.python,
    }
    return arguments | ({"protocol": "tls://", "security": security} if security else {})


def _worker_directives(spec: Slurm) -> list[str]:
    constraint = [f"--constraint={spec.constraint}"] if spec.constraint else []
    return [*constraint, *spec.directives]


def _logs(folder: Path) -> list[str]:
    return [f"--output={folder}/logs/%x-%j.out", f"--error={folder}/logs/%x-%j.err"]


def _prologue(spec: Slurm, folder: Path, environment: dict[str, str]) -> list[str]:
    """Lines of shell before the program; the user's last, so that they may change ours."""
    environment = {"DASK_CONFIG": str(folder / CONFIG), **environment, **spec.environment}
    exports = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    return [*exports, *spec.prologue]


def worker_script(found: Ask, folder: Path, name: str, kernel: str, security: Security) -> str:
    """The script of a worker job, its scheduler's address left open."""
    from dask_jobqueue.slurm import SLURMJob

    arguments = worker_arguments(found, folder, name, kernel, security)
    job = SLURMJob(scheduler="tls://SCHEDULER:PORT", name=f"{name}-N", **arguments)
    return str(job.job_script())


def worker_preview(found: Ask, folder: Path, name: str) -> str:
    """The script of a worker job of a cluster that is not there yet."""
    from distributed import Security

    ca, cert, key = (str(folder / "tls" / part) for part in (AUTHORITY, CERTIFICATE, KEY))
    security = Security(
        require_encryption=True, tls_ca_file=ca, tls_worker_cert=cert, tls_worker_key=key
    )
    kernel = with_kernel(blas_kernel(), found.spec.blas_kernel or "")
    return worker_script(found, folder, name, kernel if found.spec.blas_kernel else "", security)


def scheduler_script(found: Ask, folder: Path, name: str) -> str:
    """The script of the job that runs a named cluster's scheduler, or all of the cluster."""
    spec, place = found.spec, found.spec.scheduler
    walltime = place.walltime or spec.walltime
    asks = {
        "--job-name": f"dlpr-{name}-scheduler",
        "--partition": place.partition or spec.partition,
        "--account": spec.account,
        "--time": walltime,
    }
    if spec.within == "allocation":
        per_core = -(-max(found.memory, place.memory) // MIB // found.cores)
        asks["--ntasks"] = str(spec.jobs + 1)
        asks["--cpus-per-task"] = str(found.cores)
        asks["--mem-per-cpu"] = f"{per_core}M"
    else:
        asks |= {"--ntasks": "1", "--cpus-per-task": "1", "--mem": f"{place.memory // MIB}M"}
    lines = [f"#SBATCH {key}={value}" for key, value in asks.items() if value]
    # A node that is lost takes its own workers along, not the job.
    shared = ["--no-kill", *_worker_directives(spec)] if spec.within == "allocation" else []
    lines += [f"#SBATCH {line}" for line in [*shared, *_logs(folder), *place.directives]]
    command = f"exec {found.host_python} -m dlpr cluster serve {shlex.quote(str(folder))}"
    prologue = _prologue(spec, folder, own_kernel(spec))
    return "\n".join(["#!/usr/bin/env bash", *lines, *prologue, command, ""])


def own_kernel(spec: Slurm) -> dict[str, str]:
    """Environment of a scheduler whose workers' BLAS kernel the user has chosen."""
    return {"OPENBLAS_CORETYPE": spec.blas_kernel} if spec.blas_kernel else {}
