"""The section ``cluster``: where the work is done. It never changes a result."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from dlpr.errors import JobError
from dlpr.job.sections import Bytes, Choice, Count, CountOrNone, Line, Seconds, Section, list_one
from dlpr.job.text import explain, read_mapping

_MEMORY_SHARE = 0.8  # of the machine, for all workers by default


_WALLTIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d{1,2}))?(?::(\d{1,2}))?")


def walltime_seconds(text: str) -> int:
    """Seconds of a time as SLURM writes it: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S.

    Raises
    ------
    ValueError
    """
    match = _WALLTIME.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"found {text!r}")
    days, *rest = match.groups()
    numbers = [int(number) for number in rest if number is not None]
    if days is not None:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
        return ((int(days) * 24 + hours) * 60 + minutes) * 60 + seconds
    if len(numbers) == 3:
        return (numbers[0] * 60 + numbers[1]) * 60 + numbers[2]
    return numbers[0] * 60 + (numbers[1] if len(numbers) == 2 else 0)


def _check_walltime(text: str) -> str:
    if walltime_seconds(text) < 60:
        raise ValueError(f"found {text!r}; needs a minute at least")
    return text


def n_cores() -> int:
    """Cores that this process may use."""
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable else os.cpu_count() or 1


def _machine_nbytes() -> int:
    """Memory that this process may use: the machine's, its container's, its SLURM job's."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with suppress(OSError, ValueError):
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    for name, factor in (("SLURM_MEM_PER_NODE", 1), ("SLURM_MEM_PER_CPU", n_cores())):
        with suppress(KeyError, ValueError):
            limits.append(int(os.environ[name]) * factor * 2**20)
    return min(limit for limit in limits if limit > 0)


class Local(Section):
    """Workers on this machine. 0 stands for a default that the machine fills in at once."""

    workers: Count = 0
    threads_per_worker: Count = 1
    memory_per_worker: Bytes = 0
    scratch: Line | None = None
    idle_timeout: Seconds = 3600

    @model_validator(mode="after")
    def _fill_from_machine(self) -> Self:
        workers = self.workers or max(1, n_cores() // self.threads_per_worker)
        memory = self.memory_per_worker or int(_MEMORY_SHARE * _machine_nbytes()) // workers
        object.__setattr__(self, "workers", workers)
        object.__setattr__(self, "memory_per_worker", memory)
        return self


Name = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="letters, digits and _ . -")
]
Walltime = Annotated[
    str,
    AfterValidator(_check_walltime),
    Field(description='a time as SLURM writes it, in quotes: "2:30:00" or "1-00:00:00"'),
]
Variable = Annotated[str, Field(pattern="^[A-Za-z_][A-Za-z0-9_]*$")]
Lines = Annotated[tuple[Line, ...], BeforeValidator(list_one), Field(description="lines of text")]


class SchedulerPlace(Section):
    """Where a named cluster's scheduler runs: a SLURM job of its own, or a process right here."""

    place: Literal["job", "process"] = "job"
    memory: Bytes = 2 * 2**30
    walltime: Walltime | None = None
    partition: Line | None = None
    directives: Lines = ()


class Slurm(Section):
    """Workers that are SLURM jobs, one process each; what is None is Dask's ``jobqueue.yaml``'s."""

    profile: Name | None = None
    jobs: Count = 1
    within: Literal["jobs", "allocation"] = "jobs"
    cores: CountOrNone = None
    memory: Bytes | None = Field(default=None, description="a size such as 8GiB")
    walltime: Walltime | None = None
    partition: Line | None = None
    account: Line | None = None
    constraint: Line | None = None
    directives: Lines = ()
    prologue: Lines = ()
    environment: dict[Variable, Line] = Field(
        default={}, description="names, each followed by text"
    )
    container: Line | None = None
    python: Line | None = None
    interface: Line | None = None
    scratch: Line | None = None
    blas_kernel: Line | None = None
    idle_timeout: Seconds = 3600
    scheduler: SchedulerPlace = SchedulerPlace()

    @model_validator(mode="before")
    @classmethod
    def _from_profile(cls, data: object) -> object:
        if not isinstance(data, Mapping) or not isinstance(data.get("profile"), str):
            return data
        kind, found = read_profile(data["profile"])
        if kind != "slurm":
            raise ValueError(f"profile {data['profile']} is of kind {kind}; needs slurm")
        return {**found, **data, "profile": None}

    @property
    def lifetime(self) -> int | None:
        """Seconds that a worker works: its walltime less a margin in which it finishes."""
        if self.walltime is None:
            return None
        seconds = walltime_seconds(self.walltime)
        return max(seconds // 2, seconds - max(60, seconds // 20))


class Attach(Section):
    """A running cluster that dlpr has started: by name, and by address where a tunnel leads."""

    name: Name
    address: Line | None = Field(default=None, description="tls://HOST:PORT, this end of a tunnel")

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, data: object) -> object:
        return {"name": data} if isinstance(data, str) else data


class Cluster(Choice):
    """Where the work is done. It never changes a result."""

    local: Local | None = None
    slurm: Slurm | None = None
    attach: Attach | None = None


def profiles_path() -> Path:
    """Where a user keeps profiles: ``$XDG_CONFIG_HOME/dlpr/clusters.yaml``."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "dlpr" / "clusters.yaml"


def read_profile(name: str) -> tuple[str, dict[str, Any]]:
    """The kind of a named profile, and what it says.

    Raises
    ------
    JobError
        If there is no such file or no such profile.
    """
    path = profiles_path()
    if not path.is_file():
        raise JobError(
            f"there is no {path}, which would have profile {name!r}. Write it: "
            f"deploy/clusters.yaml of dlpr has examples."
        )
    profiles = read_mapping(path)
    if name not in profiles:
        close = difflib.get_close_matches(name, profiles, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        known = ", ".join(map(str, profiles)) or "none"
        raise JobError(f"{path} has no profile {name!r}; it has: {known}.{hint}")
    found = profiles[name]
    if not isinstance(found, Mapping) or len(found) != 1:
        raise JobError(f"{path}: profile {name!r} needs exactly one of: local, slurm")
    kind, spec = next(iter(found.items()))
    if kind not in ("local", "slurm"):
        raise JobError(f"{path}: profile {name!r} is of kind {kind!r}; needs local or slurm")
    return kind, dict(spec or {})


def load_profile(name: str) -> Cluster:
    """A named profile as the section ``cluster`` of a job.

    Raises
    ------
    JobError
        If it cannot be used.
    """
    kind, spec = read_profile(name)
    if kind == "slurm":
        spec = {**spec, "profile": name}
    try:
        return Cluster.model_validate({kind: spec})
    except ValidationError as error:
        problems = explain(Cluster, error)
        raise JobError("\n  ".join([f"{profiles_path()}: profile {name!r}:", *problems])) from None
