"""What a condition number and a count of eigenvalues cost: little more than a factorization."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from scipy.linalg import eigvalsh, qr
from scipy.linalg.lapack import dsytrf, dsytrf_lwork

from dlpr.core.rows import FloatArray

KRYLOV_VECTORS = 8
"""Vectors that an operator is applied to at once."""
KRYLOV_STEPS = 5
"""Applications of an operator; the largest eigenvalue is then a few percent low at most."""


def largest_eigenvalue(apply: Callable[[FloatArray], FloatArray], n_columns: int) -> float:
    """Largest eigenvalue of a symmetric positive operator, from below, by block Lanczos.

    The operator is applied `KRYLOV_STEPS` times to `KRYLOV_VECTORS` vectors, the first of them
    random with a fixed seed. The basis is made orthogonal anew in every step, and the value is that
    of the operator within it (Rayleigh and Ritz).

    Parameters
    ----------
    apply : callable
        Takes and returns (n_columns, k) float64.
    n_columns : int
    """
    width = min(KRYLOV_VECTORS, n_columns)
    basis: FloatArray = np.empty((n_columns, 0))
    images = np.empty((n_columns, 0))
    block: FloatArray = np.random.default_rng(0).normal(size=(n_columns, width))
    for _ in range(min(KRYLOV_STEPS, n_columns // width)):
        basis = np.asarray(qr(np.hstack([basis, block]), mode="economic")[0], np.float64)
        block = apply(basis[:, -width:])
        images = np.hstack([images, block])
    return float(eigvalsh(0.5 * (basis.T @ images + images.T @ basis))[-1])


class Operator(Protocol):
    """A factored Hessian as a linear map."""

    def product(self, vectors: FloatArray) -> FloatArray:
        """``H v`` of (n_columns, k) vectors."""
        ...

    def solve(self, vectors: FloatArray) -> FloatArray:
        """``H^-1 v`` of (n_columns, k) vectors."""
        ...


def extreme_eigenvalues(hessian: Operator, n_columns: int, mu: float) -> tuple[float, float]:
    """Largest and smallest eigenvalue of H, the second not below mu."""
    largest = largest_eigenvalue(hessian.product, n_columns)
    return largest, max(1.0 / largest_eigenvalue(hessian.solve, n_columns), mu)


def n_above(matrix: FloatArray, bound: float) -> int:
    """Count the eigenvalues of a symmetric matrix above a bound.

    The count of positive eigenvalues of ``matrix - bound 1`` is that of its pivots in
    ``L D L^T`` (Sylvester's law of inertia); a pivot of 2 x 2 has one of either sign (Bunch and
    Kaufman). Eigenvalues as near to the bound as rounding, eps times the largest, may be
    miscounted, as they may by computing them.

    Parameters
    ----------
    matrix : (n, n) float64, Fortran order
        Upper triangle; stays as it is.
    bound : float
    """
    shifted = matrix.copy(order="F")
    shifted[np.diag_indices_from(shifted)] -= bound
    work = int(dsytrf_lwork(len(shifted), lower=0)[0])
    pivots, index, _ = dsytrf(shifted, lower=0, lwork=work, overwrite_a=1)
    single = index > 0
    return int(np.count_nonzero(pivots.diagonal()[single] > 0.0)) + int((~single).sum()) // 2
