"""Structures that may be labelled, and what the labels picked so far leave them to say.

Rows are whitened (`Factor.whiten`), so that the Hessian is 1, and with the rows B of all picks
``A = 1 + B^T B``. Of a target row t, ``v = t A^-1 t^T`` is the variance, its reciprocal rigidity. A
candidate of rows C would take from it

    q^T (1 + S)^-1 q,    q = C A^-1 t^T,    S = C A^-1 C^T

(Woodbury). All q and S are held. With ``1 + S = L L^T`` of a pick, ``U = L^-1 C A^-1`` and
``X = L^-1 q``, the pick takes ``U^T U`` from A^-1, hence ``|X|^2`` from v, and ``W X`` from the q
and ``W W^T`` from the S of every candidate, where W are its rows times U^T: products of matrices,
of as many rows as the pick has.

Differences lose digits: the error is some eps times the factor by which v or ``1 + S`` have fallen.
Beyond `LOSS` all is computed anew, as at first, from rows times ``A^-1/2``, whose error is some eps
times the root of that factor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular

from dlpr.core.rows import FloatArray, IntArray, square_norm
from dlpr.core.tiles import subtract_product
from dlpr.errors import InputError, NumericsError

LOSS = 1e6
"""Factor by which variances fall before they are computed anew"""
PART_NUMBERS = 2**16
"""Numbers of projections (512 KiB) that are solved at a time: few enough for the cache"""


@dataclass(frozen=True)
class Candidates:
    """Some structures that may be labelled.

    Attributes
    ----------
    rows : (n_rows, n_columns) float64
        What each label would add to the rows of the data, whitened: of an energy one row, times
        `Targets.scale` and the root of lambda; of forces three for each atom. Those of one
        structure follow each other. May be a file that is mapped.
    offset : (n + 1,) int
        First row of each structure, and the number of rows.
    """

    rows: FloatArray
    offset: IntArray

    def __len__(self) -> int:
        return len(self.offset) - 1


@dataclass(frozen=True)
class Alike:
    """Candidates of one chunk with the same number m of rows."""

    index: IntArray
    """(n,) counted through all chunks"""
    place: IntArray
    """(n, m) of their rows in the chunk"""
    projection: FloatArray
    """(n, m, n_targets) q"""
    product: FloatArray
    """(n, m, m) S"""
    start: FloatArray
    """(n, m) diagonal of S when it was computed from the rows"""

    def falls(self) -> Iterator[tuple[IntArray, FloatArray]]:
        """What some would take from the variance of every target: (k,) index, (k, n_targets).

        L is inverted, for products with its inverse are faster than substitution for many small L.
        Its condition is the root of that of ``1 + S``, whose smallest eigenvalue is 1 at least.
        """
        roots = _root(self.product)
        size = max(1, PART_NUMBERS // max(self.projection[0].size, 1))
        for start in range(0, len(self.index), size):
            part = slice(start, start + size)
            inverse = np.linalg.solve(roots[part], np.eye(roots.shape[1]))
            solved = inverse @ self.projection[part]
            yield self.index[part], np.einsum("imt,imt->it", solved, solved)

    def information(self) -> FloatArray:
        """``log det(1 + S)``, by which each would raise that of the Hessian: (n,)."""
        diagonal = np.diagonal(_root(self.product), axis1=1, axis2=2)
        information: FloatArray = 2.0 * np.log(diagonal).sum(axis=1)
        return information

    def downdate(self, images: FloatArray, shift: FloatArray) -> None:
        """Take ``W X`` from the projections and ``W W^T`` from the products.

        Parameters
        ----------
        images : (rows of the chunk, k) float64
            W.
        shift : (k, n_targets) float64
            X.
        """
        own = images[self.place]
        flat = self.projection.reshape(-1, self.projection.shape[2])
        subtract_product(flat.T, shift, own.reshape(-1, own.shape[2]).T)
        np.subtract(self.product, own @ own.transpose(0, 2, 1), out=self.product)

    def fallen(self) -> float:
        """Largest factor by which ``1 + S`` of a row has fallen."""
        now = 1.0 + np.diagonal(self.product, axis1=1, axis2=2)
        return float(np.max((1.0 + self.start) / now, initial=1.0))


class Pool:
    """All candidates and all targets, with the picks so far in the Hessian.

    Parameters
    ----------
    targets : (n_targets, n_columns) float64
        Whitened rows, none of them zero.
    chunks : sequence of Candidates
        Taken by number as often as needed, once per pick.
    """

    def __init__(self, targets: FloatArray, chunks: Sequence[Candidates]) -> None:
        self._targets, self._chunks = targets, chunks
        self._picked = np.empty((0, targets.shape[1]))
        self._compute()

    def _compute(self) -> None:
        """All that is held, from the rows."""
        _, sigma, self._directions = np.linalg.svd(self._picked, full_matrices=False)
        self._shrinkage = 1.0 - 1.0 / np.sqrt(1.0 + np.square(sigma))
        self._later = self._picked[:0]
        targets = self._whiten(self._targets)
        self.variance = square_norm(targets)
        self._start = self.variance.copy()
        self._alike: list[list[Alike]] = []
        self.n = 0
        for chunk in self._chunks:
            self._alike.append(list(_alike(chunk, self._whiten(chunk.rows), targets, self.n)))
            self.n += len(chunk)

    def _whiten(self, rows: FloatArray) -> FloatArray:
        """Rows (n, n_columns) times ``A^-1/2``, of the A for which all was computed."""
        inside = rows @ self._directions.T
        inside *= self._shrinkage
        whitened: FloatArray = rows - inside @ self._directions
        return whitened

    def __iter__(self) -> Iterator[Alike]:
        for alike in self._alike:
            yield from alike

    def take(self, index: int) -> None:
        """Add the rows of a candidate to the Hessian."""
        number, own = next(
            (number, one)
            for number, alike in enumerate(self._alike)
            for one in alike
            if index in one.index
        )
        k = int(np.searchsorted(own.index, index))
        rows = np.array(self._chunks[number].rows[own.place[k]])
        self._picked = np.vstack([self._picked, rows])
        root = _root(own.product[k])
        rows = self._whiten(rows)
        rows -= (rows @ self._later.T) @ self._later
        both = np.hstack([own.projection[k], rows])
        both = solve_triangular(root, both, lower=True)
        shift, update = np.split(both, [len(self.variance)], axis=1)
        self._later = np.vstack([self._later, update])
        self.variance -= square_norm(shift.T)
        turned = self._whiten(update).T
        for number, alike in enumerate(self._alike):
            images = self._chunks[number].rows @ turned
            for one in alike:
                one.downdate(images, shift)
        fallen = max(one.fallen() for one in self)
        if not (fallen <= LOSS and (self._start <= LOSS * self.variance).all()):
            self._compute()


def _root(product: FloatArray) -> FloatArray:
    """L of ``1 + S = L L^T``, of one S or many (..., m, m)."""
    try:
        root = np.linalg.cholesky(np.eye(product.shape[-1]) + product)
    except np.linalg.LinAlgError as error:
        most = product.trace(axis1=-2, axis2=-1).max()
        raise NumericsError(
            f"the rows of one candidate have a variance of up to {most:.1e}, in units of their "
            "noise: double precision cannot tell them apart; take a larger regularizer"
        ) from error
    return np.asarray(root, np.float64)


def _alike(chunk: Candidates, rows: FloatArray, targets: FloatArray, first: int) -> Iterator[Alike]:
    """Candidates of a chunk by their number of rows, the first of all being number ``first``."""
    counts = np.diff(chunk.offset)
    for count in np.unique(counts).tolist():
        own = np.flatnonzero(counts == count)
        place = chunk.offset[own, None] + np.arange(count)
        gathered = rows[place]
        projection = gathered.reshape(-1, rows.shape[1]) @ targets.T
        product = gathered @ gathered.transpose(0, 2, 1)
        start = np.diagonal(product, axis1=1, axis2=2).copy()
        wrong = ~np.isfinite(start).all(axis=1)
        if wrong.any():
            raise InputError(
                f"candidate {first + own[wrong.argmax()]} has rows that are not finite; compute "
                "them again, or leave its structure out"
            )
        shape = (*place.shape, len(targets))
        yield Alike(first + own, place, projection.reshape(shape), product, start)
