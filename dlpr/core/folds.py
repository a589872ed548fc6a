"""What rows fold into: two monoids for ``H_data = G^T G``.

Both start from ``zeros``, take rows by ``update`` and combine by ``add``, both in place. Equal
calls in equal order give equal bits; the split into calls belongs to the numerical plan. Where the
last column of the rows is their target y, the fold holds ``G^T y`` and ``y^T y`` as well: the
weights for every regularizer and baseline need no second pass (JCTC23 SI sec. 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.linalg.blas import dsyrk
from scipy.linalg.lapack import dtpqrt

from dlpr.core.rows import FloatArray, IntArray, strips

QR_PANEL = 48
"""Columns that ``dtpqrt`` eliminates at a time; part of every numerical plan."""
QR_ROWS = 1024
"""Rows that are triangularized at a time: few enough to stay in cache."""


@dataclass
class Gram:
    """``G^T G`` itself: the fast fold, good while eps cond(H) is small (JCTC23 eq. 12-14)."""

    matrix: FloatArray
    """(n_columns, n_columns) Fortran order; only the upper triangle has a meaning"""

    @classmethod
    def zeros(cls, n_columns: int) -> Self:
        """Fold of no rows."""
        return cls(np.zeros((n_columns, n_columns), order="F"))

    def update(self, rows: FloatArray, scale: FloatArray | None = None) -> None:
        """Add ``rows^T diag(scale^2) rows``.

        Parameters
        ----------
        rows : (n, n_columns) float64
            Any strides, read-only or not; in C order and without a scale they are not copied.
        scale : (n,) float64, optional
            Factor of each row.
        """
        for strip in strips(rows, scale):
            self.matrix = dsyrk(1.0, strip.T, beta=1.0, c=self.matrix, overwrite_c=1)

    def add(self, other: Gram, weight: float = 1.0) -> None:
        """Add the fold of other rows, each times the root of a weight."""
        self.matrix += other.matrix if weight == 1.0 else weight * other.matrix

    def select(self, columns: IntArray, scale: FloatArray) -> Gram:
        """Fold of the same rows in some of their columns (k,), ascending, times factors (k,)."""
        chosen = self.matrix[np.ix_(columns, columns)]
        return Gram(np.asfortranarray(chosen * scale * scale[:, None]))

    def shift_target(self, columns: IntArray, amounts: FloatArray) -> None:
        """Take ``columns @ amounts`` off the target in the last column; its square is not kept."""
        for column, amount in zip(columns.tolist(), amounts.tolist(), strict=True):
            if amount:
                self.matrix[: column + 1, -1] -= amount * self.matrix[: column + 1, column]
                self.matrix[column + 1 : -1, -1] -= amount * self.matrix[column, column + 1 : -1]


@dataclass
class Triangle:
    """Upper triangular R with ``R^T R = G^T G``: the fold that works at cond(G) = sqrt(cond(H)).

    The signs of R's diagonal are arbitrary.
    """

    matrix: FloatArray
    """(n_columns, n_columns) Fortran order; zero below the diagonal"""

    @classmethod
    def zeros(cls, n_columns: int) -> Self:
        """Fold of no rows."""
        return cls(np.zeros((n_columns, n_columns), order="F"))

    def update(self, rows: FloatArray, scale: FloatArray | None = None) -> None:
        """Triangularize ``[R; diag(scale) rows]`` in 2 n D^2 operations.

        Parameters
        ----------
        rows : (n, n_columns) float64
            Any strides; copied, `QR_ROWS` at a time.
        scale : (n,) float64, optional
            Factor of each row.
        """
        for start in range(0, len(rows), QR_ROWS):
            piece = np.array(rows[start : start + QR_ROWS], dtype=np.float64, order="F")
            if scale is not None:
                piece *= scale[start : start + QR_ROWS, None]
            self.matrix = absorb(self.matrix, piece, 0)

    def add(self, other: Triangle, weight: float = 1.0) -> None:
        """Triangularize ``[R; sqrt(weight) R_other]`` in 2/3 D^3 operations."""
        rows = other.matrix.copy(order="F")
        if weight != 1.0:
            rows *= np.sqrt(weight)
        self.matrix = absorb(self.matrix, rows, len(rows))

    def select(self, columns: IntArray, scale: FloatArray) -> Triangle:
        """Fold of the same rows in some of their columns (k,), ascending, times factors (k,).

        The first columns of a triangle are triangular already; others are made so.
        """
        k = len(columns)
        if columns[-1] == k - 1:
            return Triangle(np.asfortranarray(self.matrix[:k, :k] * scale))
        fold = Triangle.zeros(k)
        fold.update(self.matrix[: columns[-1] + 1, columns] * scale)
        return fold

    def shift_target(self, columns: IntArray, amounts: FloatArray) -> None:
        """Take ``columns @ amounts`` off the target in the last column."""
        if amounts.any():
            self.matrix[:, -1] -= self.matrix[:, columns] @ amounts


def absorb(triangle: FloatArray, rows: FloatArray, n_triangular: int) -> FloatArray:
    """Triangularize ``[triangle; rows]`` by Householder reflections that keep both shapes.

    Parameters
    ----------
    triangle : (n_columns, n_columns) float64, Fortran order
        Overwritten by the result.
    rows : (n, n_columns) float64, Fortran order
        Overwritten. Its last ``n_triangular`` rows are upper trapezoidal.
    n_triangular : int

    Returns
    -------
    (n_columns, n_columns) float64
    """
    panel = min(QR_PANEL, triangle.shape[1])
    result: FloatArray
    result, _, _, _ = dtpqrt(n_triangular, panel, triangle, rows, overwrite_a=1, overwrite_b=1)
    return result
