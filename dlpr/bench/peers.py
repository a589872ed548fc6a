"""Who dlpr is measured against: featomic and BLAS alone, scikit-matter, dask.array, metatrain."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ase
import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import dsyrk, dtrmm, dtrsm

from dlpr.bench.measure import Json, timed
from dlpr.core.blas import blas_threads
from dlpr.job.cluster import n_cores

FloatArray = NDArray[np.float64]
_BATCH_FRAMES = 5
"""Frames of 200 atoms in one call of featomic: more are no quicker."""


class FeatomicAlone:
    """featomic on all cores: one process on each, a share of the frames for each.

    That is quicker than featomic's own threads in one process. Only the distinct columns are
    computed.

    Parameters
    ----------
    hypers : dict
    frames : sequence of ase.Atoms
    """

    def __init__(self, hypers: Json, frames: Sequence[ase.Atoms]) -> None:
        self._hypers, self._frames = hypers, frames

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("spawn")
        before = os.environ.get("RAYON_NUM_THREADS")
        os.environ["RAYON_NUM_THREADS"] = "1"
        try:
            self._processes, self._pipes = [], []
            for k in range(n_cores()):
                pipe, other = context.Pipe()
                share = self._frames[k :: n_cores()]
                process = context.Process(
                    target=_serve_featomic, args=(other, self._hypers, share), daemon=True
                )
                process.start()
                self._processes.append(process)
                self._pipes.append(pipe)
        finally:
            os.environ.pop("RAYON_NUM_THREADS")
            if before is not None:
                os.environ["RAYON_NUM_THREADS"] = before
        self.seconds()
        return self

    def seconds(self) -> float:
        """Compute the features of all frames once."""
        return timed(self._compute)

    def _compute(self) -> None:
        for pipe in self._pipes:
            pipe.send(None)
        for pipe in self._pipes:
            pipe.recv()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._processes:
            process.terminate()
            process.join()


def _serve_featomic(pipe: Any, hypers: Json, frames: Sequence[ase.Atoms]) -> None:
    featomic, metatensor = import_module("featomic"), import_module("metatensor")
    calculator = featomic.SoapPowerSpectrum(**hypers)
    n_radial = hypers["basis"]["radial"]["max_radial"] + 1
    distinct = [
        (angular, n_1, n_2)
        for angular in range(hypers["basis"]["max_angular"] + 1)
        for n_1 in range(n_radial)
        for n_2 in range(n_1, n_radial)
    ]
    columns = metatensor.Labels(["l", "n_1", "n_2"], np.array(distinct, np.int32))
    while True:
        pipe.recv()
        for k in range(0, len(frames), _BATCH_FRAMES):
            calculator.compute(frames[k : k + _BATCH_FRAMES], selected_properties=columns)
        pipe.send(None)


def scikit_matter() -> Any:
    """Its function ``local_prediction_rigidity(X_train, X_test, alpha)``.

    Raises
    ------
    ImportError
    """
    return import_module("skmatter.metrics").local_prediction_rigidity


def fold_in_memory(rows: FloatArray, matrix: FloatArray) -> float:
    """`dsyrk` of all rows at once, on all cores."""
    with blas_threads(n_cores()):
        return timed(lambda: dsyrk(1.0, rows.T, beta=0.0, c=matrix, overwrite_c=1))


def solve_in_memory(features: FloatArray, triangle: FloatArray) -> float:
    """``R^-T x`` of all environments at once, on all cores."""
    return _triangular(dtrsm, features, triangle)


def multiply_in_memory(features: FloatArray, inverse: FloatArray) -> float:
    """``R^-T x`` by the inverse of R, which nobody should use and which is quicker."""
    return _triangular(dtrmm, features, inverse)


def _triangular(function: Any, features: FloatArray, triangle: FloatArray) -> float:
    """Seconds in the blocks that are quickest, without the copy that keeps the features."""
    block = np.empty((min(len(features), 8192), features.shape[1]))
    seconds = 0.0
    with blas_threads(n_cores()):
        for start in range(0, len(features), len(block)):
            part = block[: len(features) - start]
            part[:] = features[start : start + len(part)]
            work = partial(function, 1.0, triangle, part.T, trans_a=1, overwrite_b=1)
            seconds += timed(work)
    return seconds


def naive_dask(client: Any, rows: Path, features: Path, mu: float) -> tuple[float, FloatArray]:
    """``X.T @ X``, ``inv``, ``1 / sum(x H^-1 x)`` as one writes them with dask.array.

    Parameters
    ----------
    client : distributed.Client
    rows, features : Path
        Stacks of `write_stack`.
    mu : float

    Returns
    -------
    seconds : float
    lpr : (n,) float64
    """
    import dask.array as da

    start = time.perf_counter()
    x_train: Any = da.from_npy_stack(str(rows))
    x_test: Any = da.from_npy_stack(str(features))
    hessian = x_train.T @ x_train + mu * da.eye(x_train.shape[1])
    inverse = da.linalg.inv(hessian.rechunk(hessian.shape))
    lpr = 1.0 / ((x_test @ inverse) * x_test).sum(axis=1)
    found = np.asarray(client.gather(client.compute(lpr)))
    return time.perf_counter() - start, found


def write_stack(folder: Path, array: FloatArray, chunk_rows: int) -> Path:
    """Write an array for `naive_dask`, in chunks of rows."""
    import dask.array as da

    chunked = da.from_array(array, chunks=(chunk_rows, -1))
    da.to_npy_stack(str(folder), chunked)
    return folder


def metatrain_way(rows: FloatArray, features: FloatArray, mu: float) -> FloatArray:
    """LPR from a Hessian that is accumulated and inverted in float32, as metatrain's llpr does.

    metatrain accumulates in the dtype of its model, which is float32 unless one asks otherwise,
    and inverts the regularized sum.
    """
    matrix = np.zeros((rows.shape[1],) * 2, np.float32)
    for start in range(0, len(rows), 256):
        block = rows[start : start + 256].astype(np.float32)
        matrix += block.T @ block
    matrix[np.diag_indices_from(matrix)] += np.float32(mu)
    x = features.astype(np.float32)
    lpr: FloatArray = 1.0 / np.einsum("ij,ij->i", x @ np.linalg.inv(matrix), x).astype(np.float64)
    return lpr


def naive_inverse(rows: FloatArray, features: FloatArray, mu: float) -> FloatArray:
    """LPR by ``inv`` in float64."""
    inverse = np.linalg.inv(rows.T @ rows + mu * np.eye(rows.shape[1]))
    lpr: FloatArray = 1.0 / np.einsum("ij,ij->i", features @ inverse, features)
    return lpr
