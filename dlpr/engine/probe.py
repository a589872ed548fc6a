"""Do the workers see what the plan sees? The same files, and the same versions of what computes."""

from __future__ import annotations

import platform
import secrets
import socket
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dlpr.errors import ClusterError
from dlpr.store.files import look_again, write_json

PACKAGES = ("dlpr", "numpy", "scipy", "featomic", "zarr", "ase", "dask", "distributed")


def versions(*others: str) -> dict[str, str]:
    """Versions of Python, of all packages that decide a result, and of others."""
    found = {"python": platform.python_version()}
    for name in (*PACKAGES, *others):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


def look(path: str) -> tuple[str, str, dict[str, str]]:
    """In a worker: its host, what it reads in a file, its versions."""
    place = Path(path)
    look_again(place.parent)
    try:
        text = place.read_text()
    except OSError as error:
        text = str(error)
    return socket.gethostname(), text, versions()


def check_workers(client: Any, addresses: Iterable[str], folder: Path) -> None:
    """Have workers read a file that is written here, and compare their versions with ours.

    Parameters
    ----------
    client : distributed.Client
    addresses : iterable of str
    folder : Path
        On the file system that all share.

    Raises
    ------
    ClusterError
        If one does not see the file, or works with other versions.
    """
    place = folder / f".probe-{secrets.token_hex(6)}.partial"
    token = secrets.token_hex(16)
    write_json(place, {"token": token})
    try:
        found = client.run(look, str(place), workers=list(addresses), on_error="ignore")
    finally:
        place.unlink(missing_ok=True)
    here = versions()
    for address, (host, text, theirs) in found.items():
        if token not in text:
            words = " ".join(text.split())
            raise ClusterError(
                f"worker {address} on {host} does not see {folder} as it is here ({words[:200]}). "
                f"All workers must share one file system: set `output` to a folder on it."
            )
        other = [f"{n} {theirs[n]} (here {here[n]})" for n in here if theirs.get(n) != here[n]]
        if other:
            raise ClusterError(
                f"worker {address} on {host} works with other versions: {', '.join(other)}. "
                f"Results could differ: use one environment on all nodes (`python`, `prologue` or "
                f"`container` of cluster.slurm)."
            )
