"""A run's own SLURM workers: the scheduler is in the run's process and ends with it."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass

from dlpr.clusters.connect import TIMEOUT
from dlpr.clusters.crew import Crew
from dlpr.clusters.registry import RUN, cluster_folder, create
from dlpr.clusters.script import ask
from dlpr.core.blas import blas_kernel, with_kernel
from dlpr.engine.starter import Running, Size
from dlpr.job.cluster import Cluster, Slurm


@dataclass(frozen=True)
class SlurmStarter:
    """Worker jobs for the length of a run.

    Attributes
    ----------
    spec : Slurm
    """

    spec: Slurm

    @property
    def size(self) -> Size:
        """What a worker will have."""
        return ask(self.spec).size

    @property
    def kernel(self) -> str | None:
        """The kernel that the user has chosen for the nodes, if any."""
        chosen = self.spec.blas_kernel
        return None if chosen is None else with_kernel(blas_kernel(), chosen)

    def start(self, kernel: str) -> Running:
        """Start a scheduler here and submit its workers.

        Raises
        ------
        ClusterError
            With SLURM's words, if it refuses the script.
        """
        from distributed import Client

        found = ask(self.spec)
        folder = cluster_folder(f"{RUN}{os.getpid()}-{secrets.token_hex(3)}")
        create(folder, Cluster(slurm=self.spec))
        lease = folder.lease()
        lease.acquire()
        security = folder.credentials().security()
        crew: Crew | None = None
        client = None

        def close() -> None:
            try:
                if client is not None:
                    client.close()
                if crew is not None:
                    crew.close()
            finally:
                lease.release()
                folder.remove()

        try:
            crew = Crew(found, folder.path, folder.name, kernel, security)
            crew.start()
            client = Client(crew.address, security=security, timeout=TIMEOUT, set_as_default=False)
        except BaseException:
            close()
            raise
        return Running(client, close, crew.explain, crew.failure, crew.fate)
