"""The one entry point of distributed work: ``run_task(path, integer) -> receipt``."""

from __future__ import annotations

import importlib
import os
import resource
import socket
import time
from pathlib import Path
from typing import Any, Protocol, cast

from dlpr.core.blas import blas_kernel, blas_threads, kernel_environment
from dlpr.errors import ClusterError, StoreError
from dlpr.store.files import Json
from dlpr.store.folder import Receipt, StageFolder

STAGES = {
    "index": "dlpr.stages.ingest",
    "structures": "dlpr.stages.ingest",
    "features": "dlpr.stages.features",
    "references": "dlpr.stages.references",
    "rows": "dlpr.stages.rows",
    "derivatives": "dlpr.stages.derivatives",
    "hessian": "dlpr.stages.fold",
    "triangle": "dlpr.stages.fold",
    "decomposition": "dlpr.stages.decomposition",
    "scan": "dlpr.stages.scan",
    "fit": "dlpr.stages.fit",
    "factor": "dlpr.stages.factor",
    "cholesky": "dlpr.stages.cholesky",
    "committee": "dlpr.stages.committee",
    "cross_validation": "dlpr.stages.cross_validation",
    "forces": "dlpr.stages.forces",
    "rigidity": "dlpr.stages.rigidity",
    "whitened": "dlpr.stages.whitened",
    "targets": "dlpr.stages.targets",
    "proposal": "dlpr.stages.proposal",
    "result": "dlpr.stages.result",
    "sample": "dlpr.stages.sample",
}


class Stage(Protocol):
    """What a module of a stage offers."""

    def run(self, folder: StageFolder, task: int) -> tuple[dict[str, Any], Json]:
        """Do a task: write its part, durably; return the receipt's files and facts."""
        ...


def run_task(path: str, task: int) -> Receipt:
    """Do one task of the stage at ``path`` unless its receipt says that it is done.

    Parameters
    ----------
    path : str
        A stage folder.
    task : int

    Returns
    -------
    Receipt

    Raises
    ------
    ClusterError
        If this process works with another BLAS or kernel than the plan's.
    """
    folder = StageFolder(Path(path))
    receipt = folder.receipt(task)
    if receipt is not None:
        return receipt
    if folder.stage not in STAGES:
        raise StoreError(f"{path}: this dlpr knows no stage {folder.stage!r}.")
    module = cast(Stage, importlib.import_module(STAGES[folder.stage]))
    numerics = folder.settings.get("numerics")
    if numerics is not None:
        require_kernel(numerics["kernel"])
    wall, cpu = time.perf_counter(), time.process_time()
    # what has no BLAS in its plan calls none, but for functions of users
    with blas_threads(numerics["threads"] if numerics is not None else 1):
        files, facts = module.run(folder, task)
    cost = {
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "peak_nbytes": peak_nbytes(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }
    return folder.write_receipt(task, files, facts, cost)


def require_kernel(kernel: str) -> None:
    """Refuse to work with another BLAS than the plan's: the bits would differ."""
    here = blas_kernel()
    if here != kernel:
        cure = " ".join(f"{k}={v}" for k, v in kernel_environment(kernel).items())
        raise ClusterError(
            f"process {os.getpid()} on {socket.gethostname()} works with BLAS {here!r}; the plan "
            f"was made for {kernel!r}, and results would differ in their last bits. "
            + (f"Start the workers with {cure}." if cure else "Use the same BLAS everywhere.")
        )


def peak_nbytes() -> int:
    """Largest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
