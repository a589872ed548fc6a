"""The factored Hessian, which turns rows g into rigidities ``R(g) = 1/(g^T H^-1 g)`` (FD24 eq. 2).

A row that lives in one block of columns (a component, the weights of one central species) needs
``(H^-1)_bb`` alone: ``factor.block(columns)`` takes rows of that block only and gives their
rigidity against the *full* H (FD24 sec. 5). A row of zeros has rigidity ``inf``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import svdvals
from scipy.linalg.blas import dtrsm
from scipy.linalg.lapack import dtpmqrt, dtpqrt

from dlpr.core.folds import QR_PANEL, Triangle
from dlpr.core.rows import FloatArray

SPAN_RTOL = float(np.sqrt(np.finfo(np.float64).eps))
"""Part of a row that may lie outside the rows of the data before mu = 0 calls it unconstrained."""


@dataclass(frozen=True)
class TriangularFactor:
    """``H = R^T R``."""

    triangle: FloatArray
    """(n_columns, n_columns) R, upper triangular, Fortran order"""

    def rigidity(self, rows: FloatArray, overwrite: bool = False) -> FloatArray:
        """Return ``1/|R^-T g|^2`` of each row.

        Parameters
        ----------
        rows : (n, n_columns) float64
        overwrite : bool
            Solve in the memory of ``rows`` (if they are in C order) instead of a copy.

        Returns
        -------
        (n,) float64
        """
        if not rows.size:
            return np.full(len(rows), np.inf)
        columns = (rows if overwrite else np.array(rows, dtype=np.float64, order="C")).T
        solved = dtrsm(1.0, self.triangle, columns, trans_a=1, overwrite_b=1)
        return _reciprocal(_square_norm(solved.T))

    def block(self, columns: slice) -> TriangularFactor:
        """Return the factor of ``((H^-1)_bb)^-1``, the Schur complement of all other columns.

        With columns ordered (before, after, b), those before stay triangular. Reflections that
        keep R_after triangular clear the b rows under it; what they leave in (b, b) is
        triangularized.
        """
        start, stop, _ = columns.indices(len(self.triangle))
        inner = self.triangle[start:stop, start:stop].copy(order="F")
        n_after = len(self.triangle) - stop
        if not n_after or start == stop:
            return TriangularFactor(inner)
        after = self.triangle[stop:, stop:].copy(order="F")
        corner = self.triangle[start:stop, stop:].copy(order="F")
        panel = min(QR_PANEL, n_after)
        _, reflectors, t, _ = dtpqrt(0, panel, after, corner, overwrite_a=1, overwrite_b=1)
        top = np.zeros((n_after, stop - start), order="F")
        _, inner, _ = dtpmqrt(
            0, reflectors, t, top, inner, side="L", trans="T", overwrite_a=1, overwrite_b=1
        )
        fold = Triangle.zeros(stop - start)
        fold.update(inner)
        return TriangularFactor(fold.matrix)

    def eigenvalues(self) -> FloatArray:
        """All eigenvalues of H in descending order, (n_columns,)."""
        squares: FloatArray = np.square(svdvals(self.triangle))
        return squares

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Plain arrays for a store; `load_factor` reads them back."""
        return {"triangle": self.triangle}


@dataclass(frozen=True)
class SpectralFactor:
    """``H = V diag(eigenvalue) V^T + mu (1 - V V^T)``, or a block of columns of it.

    mu = 0 is allowed: the rigidity of a row is then 0 if more than `SPAN_RTOL` of its length lies
    outside the span of V (nothing constrains it), else the value of its projection.
    """

    basis: FloatArray
    """(n_columns, r) V, orthonormal columns"""
    eigenvalue: FloatArray
    """(r,) eigenvalues of H, mu included, positive"""
    mu: float
    columns: slice = field(default_factory=lambda: slice(None))
    """columns that rows are given in; a row is zero in all others"""

    def rigidity(self, rows: FloatArray, overwrite: bool = False) -> FloatArray:
        """Return ``1/(sum_k (v_k.g)^2/eigenvalue_k + |g - V V^T g|^2/mu)`` of each row.

        The second norm is taken of the residual itself: as a difference of two norms it would
        lose the digits that a small mu makes decisive.

        Parameters
        ----------
        rows : (n, n_columns) float64
            With the columns of ``self.columns`` only.
        overwrite : bool
            Taken for the sake of `TriangularFactor.rigidity`; rows stay as they are.

        Returns
        -------
        (n,) float64
        """
        projection = rows @ self.basis[self.columns]
        variance = _square_norm(projection / np.sqrt(self.eigenvalue))
        n_columns, rank = self.basis.shape
        if rank == n_columns:
            return _reciprocal(variance)
        residual = projection @ -self.basis.T
        residual[:, self.columns] += rows
        outside = _square_norm(residual)
        if self.mu > 0.0:
            return _reciprocal(variance + outside / self.mu)
        unconstrained = outside > SPAN_RTOL**2 * _square_norm(rows)
        return np.where(unconstrained, 0.0, _reciprocal(variance))

    def block(self, columns: slice) -> SpectralFactor:
        """Return the same H for rows that are given in ``columns`` and zero elsewhere."""
        start, stop, _ = columns.indices(len(self.basis))
        return SpectralFactor(self.basis, self.eigenvalue, self.mu, slice(start, stop))

    def eigenvalues(self) -> FloatArray:
        """All eigenvalues of H in descending order, (n_columns,)."""
        n_columns, rank = self.basis.shape
        every = np.concatenate([self.eigenvalue, np.full(n_columns - rank, self.mu)])
        return np.sort(every)[::-1]

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Plain arrays for a store; `load_factor` reads them back."""
        start, stop, _ = self.columns.indices(len(self.basis))
        return {
            "basis": self.basis,
            "eigenvalue": self.eigenvalue,
            "mu": np.array(self.mu),
            "columns": np.array([start, stop]),
        }


Factor = TriangularFactor | SpectralFactor


def load_factor(arrays: Mapping[str, NDArray[np.generic]]) -> Factor:
    """Rebuild a factor from what its ``to_arrays`` gave."""
    if "triangle" in arrays:
        return TriangularFactor(np.asfortranarray(arrays["triangle"], dtype=np.float64))
    start, stop = (int(edge) for edge in arrays["columns"])
    return SpectralFactor(
        np.asarray(arrays["basis"], dtype=np.float64),
        np.asarray(arrays["eigenvalue"], dtype=np.float64),
        float(arrays["mu"]),
        slice(start, stop),
    )


def _square_norm(rows: FloatArray) -> FloatArray:
    norms: FloatArray = np.einsum("ij,ij->i", rows, rows)
    return norms


def _reciprocal(variance: FloatArray) -> FloatArray:
    with np.errstate(divide="ignore"):
        rigidity: FloatArray = 1.0 / variance
    return rigidity
