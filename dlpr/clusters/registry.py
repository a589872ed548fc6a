"""Clusters by name: a folder each, on a file system that workers and users see."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml

from dlpr.clusters import queue
from dlpr.clusters.config import CONFIG, DASK_CONFIG
from dlpr.clusters.credentials import Credentials, make_credentials, open_credentials
from dlpr.errors import ClusterError
from dlpr.job.cluster import Cluster
from dlpr.store.files import Json, look_again, read_json, write_json
from dlpr.store.lease import Lease

VARIABLE = "DLPR_CLUSTERS"
NUMBERS = "numbers.txt"
"""All worker jobs ever submitted, for whoever has to end them in the scheduler's place."""
RUN = "run-"
"""How the names of clusters begin that live and die with a run."""
VALID = timedelta(days=30)
"""For which a cluster's credentials can be used: it ends with them."""
YOUNG = 20.0
"""Seconds in which a new process has to show a sign of life."""
_WATCH = 5.0
"""Seconds for which the sign of life of another host is watched."""


def clusters_home() -> Path:
    """Where clusters have their folders: ``$DLPR_CLUSTERS``, or below ``$XDG_STATE_HOME``.

    Raises
    ------
    ClusterError
        If a job script could not name it.
    """
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    chosen = os.environ.get(VARIABLE) or Path(state) / "dlpr" / "clusters"
    home = Path(chosen).expanduser().absolute()
    if re.search(r"[\s%\\'\"$`]", str(home)):
        raise ClusterError(
            f"{home} cannot stand in a job script: set ${VARIABLE} to a folder whose path has no "
            f"spaces, quotes, $ or %."
        )
    return home


@dataclass(frozen=True)
class ClusterFolder:
    """What is known of a named cluster.

    Attributes
    ----------
    path : Path
        Its folder, open to its owner alone.
    """

    path: Path

    @property
    def name(self) -> str:
        """The cluster's name."""
        return self.path.name

    @property
    def tls(self) -> Path:
        """Folder of the credentials."""
        return self.path / "tls"

    @property
    def logs(self) -> Path:
        """Folder of the logs of scheduler and workers."""
        return self.path / "logs"

    def record(self) -> Json:
        """What it was started with.

        Raises
        ------
        ClusterError
            If there is no such cluster.
        """
        found = read_json(self.path / "record.json")
        if found is None:
            known = ", ".join(one.name for one in folders()) or "none"
            raise ClusterError(
                f"there is no cluster {self.name!r} in {self.path.parent}; there are: {known}. "
                f"Start one: `dlpr cluster start {self.name} --profile PROFILE`. (Folder: "
                f"${VARIABLE}.)"
            )
        return found

    def spec(self) -> Cluster:
        """Its section of a job file."""
        return Cluster.model_validate(self.record()["cluster"])

    def lease(self) -> Lease:
        """Held by the process of its scheduler."""
        return Lease(self.path / "owner.json")

    def credentials(self) -> Credentials:
        """Its credentials, if they can be used."""
        return open_credentials(self.tls)

    def scheduler(self) -> Json | None:
        """Where its scheduler is, None before it is up."""
        look_again(self.path)
        return read_json(self.path / "scheduler.json")

    def state(self) -> Json:
        """What its scheduler said last of workers, jobs and tasks."""
        look_again(self.path)
        return read_json(self.path / "state.json") or {}

    def wanted(self) -> Json:
        """What its user wants of it: ``jobs``, ``stop``."""
        look_again(self.path)
        return read_json(self.path / "wanted.json") or {}

    def want(self, **wishes: Any) -> None:
        """Tell its scheduler what is wanted."""
        write_json(self.path / "wanted.json", {**self.wanted(), **wishes})

    def say(self, name: str, content: Json) -> None:
        """Write one of the files above, if the folder is still there."""
        if self.exists():
            write_json(self.path / f"{name}.json", content)

    def exists(self) -> bool:
        """Whether there is such a cluster."""
        look_again(self.path)
        return (self.path / "record.json").exists()

    def is_young(self) -> bool:
        """Whether it was made so lately that its scheduler's process may just begin.

        By the clock of the file system alone.
        """
        if self.state() or self.record().get("job") or self.lease().owner() is not None:
            return False
        probe = self.path / ".now.partial"
        probe.touch()
        age = probe.stat().st_mtime - (self.path / "record.json").stat().st_mtime
        probe.unlink()
        return age < YOUNG

    def is_alive(self) -> bool:
        """Whether its scheduler lives; one on another host is watched for some seconds."""
        lease = self.lease()
        owner = lease.owner()
        if owner is None:
            return False
        alive = lease.is_alive(owner)
        until = time.monotonic() + _WATCH
        while alive is None and time.monotonic() < until:
            time.sleep(0.5)
            now = lease.owner()
            if now is None:
                return False
            if now.get("counter") != owner.get("counter"):
                return True
        return bool(alive)

    def remove(self) -> None:
        """Remove all of it, the credentials first."""
        for path in (self.tls, self.path):
            shutil.rmtree(path, ignore_errors=True)


def cluster_folder(name: str) -> ClusterFolder:
    """The folder of a name, whether there is such a cluster or not.

    Raises
    ------
    ClusterError
        If it cannot be a name.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ClusterError(f"a cluster's name needs letters, digits and _ . -; found {name!r}")
    return ClusterFolder(clusters_home() / name)


def folders() -> Iterator[ClusterFolder]:
    """All named clusters of this user."""
    home = clusters_home()
    if home.is_dir():
        for path in sorted(home.iterdir()):
            if (path / "record.json").exists():
                yield ClusterFolder(path)


def create(folder: ClusterFolder, cluster: Cluster, valid: timedelta = VALID) -> None:
    """Make a cluster's folder, open to its owner alone, with new credentials.

    Raises
    ------
    ClusterError
        If a cluster of this name is alive, or the folder cannot be made.
    """
    reap()
    if folder.exists():
        if folder.is_alive() or folder.is_young():
            raise ClusterError(
                f"cluster {folder.name!r} is alive: `dlpr cluster status {folder.name}`. Use it, "
                f"stop it, or take another name."
            )
        end_jobs(folder)
    folder.remove()
    try:
        folder.path.mkdir(parents=True, mode=0o700)
        folder.path.chmod(0o700)
        folder.logs.mkdir(mode=0o700)
    except OSError as error:
        raise ClusterError(
            f"{folder.path} cannot be made: {error.strerror or error}. Set ${VARIABLE} to a folder "
            f"that you can write to and that all nodes see."
        ) from None
    make_credentials(folder.tls, valid)
    nested: dict[str, Any] = {}
    for key, value in DASK_CONFIG.items():
        *parents, last = key.split(".")
        place = nested
        for part in parents:
            place = place.setdefault(part, {})
        place[last] = value
    (folder.path / CONFIG).write_text(yaml.safe_dump(nested))
    write_json(folder.path / "record.json", {"cluster": cluster.model_dump(mode="json")})


def end_jobs(folder: ClusterFolder) -> None:
    """Cancel the worker jobs that a dead scheduler has left."""
    with suppress(FileNotFoundError):
        found = queue.jobs((folder.path / NUMBERS).read_text().split())
        queue.cancel([number for number, job in found.items() if job.is_alive])


def reap() -> None:
    """Remove what dead runs have left of their own clusters."""
    for folder in folders():
        if folder.name.startswith(RUN) and not (folder.is_alive() or folder.is_young()):
            with suppress(ClusterError):
                end_jobs(folder)
                folder.remove()
