"""What rows fold into: two monoids for ``H_data = G^T G``, and the sums kept beside them.

All three start from ``zeros``, take rows by ``update`` and combine by ``add``, both in place.
Equal calls in equal order give equal bits; the split into calls belongs to the numerical plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.linalg.blas import dsyrk
from scipy.linalg.lapack import dtpqrt

from dlpr.core.rows import FloatArray, strips

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

    def add(self, other: Gram) -> None:
        """Add the fold of other rows."""
        self.matrix += other.matrix


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

    def add(self, other: Triangle) -> None:
        """Triangularize ``[R; R_other]`` in 2/3 D^3 operations."""
        self.matrix = absorb(self.matrix, other.matrix.copy(order="F"), len(other.matrix))


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


@dataclass
class Moments:
    """Sums of the same pass that give weights, training errors and baselines.

    With ``Z = [y, composition]``: the weights for any energy baseline ``y - composition b`` are
    ``H^-1 G^T (y - composition b)``, and their training error needs no second pass (JCTC23 SI
    sec. 2). Rows, y and composition are those of the loss: convention and weights are in them.
    """

    targets: FloatArray
    """(n_columns, 1 + n_species) ``G^T Z`` over labelled rows, those whose y is not NaN"""
    products: FloatArray
    """(1 + n_species, 1 + n_species) ``Z^T Z`` over labelled rows; ``products[0, 0]`` is y^T y"""
    n_rows: int = 0
    n_labelled: int = 0

    @classmethod
    def zeros(cls, n_columns: int, n_species: int) -> Self:
        """Sums over nothing."""
        return cls(np.zeros((n_columns, 1 + n_species)), np.zeros((1 + n_species, 1 + n_species)))

    def update_rows(self, rows: FloatArray, y: FloatArray, composition: FloatArray) -> None:
        """Add rows (n, n_columns), y (n,) with NaN where unknown, composition (n, n_species)."""
        labelled = ~np.isnan(y)
        known = np.column_stack([y, composition])[labelled]
        self.targets += (rows if labelled.all() else rows[labelled]).T @ known
        self.products += known.T @ known
        self.n_rows += len(rows)
        self.n_labelled += len(known)

    def add(self, other: Moments) -> None:
        """Add the sums over other rows and environments."""
        self.targets += other.targets
        self.products += other.products
        self.n_rows += other.n_rows
        self.n_labelled += other.n_labelled
