"""Which BLAS works here, and with how many threads: both decide the last bits of a result."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import scipy.linalg.blas  # noqa: F401  (loads SciPy's BLAS beside NumPy's, so that both are seen)
from threadpoolctl import ThreadpoolController


@lru_cache(maxsize=1)
def _controller(n_modules: int) -> ThreadpoolController:
    """All libraries of this process. To look for them costs milliseconds of every task, so that is
    done again only where modules have been imported since: they bring libraries."""
    return ThreadpoolController()


def blas_kernel() -> str:
    """Library, version and kernel of every BLAS in this process: ``openblas 0.3.30 Haswell``."""
    found = {
        " ".join(
            str(info[key])
            for key in ("internal_api", "version", "architecture")
            if info.get(key) is not None
        )
        for info in _controller(len(sys.modules)).info()
        if info["user_api"] == "blas"
    }
    return "; ".join(sorted(found)) or "unknown"


_keeper = ThreadPoolExecutor(1, "dlpr-blas")
"""Sets numbers of threads: threadpoolctl heeds the first thread that does, and no other."""
_change = threading.Condition()
_running: list[int] = []
_limits: list[Any] = []


@contextmanager
def blas_threads(n_threads: int) -> Iterator[None]:
    """Run a block with a fixed number of BLAS threads; blocks may not be nested.

    The number is the whole process's. Threads that ask for the same number run side by side, and
    the last of them gives the process its own number back; who asks for another one waits.
    """
    with _change:
        _change.wait_for(lambda: set(_running) <= {n_threads})
        if not _running:
            limit = _controller(len(sys.modules)).limit
            _limits.append(_keeper.submit(limit, limits=n_threads, user_api="blas").result())
        _running.append(n_threads)
    try:
        yield
    finally:
        with _change:
            _running.pop()
            if not _running:
                _keeper.submit(_limits.pop().restore_original_limits).result()
                _change.notify_all()


def kernel_environment(kernel: str) -> dict[str, str]:
    """Environment variables with which a new process takes a kernel that `blas_kernel` named."""
    names = {part.split()[-1] for part in kernel.split("; ") if part.startswith("openblas")}
    return {"OPENBLAS_CORETYPE": names.pop()} if len(names) == 1 else {}


def same_libraries(kernel: str, other: str) -> bool:
    """Whether two names of `blas_kernel` differ in the kernel alone, which a process can choose."""
    return [part.rsplit(" ", 1)[0] for part in kernel.split("; ")] == [
        part.rsplit(" ", 1)[0] for part in other.split("; ")
    ]


def with_kernel(name: str, kernel: str) -> str:
    """The name that `blas_kernel` gives where OpenBLAS takes another kernel."""
    parts = [part.rsplit(" ", 1) for part in name.split("; ")]
    return "; ".join(
        f"{library} {kernel if library.startswith('openblas') else own}" for library, own in parts
    )
