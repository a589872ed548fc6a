"""The factored Hessian, which turns rows g into rigidities ``R(g) = 1/(g^T H^-1 g)`` (FD24 eq. 2).

A row that lives in one block of columns (a component, the weights of one central species) needs
``(H^-1)_bb`` alone: ``factor.block(columns)`` takes rows of that block only and gives their
rigidity against the *full* H (FD24 sec. 5). A row of zeros has rigidity ``inf``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import svdvals
from scipy.linalg.blas import dtrmm, dtrsm
from scipy.linalg.lapack import dtpmqrt, dtpqrt

from dlpr.core.folds import QR_PANEL, Triangle
from dlpr.core.rows import FloatArray, square_norm
from dlpr.core.substitution import Substitution
from dlpr.errors import NumericsError

EPS = float(np.finfo(np.float64).eps)
SPAN_RTOL = float(np.sqrt(EPS))
"""Part of a row that may lie outside the rows of the data before mu = 0 calls it unconstrained."""
SOLVE_ROWS = 512
"""Rows that are solved at a time, in one work buffer."""
RESIDUAL_ERROR = 40.0
"""Error of ``|g|^2 - |V^T g|^2`` at most, in units of eps |g|^2"""
RESIDUAL_RTOL = 1e-9
"""Relative error of a rigidity up to which that difference may stand for the residual's norm."""


class Factor(Protocol):
    """A factored Hessian, whatever its form."""

    def rigidity(self, rows: FloatArray) -> FloatArray:
        """``1/(g^T H^-1 g)`` of rows (n, n_columns), which stay as they are: (n,)."""
        ...

    def root_solve(self, vectors: FloatArray) -> FloatArray:
        """``C v`` of (n_columns, k) vectors, with ``C C^T = H^-1``; of all columns alone."""
        ...

    def whiten(self, rows: FloatArray) -> FloatArray:
        """``z = C^T g`` of rows (n, n_columns), with the C of `root_solve`: (n, k).

        Products of whitened rows are ``z.z' = g^T H^-1 g'``, if one factor has whitened both.
        """
        ...

    def block(self, columns: slice) -> Factor:
        """Return the same H for rows that are given in ``columns`` and zero elsewhere."""
        ...


@dataclass(frozen=True)
class TriangularFactor:
    """``H = R^T R``."""

    triangle: FloatArray
    """(n_columns, n_columns) R, upper triangular, Fortran order"""

    @cached_property
    def _substitution(self) -> Substitution:
        """R once more, in pieces: n_columns^2/2 numbers, made when first needed."""
        return Substitution(self.triangle)

    def rigidity(self, rows: FloatArray) -> FloatArray:
        """Return ``1/|R^-T g|^2`` of each row.

        Parameters
        ----------
        rows : (n, n_columns) float64
            Any strides, read-only or not.

        Returns
        -------
        (n,) float64
        """
        return reciprocal(self._substitution.square_norm(rows))

    def whiten(self, rows: FloatArray) -> FloatArray:
        """``R^-T g`` of rows (n, n_columns), of any strides: (n, n_columns)."""
        return self._substitution.solve(rows)

    def product(self, vectors: FloatArray) -> FloatArray:
        """``H v`` of (n_columns, k) vectors."""
        image = dtrmm(1.0, self.triangle, vectors)
        product: FloatArray = dtrmm(1.0, self.triangle, image, trans_a=1, overwrite_b=1)
        return product

    def solve(self, vectors: FloatArray) -> FloatArray:
        """``H^-1 v`` of (n_columns, k) vectors."""
        half = dtrsm(1.0, self.triangle, vectors, trans_a=1)
        solved: FloatArray = dtrsm(1.0, self.triangle, half, overwrite_b=1)
        return solved

    def root_solve(self, vectors: FloatArray) -> FloatArray:
        """``R^-1 v`` of (n_columns, k) vectors: of unit covariance, it gets that of ``H^-1``."""
        solved: FloatArray = dtrsm(1.0, self.triangle, vectors)
        return solved

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

    def rigidity(self, rows: FloatArray) -> FloatArray:
        """Return ``1/(sum_k (v_k.g)^2/eigenvalue_k + |g - V V^T g|^2/mu)`` of each row.

        The second norm is the difference ``|g|^2 - |V^T g|^2``, of 2 r D operations, where that
        keeps a relative error of R below `RESIDUAL_RTOL`. It is off by `RESIDUAL_ERROR` eps |g|^2
        at most, which is that part of R times its prior ratio ``R |g|^2/mu``. Rows of a larger
        prior ratio get the norm of the residual itself, for another 2 r D operations.

        Parameters
        ----------
        rows : (n, n_columns) float64
            With the columns of ``self.columns`` only; any strides, read-only or not.

        Returns
        -------
        (n,) float64
        """
        rigidity = np.empty(len(rows))
        for start in range(0, len(rows), SOLVE_ROWS):
            strip = slice(start, start + SOLVE_ROWS)
            rigidity[strip] = self._rigidity(rows[strip])
        return rigidity

    def _rigidity(self, rows: FloatArray) -> FloatArray:
        projection = rows @ self.basis[self.columns]
        inside: FloatArray = np.einsum("ij,ij->i", projection, projection / self.eigenvalue)
        n_columns, rank = self.basis.shape
        if rank == n_columns:
            return reciprocal(inside)
        square = square_norm(rows)
        outside = np.maximum(square - square_norm(projection), 0.0)
        doubt = RESIDUAL_ERROR * EPS * square
        if self.mu > 0.0:
            unsure = doubt > RESIDUAL_RTOL * (self.mu * inside + outside)
        else:
            unsure = outside <= SPAN_RTOL**2 * square + doubt
        if unsure.any():
            outside[unsure] = self._outside(rows[unsure], projection[unsure])
        if self.mu > 0.0:
            return reciprocal(inside + outside / self.mu)
        return np.where(outside > SPAN_RTOL**2 * square, 0.0, reciprocal(inside))

    def _outside(self, rows: FloatArray, projection: FloatArray) -> FloatArray:
        """``|g - V V^T g|^2``, of the residual itself."""
        residual = projection @ self.basis.T
        residual[:, self.columns] -= rows
        return square_norm(residual)

    def solve(self, vectors: FloatArray) -> FloatArray:
        """``H^-1 v`` of (n_columns, k) vectors; for mu = 0 of their part in the span of V."""
        inside = self.basis.T @ vectors
        solved: FloatArray = self.basis @ (inside / self.eigenvalue[:, None])
        if self.mu > 0.0:
            solved += (vectors - self.basis @ inside) / self.mu
        return solved

    def root_solve(self, vectors: FloatArray) -> FloatArray:
        """``H^-1/2 v`` of (n_columns, k) vectors: of unit covariance, it gets that of ``H^-1``.

        Raises
        ------
        NumericsError
            If mu = 0 leaves directions free.
        """
        n_columns, rank = self.basis.shape
        if self.mu == 0.0 and rank < n_columns:
            raise NumericsError(
                f"H has {n_columns} columns and rank {rank}: with mu = 0 nothing bounds the "
                f"posterior in {n_columns - rank} directions; take a regularizer above 0"
            )
        inside = self.basis.T @ vectors
        solved: FloatArray = self.basis @ (inside / np.sqrt(self.eigenvalue)[:, None])
        if rank < n_columns:
            solved += (vectors - self.basis @ inside) / np.sqrt(self.mu)
        return solved

    def whiten(self, rows: FloatArray) -> FloatArray:
        """``H^-1/2 g`` of rows with the columns of ``self.columns`` only: (n, n_columns of H).

        Raises
        ------
        NumericsError
            As `root_solve`.
        """
        whole = np.zeros((len(rows), len(self.basis)))
        whole[:, self.columns] = rows
        return self.root_solve(whole.T).T

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


HeldFactor = TriangularFactor | SpectralFactor
"""A factor that one process holds, and a store can keep."""


def load_factor(arrays: Mapping[str, NDArray[np.generic]]) -> HeldFactor:
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


def reciprocal(variance: FloatArray) -> FloatArray:
    """Rigidities of variances: inf for 0."""
    with np.errstate(divide="ignore"):
        rigidity: FloatArray = 1.0 / variance
    return rigidity
