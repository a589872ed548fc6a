"""What the machine can do: dense algebra, memory, disk, checksums, featomic alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import ase
import google_crc32c
import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import dsyrk, dtrmm, dtrsm
from scipy.linalg.lapack import dgeqrf, dpotrf

from dlpr.bench.frames import SMALL, SOAP, small_frames
from dlpr.bench.measure import Bench, Row, sample
from dlpr.bench.peers import FeatomicAlone
from dlpr.core.blas import blas_threads
from dlpr.core.factorize import factorize
from dlpr.core.folds import Gram
from dlpr.descriptors import Soap
from dlpr.job.cluster import n_cores
from dlpr.structures.frames import Piece

FloatArray = NDArray[np.float64]
BLOCK_ROWS = 4096
"""Rows of a product whose speed is measured: enough for the asymptote."""
_COPY_NBYTES = 1 << 28
_FILE_NBYTES = 1 << 28
_PIECE = 1 << 22


def measure(bench: Bench) -> Iterator[Row]:
    """All limits, those of dense algebra for every D on one core and on all."""
    for n_columns in bench.sizes.columns:
        for threads in sorted({1, n_cores()}):
            yield from _algebra(n_columns, threads, bench.sizes.repeats)
        yield _factorization(n_columns)
    for threads in sorted({1, n_cores()}):
        yield _copy(threads, bench.sizes.repeats)
        yield _checksum(threads, bench.sizes.repeats)
    yield from _disk(bench.scratch, bench.sizes.repeats)
    yield from _features(bench)


def _rate(name: str, unit: str, amount: float, seconds: list[float], **size: object) -> Row:
    return Row(name, amount / median(seconds), unit, dict(size), samples={"seconds": seconds})


def _algebra(n_columns: int, threads: int, repeats: int) -> Iterator[Row]:
    """GF/s of the operations behind fold, factorization and rigidity."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((BLOCK_ROWS, n_columns))
    square = np.zeros((n_columns, n_columns), order="F")
    hessian = np.asfortranarray(dsyrk(1.0, rows.T) + n_columns * np.eye(n_columns))
    triangle = dpotrf(hessian, lower=0)[0]
    tall = np.asfortranarray(rng.standard_normal((2 * n_columns, n_columns)))
    product = BLOCK_ROWS * n_columns**2
    work: dict[str, tuple[float, Callable[[], object]]] = {
        "dsyrk": (product, lambda: dsyrk(1.0, rows.T, beta=1.0, c=square, overwrite_c=1)),
        "dtrsm": (product, lambda: dtrsm(1.0, triangle, rows.T, trans_a=1, overwrite_b=1)),
        "dtrmm": (product, lambda: dtrmm(1e-3, triangle, rows.T, trans_a=1, overwrite_b=1)),
        "dpotrf": (n_columns**3 / 3, lambda: dpotrf(hessian, lower=0)),
        "dgeqrf": (10 / 3 * n_columns**3, lambda: dgeqrf(tall, lwork=64 * n_columns)),
    }
    with blas_threads(threads):
        for name, (flops, function) in work.items():
            rows[:] = 1.0  # solving in place again and again would end in denormal numbers
            seconds = sample(function, repeats)
            yield _rate(name, "GF/s", 1e-9 * flops, seconds, columns=n_columns, threads=threads)


def _factorization(n_columns: int) -> Row:
    """Seconds from a Gram matrix to the factor with its stated accuracy, all cores."""
    rows = np.random.default_rng(0).standard_normal((2 * n_columns, n_columns))
    gram = Gram.zeros(n_columns)
    with blas_threads(n_cores()):
        gram.update(rows)
        seconds = sample(lambda: factorize(gram, 1e-3, len(rows), "cholesky"), 1)
    size = {"columns": n_columns, "threads": n_cores()}
    return Row("factorize", median(seconds), "s", size, samples={"seconds": seconds})


def _on_threads(function: Callable[[int], object], threads: int) -> Callable[[], object]:
    """Do ``function(k)`` for every k on a thread of its own."""
    pool = ThreadPoolExecutor(threads)
    return lambda: list(pool.map(function, range(threads)))


def _copy(threads: int, repeats: int) -> Row:
    source = np.ones((threads, _COPY_NBYTES // 8 // threads))
    target = np.zeros_like(source)
    work = _on_threads(lambda k: np.copyto(target[k], source[k]), threads)
    return _rate(
        "memory copy", "GB/s", 1e-9 * source.nbytes, sample(work, repeats), threads=threads
    )


def _checksum(threads: int, repeats: int) -> Row:
    """CRC-32C, which every chunk carries."""
    data = [bytes(_COPY_NBYTES // 4) for _ in range(threads)]
    work = _on_threads(lambda k: google_crc32c.value(data[k]), threads)
    nbytes = len(data[0]) * threads
    return _rate("crc32c", "GB/s", 1e-9 * nbytes, sample(work, repeats), threads=threads)


def _disk(scratch: Path, repeats: int) -> Iterator[Row]:
    """One file written and made durable, read from the disk, read from the page cache."""
    path = scratch / "disk.bin"
    data = np.random.default_rng(0).bytes(_PIECE)
    buffer = bytearray(_PIECE)

    def write() -> None:
        with path.open("wb", buffering=0) as file:
            for _ in range(_FILE_NBYTES // _PIECE):
                file.write(data)
            os.fsync(file.fileno())

    def read(cold: bool) -> None:
        with path.open("rb", buffering=0) as file:
            if cold and hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while file.readinto(buffer):
                pass

    amount = 1e-9 * _FILE_NBYTES
    yield _rate("disk write", "GB/s", amount, sample(write, repeats))
    yield _rate("disk read", "GB/s", amount, sample(lambda: read(True), repeats))
    yield _rate("page cache read", "GB/s", amount, sample(lambda: read(False), repeats))
    path.unlink()


def _features(bench: Bench) -> Iterator[Row]:
    """Milliseconds per environment: of all cores with featomic alone, of one with dlpr."""
    frames = small_frames(bench.sizes.frames)
    for max_angular, max_radial in ((6, 5), (12, 9)):
        basis = {**SOAP["basis"], "max_angular": max_angular}
        basis["radial"] = {**basis["radial"], "max_radial": max_radial}
        with FeatomicAlone({**SOAP, "basis": basis}, frames) as alone:
            seconds = [alone.seconds() for _ in range(bench.sizes.repeats)]
        n_columns = (max_angular + 1) * (max_radial + 1) * (max_radial + 2) // 2
        size = {"columns": n_columns, "threads": n_cores()}
        value = 1e3 * median(seconds) / (SMALL * len(frames))
        yield Row("featomic alone", value, "ms/environment", size, samples={"seconds": seconds})
        calculator, pieces = Soap({**SOAP, "basis": basis}, [6]), [_piece(one) for one in frames]
        seconds = sample(lambda c=calculator, p=pieces: c.compute(p), bench.sizes.repeats)  # type: ignore[misc]
        value = 1e3 * median(seconds) / (SMALL * len(frames))
        size = {"columns": n_columns, "threads": 1}
        yield Row("SOAP", value, "ms/environment", size, samples={"seconds": seconds})


def _piece(atoms: ase.Atoms) -> Piece:
    return Piece(atoms.positions, atoms.numbers.astype(np.uint8), np.array(atoms.cell), atoms.pbc)
