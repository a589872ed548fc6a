"""Tiles of a Hessian that no worker can hold: accumulated, and factorized one by one.

Only tiles on and above the diagonal exist. A tile is an array (columns of tile i, columns of tile
j) in Fortran order; other orders are understood, at the price of a copy where they are written to.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from scipy.linalg.blas import dgemm, dsyrk, dtrsm
from scipy.linalg.lapack import dpotrf

from dlpr.core.rows import FloatArray
from dlpr.errors import NumericsError

TILE_COLUMNS = 4096
"""Columns of a tile at most (128 MiB)"""


Columns = slice


@dataclass(frozen=True)
class Tiling:
    """Columns of a model cut into tiles."""

    edges: tuple[int, ...]
    """(n_tiles + 1,) first column of each tile, and the number of columns"""

    @classmethod
    def of_blocks(cls, widths: Sequence[int], most: int = TILE_COLUMNS) -> Tiling:
        """Cut blocks of columns into as few tiles as ``most`` columns allow, of near equal width.

        No tile crosses the edge of a block; an empty block has none.
        """
        tiles = [
            width // n + (k < width % n)
            for width in widths
            for n in [-(-width // most)]
            for k in range(n)
        ]
        return cls((0, *accumulate(tiles)))

    @property
    def n_tiles(self) -> int:
        """Tiles along one side of the Hessian."""
        return len(self.edges) - 1

    @property
    def n_columns(self) -> int:
        """Columns of the model."""
        return self.edges[-1]

    @property
    def widths(self) -> tuple[int, ...]:
        """Columns of each tile."""
        return tuple(stop - start for start, stop in pairwise(self.edges))

    def slice(self, tile: int) -> Columns:
        """Columns of one tile."""
        return slice(self.edges[tile], self.edges[tile + 1])

    def pairs(self) -> list[tuple[int, int]]:
        """Tiles ``(i, j)`` with i <= j, row by row."""
        return [(i, j) for i in range(self.n_tiles) for j in range(i, self.n_tiles)]

    def touched(self, columns: Columns) -> range:
        """Tiles that hold some of the columns."""
        start, stop, _ = columns.indices(self.n_columns)
        if start >= stop:
            return range(0)
        return range(bisect_right(self.edges, start) - 1, bisect_left(self.edges, stop))

    def ending_with(self, columns: Columns) -> tuple[int, ...]:
        """Order of elimination in which the tiles of a block come last."""
        last = self.touched(columns)
        return (*(i for i in range(self.n_tiles) if i not in last), *last)


def fold_tile(
    tile: FloatArray, rows_i: Iterable[FloatArray], rows_j: Iterable[FloatArray] | None = None
) -> FloatArray:
    """Add ``rows_i^T rows_j`` to a tile in place, and return it.

    Parameters
    ----------
    tile : (n_columns_i, n_columns_j) float64, Fortran order
    rows_i, rows_j : iterables of (n, n_columns_i), (n, n_columns_j) float64 in C order
        Strips of the same rows in the columns of each tile. Without ``rows_j`` the tile is on the
        diagonal, and only its upper triangle has a meaning.
    """
    if rows_j is None:
        for strip in rows_i:
            tile = dsyrk(1.0, strip.T, beta=1.0, c=tile, overwrite_c=1)
        return tile
    for left, right in zip(rows_i, rows_j, strict=True):
        tile = dgemm(1.0, left.T, right.T, beta=1.0, c=tile, trans_b=1, overwrite_c=1)
    return tile


def diagonal_tile(
    hessian: FloatArray, above: Iterable[FloatArray], mu: float, first_column: int = 0
) -> FloatArray:
    """Tile R_ii of ``R^T R = H``: Cholesky of ``H_ii + mu 1 - sum_k R_ki^T R_ki``.

    Parameters
    ----------
    hessian : (n_columns_i, n_columns_i) float64
        ``G_i^T G_i``, upper triangle; overwritten if it can be.
    above : iterable of (n_columns_k, n_columns_i) float64
        R_ki of all tiles k eliminated before i; taken one at a time.
    mu : float
        Regularizer.
    first_column : int
        Number of columns eliminated before, for the message.

    Raises
    ------
    NumericsError
        If H is not positive definite in double precision.
    """
    tile: FloatArray = np.require(hessian, np.float64, ["F", "W"])
    tile[np.diag_indices_from(tile)] += mu
    scale = float(tile.diagonal().max(initial=0.0))
    for r_ki in above:
        is_fortran = r_ki.flags.f_contiguous
        factor = r_ki if is_fortran else r_ki.T
        tile = dsyrk(-1.0, factor, beta=1.0, c=tile, trans=int(is_fortran), overwrite_c=1)
    tile, info = dpotrf(tile, lower=0, clean=1, overwrite_a=1)
    if info:
        needed = 100.0 * np.finfo(np.float64).eps * scale
        raise NumericsError(
            f"Cholesky stopped at column {first_column + info}: H is not positive definite in "
            f"double precision (mu {mu:.3g}, largest diagonal element here {scale:.3g}); use mu of "
            f"at least {needed:.1e}, or give workers memory for the whole Hessian and use "
            "solver: qr"
        )
    return tile


def off_tile(
    hessian: FloatArray, diagonal: FloatArray, above: Iterable[tuple[FloatArray, FloatArray]]
) -> FloatArray:
    """Tile R_ij, i before j: ``R_ii^-T (H_ij - sum_k R_ki^T R_kj)``.

    Parameters
    ----------
    hessian : (n_columns_i, n_columns_j) float64
        ``G_i^T G_j``; overwritten if it can be.
    diagonal : (n_columns_i, n_columns_i) float64
        R_ii.
    above : iterable of pairs of tiles
        R_ki and R_kj of all tiles k eliminated before i; taken one pair at a time.
    """
    tile = np.require(hessian, np.float64, ["F", "W"])
    for r_ki, r_kj in above:
        tile = subtract_product(tile, r_ki, r_kj)
    return solve_transposed(diagonal, tile)


def subtract_product(target: FloatArray, left: FloatArray, right: FloatArray) -> FloatArray:
    """``target - left^T right`` in the memory of ``target`` (Fortran order)."""
    keep_left, keep_right = left.flags.c_contiguous, right.flags.f_contiguous
    result: FloatArray = dgemm(
        -1.0,
        left.T if keep_left else left,
        right if keep_right else right.T,
        beta=1.0,
        c=target,
        trans_a=int(not keep_left),
        trans_b=int(not keep_right),
        overwrite_c=1,
    )
    return result


def solve_transposed(triangle: FloatArray, target: FloatArray) -> FloatArray:
    """``R^-T target`` in the memory of ``target`` (Fortran order), R upper triangular."""
    transposed = not triangle.flags.f_contiguous
    result: FloatArray = dtrsm(
        1.0,
        triangle.T if transposed else triangle,
        target,
        lower=int(transposed),
        trans_a=int(not transposed),
        overwrite_b=1,
    )
    return result
