"""Which BLAS works here, and with how many threads: both decide the last bits of a result."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager

import scipy.linalg.blas  # noqa: F401  (loads SciPy's BLAS beside NumPy's, so that both are seen)
from threadpoolctl import ThreadpoolController, threadpool_limits


def blas_kernel() -> str:
    """Library, version and kernel of every BLAS in this process, e.g. ``openblas 0.3.30 Haswell``."""
    found = {
        " ".join(
            str(info[key])
            for key in ("internal_api", "version", "architecture")
            if info.get(key) is not None
        )
        for info in ThreadpoolController().info()
        if info["user_api"] == "blas"
    }
    return "; ".join(sorted(found)) or "unknown"


def blas_threads(n_threads: int) -> AbstractContextManager[object]:
    """Run a block with a fixed number of BLAS threads."""
    return threadpool_limits(n_threads, user_api="blas")


def kernel_environment(kernel: str) -> dict[str, str]:
    """Environment variables with which a new process takes a kernel that `blas_kernel` named."""
    names = {part.split()[-1] for part in kernel.split("; ") if part.startswith("openblas")}
    return {"OPENBLAS_CORETYPE": names.pop()} if len(names) == 1 else {}


def forced_kernel() -> str | None:
    """The kernel that this shell forces, if any."""
    return os.environ.get("OPENBLAS_CORETYPE")
