"""Rigidities, products and solutions with a factor that is read tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from scipy.linalg import solve_triangular

from dlpr.core.extremes import extreme_eigenvalues
from dlpr.core.factor import EPS, reciprocal
from dlpr.core.factorize import Conditioning, state
from dlpr.core.rows import FloatArray, square_norm
from dlpr.core.tiles import Tiling, solve_transposed, subtract_product


@dataclass(frozen=True)
class TiledFactor:
    """``H = R^T R`` with the tiles of R on disk, H in an order of elimination of its tiles.

    Every call reads each tile that it needs once, and holds one tile beside its rows.
    """

    tiling: Tiling
    """of the model's columns in their own order"""
    read_tile: Callable[[int, int], FloatArray]
    """R_ij of two tiles of ``tiling``, i at or before j in ``order``"""
    order: tuple[int, ...] = ()
    """tiles in the order of their elimination; empty for that of the columns"""
    columns: slice = field(default_factory=lambda: slice(None))
    """columns that rows are given in; a row is zero in all others"""

    @property
    def _order(self) -> tuple[int, ...]:
        return self.order or tuple(range(self.tiling.n_tiles))

    def rigidity(self, rows: FloatArray) -> FloatArray:
        """Return ``1/|R^-T g|^2`` of each row.

        ``y_j = R_jj^-T (g_j - sum_i R_ij^T y_i)``, tile after tile in the order of elimination,
        from the first tile that holds any of ``self.columns``: rows of a block whose tiles come
        last touch those tiles alone.

        Parameters
        ----------
        rows : (n, n_columns) float64
            With the columns of ``self.columns`` only; stay as they are.

        Returns
        -------
        (n,) float64
        """
        variance = np.zeros(len(rows))
        if rows.size:
            for _, piece in self._forward(self._pieces(rows)):
                variance += square_norm(piece.T)
        return reciprocal(variance)

    def block(self, columns: slice) -> TiledFactor:
        """Return the same H for rows that are given in ``columns`` and zero elsewhere."""
        start, stop, _ = columns.indices(self.tiling.n_columns)
        return TiledFactor(self.tiling, self.read_tile, self.order, slice(start, stop))

    def product(self, vectors: FloatArray) -> FloatArray:
        """``H v`` of (n_columns, k) vectors; reads the factor twice."""
        images = np.zeros_like(vectors)
        for column, j in enumerate(self._order):
            for i in self._order[: column + 1]:
                images[self.tiling.slice(i)] += self.read_tile(i, j) @ vectors[self.tiling.slice(j)]
        result = np.zeros_like(vectors)
        for column, j in enumerate(self._order):
            for i in self._order[: column + 1]:
                result[self.tiling.slice(j)] += (
                    self.read_tile(i, j).T @ images[self.tiling.slice(i)]
                )
        return result

    def solve(self, vectors: FloatArray) -> FloatArray:
        """``H^-1 v`` of (n_columns, k) vectors; reads the factor twice."""
        return self._backward(dict(self._forward(self._cut(vectors))), np.empty_like(vectors))

    def root_solve(self, vectors: FloatArray) -> FloatArray:
        """``R^-1 v`` of (n_columns, k) vectors: of unit covariance, it gets that of ``H^-1``."""
        return self._backward(self._cut(vectors), np.empty_like(vectors))

    def whiten(self, rows: FloatArray) -> FloatArray:
        """``R^-T g`` of rows with the columns of ``self.columns`` only: (n, n_columns of H)."""
        whitened = np.zeros((len(rows), self.tiling.n_columns))
        if rows.size:
            for tile, piece in self._forward(self._pieces(rows)):
                whitened[:, self.tiling.slice(tile)] = piece.T
        return whitened

    def _cut(self, vectors: FloatArray) -> dict[int, FloatArray]:
        """Copies of the rows of each tile."""
        return {i: np.array(vectors[self.tiling.slice(i)], order="F") for i in self._order}

    def _backward(self, pieces: dict[int, FloatArray], result: FloatArray) -> FloatArray:
        """``R^-1`` of pieces (columns of a tile, n), which it overwrites, put together."""
        for column in reversed(range(len(self._order))):
            j = self._order[column]
            piece = solve_triangular(self.read_tile(j, j), pieces.pop(j))
            result[self.tiling.slice(j)] = piece
            for i in self._order[:column]:
                pieces[i] -= self.read_tile(i, j) @ piece
        return result

    def _pieces(self, rows: FloatArray) -> dict[int, FloatArray]:
        """Columns of each tile, transposed: copies, zero where rows have no columns."""
        start, stop, _ = self.columns.indices(self.tiling.n_columns)
        pieces = {}
        for tile in self.tiling.touched(self.columns):
            own = self.tiling.slice(tile)
            first, last = max(own.start, start), min(own.stop, stop)
            piece = np.zeros((len(rows), own.stop - own.start))
            piece[:, first - own.start : last - own.start] = rows[:, first - start : last - start]
            pieces[tile] = piece.T
        return pieces

    def _forward(self, pieces: dict[int, FloatArray]) -> Iterator[tuple[int, FloatArray]]:
        """``R^-T`` of pieces (columns of a tile, n); those absent are zero. Overwrites them."""
        width = next(iter(pieces.values())).shape[1]
        solved: dict[int, FloatArray] = {}
        for j in self._order:
            if not solved and j not in pieces:
                continue
            piece = pieces.get(j)
            if piece is None:
                piece = np.zeros((self.tiling.widths[j], width), order="F")
            for i, before in solved.items():
                piece = subtract_product(piece, self.read_tile(i, j), before)
            solved[j] = solve_transposed(self.read_tile(j, j), piece)
            yield j, solved[j]


def tiled_conditioning(factor: TiledFactor, n_rows: int, mu: float) -> Conditioning:
    """How well ``G^T G + mu 1`` could be factorized in tiles.

    Reads the factor four times for each of `KRYLOV_STEPS`. What would take the spectrum, rank and
    number of determined directions, stays unknown.

    Parameters
    ----------
    factor : TiledFactor
        Of all columns.
    n_rows : int
        Number of rows that were folded.
    mu : float
        Regularizer, positive.

    Raises
    ------
    NumericsError
        If no digit of a rigidity would be right.
    """
    largest, smallest = extreme_eigenvalues(factor, factor.tiling.n_columns, mu)
    noise = float(np.sqrt(max(n_rows, factor.tiling.n_columns) * EPS))
    return state(
        "cholesky",
        n_rows,
        factor.tiling.n_columns,
        (largest, smallest),
        mu,
        through_gram=True,
        rank_rtol=noise,
    )
