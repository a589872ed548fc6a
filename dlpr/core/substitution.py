"""Forward substitution ``w R = g`` of many rows g at once, at nearly the speed of a product.

R is halved again and again: solve the left columns, take their part from the right ones (a matrix
product), solve those. What is left of R are triangles on its diagonal, of `LEAF` columns at most.
A well-conditioned one, D, is applied as a product with X, the solution of ``D X = 1`` by
substitution. Then ``|D X - 1| <= c eps |D| |X|`` (Higham, Accuracy and Stability of Numerical
Algorithms, sec. 14.2), so ``y = w D`` gives

    |y X - w| <= c' eps |w| |D| |X|,

which is the bound of substitution itself (sec. 8.2). The residual, and so the part of the error
that later columns inherit, may exceed substitution's by the norm of ``|D| |X|``: a triangle beyond
`GROWTH` is halved, and from `NARROW` columns on substituted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.linalg.blas import dgemm, dtrmm, dtrsm

from dlpr.core.rows import FloatArray, square_norm

LEAF = 192
"""Columns of a triangle that is applied as its inverse, at most"""
NARROW = 32
"""Columns of a triangle that is not halved"""
GROWTH = 1e3
"""Frobenius norm of ``|D| |D^-1|`` of a triangle that is applied as its inverse, at most"""
PART_ROWS = 1100
"""Rows that are solved at a time, in one work buffer, at most"""
COPY_ROWS = 256
"""Rows that are transposed at a time"""


@dataclass(frozen=True)
class Update:
    """Take what solved columns contribute away from later ones."""

    solved: slice
    later: slice
    corner: FloatArray
    """R[solved, later], Fortran order"""

    def apply(self, work: FloatArray) -> None:
        later = work[:, self.later]
        dgemm(-1.0, work[:, self.solved], self.corner, beta=1.0, c=later, overwrite_c=1)


@dataclass(frozen=True)
class Leaf:
    """Solve the columns of one triangle on the diagonal."""

    columns: slice
    triangle: FloatArray
    """D, or its inverse; Fortran order"""
    inverted: bool

    def apply(self, work: FloatArray) -> None:
        operation = dtrmm if self.inverted else dtrsm
        operation(1.0, self.triangle, work[:, self.columns], side=1, overwrite_b=1)


class Substitution:
    """What substitution needs of one R: a copy of its upper triangle, in pieces.

    Parameters
    ----------
    triangle : (n_columns, n_columns) float64
        R, upper triangular, read-only or not.
    """

    def __init__(self, triangle: FloatArray) -> None:
        self.n_columns = len(triangle)
        self.steps = list(_steps(triangle, 0, self.n_columns))

    def square_norm(self, rows: FloatArray) -> FloatArray:
        """``|R^-T g|^2`` of rows (n, n_columns) of any strides, which stay as they are: (n,)."""
        norm = np.zeros(len(rows))
        for own, _, piece in self._solved(rows):
            norm[own] += square_norm(piece)
        return norm

    def solve(self, rows: FloatArray) -> FloatArray:
        """``R^-T g`` of rows (n, n_columns) of any strides, which stay as they are."""
        solution = np.empty((len(rows), self.n_columns))
        for own, columns, piece in self._solved(rows):
            solution[own, columns] = piece
        return solution

    def _solved(self, rows: FloatArray) -> Iterator[tuple[slice, slice, FloatArray]]:
        """Rows, columns, and the solution there, leaf after leaf; good until the next one.

        The work buffer has rows along its columns, so that BLAS takes ranges of columns where they
        lie; its stride is no power of two, for such columns share few places of a cache.
        """
        n_rows = len(rows)
        n_parts = max(1, -(-n_rows // PART_ROWS))
        height = -(-n_rows // n_parts)
        work = np.empty((height | 8, self.n_columns), order="F")
        work[height:] = 0.0
        for start in range(0, n_rows, height or 1):
            stop = min(start + height, n_rows)
            for row in range(start, stop, COPY_ROWS):
                end = min(row + COPY_ROWS, stop)
                work[row - start : end - start] = rows[row:end]
            for step in self.steps:
                step.apply(work)
                if isinstance(step, Leaf):
                    yield slice(start, stop), step.columns, work[: stop - start, step.columns]


def _steps(triangle: FloatArray, start: int, stop: int) -> Iterator[Update | Leaf]:
    """What solves columns from ``start`` to ``stop``, in order."""
    own = slice(start, stop)
    width = stop - start
    if width <= LEAF:
        diagonal = np.triu(triangle[own, own]).copy(order="F")
        inverse = dtrsm(1.0, diagonal, np.eye(width, order="F"), overwrite_b=1)
        with np.errstate(over="ignore", invalid="ignore"):
            safe = bool(np.linalg.norm(np.abs(diagonal) @ np.abs(inverse)) <= GROWTH)
        if safe or width <= NARROW:
            if width:
                yield Leaf(own, inverse if safe else diagonal, safe)
            return
    middle = start + -(-width // 32) * 16
    yield from _steps(triangle, start, middle)
    left, right = slice(start, middle), slice(middle, stop)
    yield Update(left, right, triangle[left, right].copy(order="F"))
    yield from _steps(triangle, middle, stop)
