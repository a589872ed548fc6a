"""The embedded cluster: a scheduler in this process, workers beside it, on loopback with TLS."""

from __future__ import annotations

import logging
import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from dlpr.clusters.config import DASK_CONFIG, usable_nbytes, worker_environment
from dlpr.engine.starter import Running, Size
from dlpr.errors import ClusterError


@dataclass(frozen=True)
class LocalStarter:
    """Workers on this machine.

    Attributes
    ----------
    workers, threads_per_worker : int
    memory_per_worker : int
        Bytes.
    scratch : Path or None
        Where Dask keeps its own files.
    """

    workers: int
    threads_per_worker: int
    memory_per_worker: int
    scratch: Path | None = None
    kernel: None = None

    @property
    def size(self) -> Size:
        """What a worker has."""
        return Size(self.memory_per_worker, self.threads_per_worker)

    def start(self, kernel: str) -> Running:
        """Start the cluster.

        Raises
        ------
        ClusterError
            If no worker process can be started.
        """
        from distributed import Client

        cluster = self.open(True, worker_environment(kernel, self.threads_per_worker))
        client = None
        try:
            client = Client(cluster, set_as_default=False)
        finally:
            if client is None:
                cluster.close()

        def close() -> None:
            try:
                client.close()
            finally:
                cluster.close()

        return Running(client, close)

    def open(
        self, security: Any, environment: dict[str, str], web: dict[str, Any] | None = None
    ) -> Any:
        """Dask's cluster, with TLS.

        Parameters
        ----------
        security : distributed.Security or True
            True: for this process alone.
        environment : dict of str to str
            Of the workers.
        web : dict, optional
            Dask's settings of what the scheduler's web server shows; by default nothing.
        """
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            raise SystemExit(1)  # a worker that imports a script without a main guard
        import dask
        from distributed import LocalCluster, system

        memory = min(self.memory_per_worker, int(system.MEMORY_LIMIT))
        try:
            with dask.config.set({**DASK_CONFIG, **(web or {})}), _interrupts_later():
                return LocalCluster(
                    n_workers=self.workers,
                    threads_per_worker=self.threads_per_worker,
                    memory_limit=memory,
                    resources={"dlpr_nbytes": usable_nbytes(memory)},
                    processes=True,
                    protocol="tls://",
                    security=security,
                    host="127.0.0.1",
                    dashboard_address=None,
                    scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
                    local_directory=None if self.scratch is None else str(self.scratch),
                    silence_logs=logging.CRITICAL,
                    config=DASK_CONFIG,  # for workers that are started again after this block
                    env=environment,
                )
        except RuntimeError as error:
            raise ClusterError(
                f"no worker process can be started ({error}). A script that calls dlpr is imported "
                f"by its workers: put the call under `if __name__ == '__main__':`."
            ) from error


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Keep Ctrl-C from threads and processes that begin in this block: it is for the run alone.

    They inherit that it is blocked, and so do the workers that Dask starts later from them. This
    thread hears of it at the end of the block.
    """
    resource_tracker.ensure_running()  # later it would let the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
