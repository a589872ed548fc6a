"""Reaching a cluster that runs: by its name, with its credentials."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dlpr.clusters import queue
from dlpr.clusters.registry import ClusterFolder, cluster_folder
from dlpr.clusters.script import worker_size
from dlpr.engine.starter import Fate, Running, Size
from dlpr.errors import ClusterError

if TYPE_CHECKING:
    from distributed import Client

TIMEOUT = 30.0
"""Seconds in which a scheduler has to answer."""


def connect(name: str, address: str | None = None, timeout: float = TIMEOUT) -> Client:
    """Attach to a running cluster of ``dlpr cluster start``.

    Parameters
    ----------
    name : str
    address : str, optional
        In place of the scheduler's own, where a tunnel leads to it: ``tls://127.0.0.1:8786``.
    timeout : float
        Seconds in which the scheduler has to answer.

    Returns
    -------
    distributed.Client
        Encrypted; closing it leaves the cluster up.

    Raises
    ------
    ClusterError
        If there is no such cluster, it is not up, or its credentials cannot be used.

    Examples
    --------
    >>> client = dlpr.connect("carbon")
    >>> dlpr.run("carbon.yaml", client=client)
    """
    folder = cluster_folder(name)
    folder.record()
    found = folder.scheduler()
    if found is None:
        words = folder.state().get("explanation") or f"`dlpr cluster status {name}` says more"
        raise ClusterError(f"cluster {name!r} has no scheduler yet, or no more: {words}.")
    credentials = folder.credentials()
    if address is not None and not address.startswith("tls://"):
        raise ClusterError(f"needs an address such as tls://127.0.0.1:8786; found {address!r}")
    address = address or str(found["address"])
    from distributed import Client

    try:
        return Client(
            address, security=credentials.security(), timeout=timeout, set_as_default=False
        )
    except (OSError, TimeoutError) as error:
        why = str(error).partition("\n")[0] or type(error).__name__
        raise ClusterError(
            f"cluster {name!r} does not answer at {address} ({why}). Is it "
            f"alive (`dlpr cluster status {name}`)? From outside its network an ssh tunnel leads "
            f"there: ssh -L 8786:{address.removeprefix('tls://')} LOGIN, then "
            f'dlpr.connect("{name}", "tls://127.0.0.1:8786").'
        ) from None


@dataclass(frozen=True)
class AttachStarter:
    """A cluster that runs already.

    Attributes
    ----------
    name : str
    address : str or None
    """

    name: str
    address: str | None = None

    @property
    def size(self) -> Size:
        """What its workers have."""
        return worker_size(cluster_folder(self.name).spec())

    @property
    def kernel(self) -> str | None:
        """The BLAS that its workers work with."""
        return (cluster_folder(self.name).scheduler() or {}).get("kernel")

    def start(self, kernel: str) -> Running:
        """Attach to it.

        Raises
        ------
        ClusterError
        """
        client, folder = connect(self.name, self.address), cluster_folder(self.name)
        return Running(
            client,
            client.close,
            explain=lambda: str(folder.state().get("explanation", "")),
            failure=lambda: _failure(folder),
            fate=lambda worker: _fate(folder, worker),
        )


def _failure(folder: ClusterFolder) -> str | None:
    found: Any = folder.state().get("failure")
    return None if found is None else str(found)


def _fate(folder: ClusterFolder, address: str) -> Fate:
    number = folder.state().get("births", {}).get(address)
    if number is None:
        return ""
    log = queue.tail(folder.logs / f"dlpr-{folder.name}-{number}.err")
    return queue.fate_of(str(number), log)
