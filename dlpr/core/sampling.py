"""Which environments to take as references: farthest points, or draws weighted by leverage scores.

Features come in blocks that need not fit in memory together and are read again when needed. How
they are cut into blocks changes no choice, and no BLAS decides between farthest points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dlpr.core.factor import EPS, Factor
from dlpr.core.kernel import unit_rows
from dlpr.core.rows import FloatArray, IntArray, square_norm
from dlpr.errors import InputError, JobError

TILE_ROWS = 256
"""Environments that are compared with picks at a time"""
PAIRS = 1024
"""Differences of two environments that are held at a time"""
RIDGE_FLOOR = 1e-10
"""Least ridge of leverage scores, as a part of the largest eigenvalue"""


class Block(Protocol):
    """Features of some environments: an array, or what reads or gathers rows of one."""

    def __len__(self) -> int:
        """Number of environments."""
        ...

    def __getitem__(self, rows: slice, /) -> FloatArray:
        """Features (n, n_features) of a range of them."""
        ...


def farthest_points(
    blocks: Sequence[Block], m: int, first: int, normalize: bool = False
) -> tuple[NDArray[np.int64], FloatArray]:
    """Pick environments one by one, each the farthest from all before (farthest-point sampling).

    These are the picks of the plain algorithm, of equals the one with the lowest index: distances
    are those of differences, see `approach`. Beside one tile and the picks, 8 bytes are held per
    environment.

    Parameters
    ----------
    blocks : sequence of Block
        Taken by number as often as needed, `TILE_ROWS` rows at a time: files that are mapped.
    m : int
        Number of environments to pick, at least 1.
    first : int
        Index of the first pick, counted through all blocks.
    normalize : bool
        Whether distances are those of ``x/|x|``. Zero vectors are then never picked.

    Returns
    -------
    indices : (<= m,) int64
        In the order of the picks. Fewer than m where every other environment equals a pick.
    distances : (<= m,) float64
        From each pick to the nearest one before; inf for the first.

    Raises
    ------
    JobError
        If m or ``first`` is out of range.
    InputError
        If features are not finite, or the first pick is a zero vector that is to have unit norm.
    """
    pool = _Pool(blocks, normalize)
    if m < 1:
        raise JobError(f"{m} environments are to be picked; the number must be at least 1")
    if not 0 <= first < len(pool.nearest):
        raise JobError(f"environment {first} is to be picked first of 0..{len(pool.nearest) - 1}")
    point = pool.point(first)
    if normalize and not point.any():
        raise InputError(
            f"environment {first}, to be picked first, is a zero vector, which cannot have unit "
            "norm; start from another, or use normalize: false"
        )
    picks = np.empty((min(m, len(pool.nearest)), len(point)))
    indices, squares = [first], [np.inf]
    picks[0] = point
    while (count := len(indices)) < len(picks):
        index, square = pool.farthest(picks[:count])
        if square == 0.0:
            break
        picks[count] = pool.point(index)
        indices.append(index)
        squares.append(square)
    return np.array(indices, dtype=np.int64), np.sqrt(squares)


def preselect(rows: FloatArray, m: int, normalize: bool = False) -> NDArray[np.int64]:
    """Pick the farthest points of one block, for a pool too large to be compared as a whole.

    `farthest_points` among what all blocks have preselected is not exact. It leaves no
    environment farther from a pick than the sum of two distances: from a preselected one to the
    nearest pick, and within its block to the nearest preselected one.

    Parameters
    ----------
    rows : (n, n_features) float
    m : int
        Number of environments to pick, at least 1.
    normalize : bool
        As for `farthest_points`.

    Returns
    -------
    (<= m,) int64
        Indices in ascending order; none of a block without vectors but zero ones.
    """
    nonzero = np.flatnonzero(rows.any(axis=1)) if normalize else np.arange(len(rows))
    if not len(nonzero):
        return nonzero
    return np.sort(farthest_points([rows], m, int(nonzero[0]), normalize)[0])


class _Pool:
    """Environments, and the squared distance of each to the nearest pick.

    Such distances only fall. So the largest of a tile, as of when the tile last saw the picks, is
    a bound for the tile: only the tile with the largest bound has to see the picks it missed, all
    in one product, until that tile has missed none.
    """

    def __init__(self, blocks: Sequence[Block], normalize: bool) -> None:
        self.blocks = blocks
        self.normalize = normalize
        self.tiles: list[tuple[int, int]] = []
        edges = [0]
        for number in range(len(blocks)):
            size = len(blocks[number])
            for start in range(0, size, TILE_ROWS):
                self.tiles.append((number, start))
                edges.append(edges[-1] + min(TILE_ROWS, size - start))
        self.edges = np.array(edges)
        self.nearest = np.full(self.edges[-1], np.inf)
        self.bound = np.full(len(self.tiles), np.inf)
        self.n_seen = np.zeros(len(self.tiles), dtype=np.int64)

    def point(self, index: int) -> FloatArray:
        """Features (n_features,) of one environment, of unit norm if wanted."""
        tile = int(np.searchsorted(self.edges, index, side="right")) - 1
        point: FloatArray = self._points(tile, index - int(self.edges[tile]), 1)[0]
        return point

    def farthest(self, picks: FloatArray) -> tuple[int, float]:
        """Pick the environment farthest from all picks (k, n_features).

        Returns
        -------
        index : int
        square : float
            Its squared distance to the nearest pick.
        """
        while self.n_seen[tile := int(self.bound.argmax())] < len(picks):
            own = self.nearest[self.edges[tile] : self.edges[tile + 1]]
            points = self._points(tile, 0, len(own))
            approach(own, points, picks[self.n_seen[tile] :])
            if self.normalize:
                own[~points.any(axis=1)] = 0.0
            self.n_seen[tile] = len(picks)
            self.bound[tile] = own.max()
        own = self.nearest[self.edges[tile] : self.edges[tile + 1]]
        place, square = int(own.argmax()), float(own.max())
        own[place] = 0.0
        self.bound[tile] = own.max()
        return int(self.edges[tile]) + place, square

    def _points(self, tile: int, first: int, count: int) -> FloatArray:
        """Some of a tile's environments."""
        number, start = self.tiles[tile]
        rows = slice(start + first, start + first + count)
        points = np.asarray(self.blocks[number][rows], dtype=np.float64)
        if not self.n_seen[tile]:
            finite = np.isfinite(points).all(axis=1)
            if not finite.all():
                index = self.edges[tile] + first + finite.argmin()
                raise InputError(
                    f"environment {index} of {len(self.nearest)} has features that are not "
                    "finite; compute them again, or leave its structure out"
                )
        return unit_rows(points) if self.normalize else points


def approach(nearest: FloatArray, points: FloatArray, picks: FloatArray) -> None:
    """Lower squared distances to what further picks make of them.

    ``|x|^2 + |y|^2 - 2 x.y``, a matrix product, says which pick may be nearest, and whether it may
    be nearer than those before; rounding moves it by ``(n_features + 64) eps (|x| + |y|)^2`` at
    most. For pairs that this leaves, ``sum (x - y)^2`` decides, summed in an order that depends on
    n_features alone. So the result is that of differences, to the last bit.

    Parameters
    ----------
    nearest : (n,) float64
        Squared distance of each point to the nearest pick so far; overwritten.
    points : (n, n_features) float64
    picks : (k, n_features) float64
    """
    squares = square_norm(picks)
    closeness = points @ picks.T
    closeness -= 0.5 * squares
    closest = closeness.max(axis=1)
    own = square_norm(points)
    margin = (points.shape[1] + 64) * EPS * np.square(np.sqrt(own) + np.sqrt(squares.max()))
    maybe = np.flatnonzero(own - 2.0 * closest - margin < nearest)
    place, pick = np.nonzero(closeness[maybe] >= (closest - margin)[maybe, None])
    row = maybe[place]
    for start in range(0, len(row), PAIRS):
        pair = slice(start, start + PAIRS)
        difference = points[row[pair]] - picks[pick[pair]]
        np.minimum.at(nearest, row[pair], np.square(difference).sum(axis=1))


def leverage_ridge(spectrum: FloatArray, m: int) -> float:
    """Ridge for leverage scores that are to choose m environments.

    ``sum_(k > m) eigenvalue_k / m``, with which the scores sum to 2 m at most and m directions
    count (Cohen, Musco, Musco, SODA 2017), but at least `RIDGE_FLOOR` of the largest eigenvalue.

    Parameters
    ----------
    spectrum : (n_columns,) float64
        Eigenvalues of ``X^T X`` in descending order, as `dlpr.core.factorize.spectrum` gives them.
    m : int
        At least 1.
    """
    floor = RIDGE_FLOOR * float(spectrum.max(initial=0.0))
    return max(float(spectrum[m:].sum()) / m, floor)


def leverage_scores(rows: FloatArray, factor: Factor) -> FloatArray:
    """Ridge leverage scores ``x^T (X^T X + ridge 1)^-1 x`` of rows (n, n_features): (n,).

    They are the reciprocal rigidities of ``factor``, that of the Gram matrix of all X with ridge
    for mu, of which they need one triangular solve. CUR draws by them (Mahoney, Drineas, PNAS
    2009).
    """
    return np.reciprocal(factor.rigidity(rows))


def draw_keys(scores: FloatArray, first_index: int, seed: int) -> FloatArray:
    """Keys ``score/u``, of which the m highest are a draw of m environments without replacement.

    u is uniform in (0, 1] and belongs to the environment's index alone, however environments are
    cut into blocks. Equal scores are a uniform draw. Else an environment is drawn with probability
    ``min(1, score/t)``, where t is the m-th highest key of all others (sequential Poisson or
    priority sampling: Ohlsson, J. Off. Stat. 14, 149, 1998; Duffield, Lund, Thorup, J. ACM 54,
    32, 2007).

    Parameters
    ----------
    scores : (n,) float64
        At least 0; 0 is never drawn.
    first_index : int
        Index of the first of these environments in the whole pool.
    seed : int
        From 0 to 2^128 - 1.

    Returns
    -------
    (n,) float64
    """
    skipped = first_index % 4
    generator = np.random.Philox(key=seed, counter=first_index // 4)
    bits = generator.random_raw(skipped + len(scores))[skipped:]
    keys: FloatArray = scores / (((bits >> np.uint64(11)) + np.uint64(1)) * 2.0**-53)
    return keys


def take_highest(
    keys: FloatArray, indices: IntArray, m: int
) -> tuple[FloatArray, NDArray[np.int64]]:
    """Keep the m highest keys above 0, of equals the lowest indices, in that order.

    What it keeps of joined parts is what it keeps of all that they were kept from.

    Parameters
    ----------
    keys : (n,) float64
    indices : (n,) int
        Of the environments in the whole pool.
    m : int

    Returns
    -------
    keys : (<= m,) float64
    indices : (<= m,) int64
    """
    order = np.lexsort((indices, -keys))[:m]
    order = order[keys[order] > 0.0]
    return keys[order], np.asarray(indices[order], dtype=np.int64)
