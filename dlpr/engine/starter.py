"""What the engine asks of a cluster: `dlpr.clusters` has the kinds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Fate = Literal["memory", "preempted", ""]
"""What became of a worker, as far as anybody knows."""


@dataclass(frozen=True)
class Size:
    """What a worker has.

    Attributes
    ----------
    memory : int
        Bytes that Dask lets it use.
    threads : int
        Tasks at once, memory permitting.
    lifetime : int or None
        Seconds until it leaves, where it has to.
    """

    memory: int
    threads: int
    lifetime: int | None = None


@dataclass(frozen=True)
class Running:
    """A cluster at work.

    Attributes
    ----------
    client : distributed.Client
    close : callable
        Give back what was started.
    explain : callable
        Why there are no workers, in words for users, "" if nothing is known.
    failure : callable
        Why there will never be any, None while there may be.
    fate : callable
        What became of the worker that was at an address.
    """

    client: Any
    close: Callable[[], None]
    explain: Callable[[], str] = lambda: ""
    failure: Callable[[], str | None] = lambda: None
    fate: Callable[[str], Fate] = lambda address: ""


class Starter(Protocol):
    """A kind of cluster, before it runs."""

    @property
    def size(self) -> Size:
        """What a worker has, or will have."""
        ...

    @property
    def kernel(self) -> str | None:
        """The BLAS that its workers work with already; None if they take the plan's."""
        ...

    def start(self, kernel: str) -> Running:
        """Start it, or reach it, for a plan of a BLAS kernel.

        Raises
        ------
        ClusterError
        """
        ...
