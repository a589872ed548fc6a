"""Which environments to take as references: farthest points, or draws weighted by leverage scores.

Features come in blocks that need not fit in memory together and are read again when needed. How
they are cut into blocks changes no choice, and no BLAS decides between farthest points.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from dlpr.core.factor import EPS, Factor
from dlpr.core.kernel import unit_rows
from dlpr.core.rows import FloatArray, IntArray, square_norm
from dlpr.errors import InputError, JobError

CANDIDATES_NBYTES = 1 << 28
"""Features of environments that are held to be picked from"""
TILE_ROWS = 256
"""Environments that are compared with picks at a time"""
PAIRS = 1024
"""Differences of two environments that are held at a time"""
RIDGE_FLOOR = 1e-10
"""Least ridge of leverage scores, as a part of the largest eigenvalue"""


def farthest_points(
    blocks: Iterable[FloatArray],
    m: int,
    first: int,
    usable: NDArray[np.bool_],
    normalize: bool = False,
) -> tuple[NDArray[np.int64], FloatArray]:
    """Pick environments one by one, each the farthest from all before (farthest-point sampling).

    These are the picks of the plain algorithm, of equals the one with the lowest index: distances
    are those of differences, see `approach`.

    Distances to the nearest pick only fall. So the environments farthest from the picks so far
    are held as candidates, and the next picks are among them until one of those left out may be
    farther. Then all environments see the picks they missed, and candidates are taken anew: four
    times for 2,000 picks of a million environments of carbon.

    Beside a block and the picks, `CANDIDATES_NBYTES` and 50 bytes an environment are held.

    Parameters
    ----------
    blocks : iterable of (n, n_features) float
        Gone through as often as needed, in the same order.
    m : int
        Number of environments to pick, at least 1.
    first : int
        Index of the first pick, counted through all blocks.
    usable : (n_environments,) bool
        Which environments may be picked, see `find_usable`.
    normalize : bool
        Whether distances are those of ``x/|x|``.

    Returns
    -------
    indices : (<= m,) int64
        In the order of the picks. Fewer than m where every other usable one equals a pick.
    distances : (<= m,) float64
        From each pick to the nearest one before; inf for the first.

    Raises
    ------
    JobError
        If m or ``first`` is out of range, or the first pick is not usable.
    """
    if m < 1:
        raise JobError(f"{m} environments are to be picked; the number must be at least 1")
    if not 0 <= first < len(usable) or not usable[first]:
        raise JobError(
            f"environment {first} is to be picked first; it must be one of the {usable.sum()} "
            f"usable ones among 0..{len(usable) - 1}"
        )
    nearest = np.where(usable, np.inf, 0.0)
    point = _take(blocks, np.array([first]), normalize)[0]
    picks = np.empty((min(m, usable.sum()), len(point)))
    picks[0] = point
    indices, squares = [first], [np.inf]
    n_seen = 0
    while (count := len(indices)) < len(picks):
        _see(blocks, nearest, picks[n_seen:count], normalize)
        n_seen = count
        candidates = _Candidates(blocks, nearest, picks[:count], normalize)
        if not len(candidates.indices):
            break
        while count < len(picks) and (place := candidates.farthest(picks[:count])) is not None:
            picks[count] = candidates.points[place]
            indices.append(int(candidates.indices[place]))
            squares.append(float(candidates.nearest[place]))
            count += 1
        del candidates  # before others are held
    return np.array(indices, dtype=np.int64), np.sqrt(squares)


def preselect(blocks: Iterable[FloatArray], m: int, normalize: bool = False) -> NDArray[np.int64]:
    """Pick the farthest points of one part of a pool that is too large to be compared as a whole.

    `farthest_points` among what all parts have preselected is not exact. It leaves no
    environment farther from a pick than the sum of two distances: from a preselected one to the
    nearest pick, and within its part to the nearest preselected one.

    Parameters
    ----------
    blocks, normalize
        As for `farthest_points`.
    m : int
        Number of environments to pick, at least 1.

    Returns
    -------
    (<= m,) int64
        Indices in ascending order; none of a part without vectors but zero ones.
    """
    usable = find_usable(blocks, normalize)
    if not usable.any():
        return np.empty(0, dtype=np.int64)
    return np.sort(farthest_points(blocks, m, int(usable.argmax()), usable, normalize)[0])


def find_usable(blocks: Iterable[FloatArray], normalize: bool) -> NDArray[np.bool_]:
    """Which environments (n,) may be references: all but zero vectors that are to have unit norm.

    Raises
    ------
    InputError
        If features are not finite.
    """
    found = [np.empty(0, bool)]
    for block in blocks:
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            raise InputError(
                f"environment {sum(map(len, found)) + finite.argmin()} has features that are not "
                "finite; compute them again, or leave its structure out"
            )
        found.append(np.logical_or(not normalize, block.any(axis=1)))
    return np.concatenate(found)


def _points(rows: FloatArray, normalize: bool) -> FloatArray:
    """Features as they are compared."""
    points = np.asarray(rows, dtype=np.float64)
    return unit_rows(points) if normalize else points


def _take(blocks: Iterable[FloatArray], indices: IntArray, normalize: bool) -> FloatArray:
    """Points of some environments, in the order given."""
    points = np.empty((len(indices), next(iter(blocks)).shape[1]))
    order = np.argsort(indices)
    ascending = indices[order]
    start = 0
    for block in blocks:
        own = slice(*np.searchsorted(ascending, [start, start + len(block)]))
        points[order[own]] = _points(block[ascending[own] - start], normalize)
        start += len(block)
    return points


def _see(
    blocks: Iterable[FloatArray], nearest: FloatArray, picks: FloatArray, normalize: bool
) -> None:
    """Lower the squared distances of all environments to what further picks make of them."""
    start = 0
    for block in blocks:
        for row in range(0, len(block), TILE_ROWS):
            points = _points(block[row : row + TILE_ROWS], normalize)
            approach(nearest[start : start + len(points)], points, picks)
            start += len(points)


class _Candidates:
    """The environments farthest from all picks, as many as may be held.

    They lie in tiles, in the order of their distances when they were taken. The largest distance
    of a tile, as of when the tile last saw the picks, is a bound for the tile: only tiles whose
    bound is the largest of all have to see the picks they missed, all in one product.
    """

    def __init__(
        self,
        blocks: Iterable[FloatArray],
        nearest: FloatArray,
        picks: FloatArray,
        normalize: bool,
    ) -> None:
        most = max(1, CANDIDATES_NBYTES // picks[0].nbytes)
        squares, indices = take_highest(nearest, np.arange(len(nearest)), most + 1)
        self.left_out = (squares[most], -indices[most]) if len(squares) > most else (0.0, 0)
        self.nearest, self.indices = squares[:most], indices[:most]
        self.points = _take(blocks, self.indices, normalize)
        self.bound = self.nearest[::TILE_ROWS].copy()
        self.n_seen = np.full(len(self.bound), len(picks))

    def farthest(self, picks: FloatArray) -> int | None:
        """Place of the candidate farthest from all picks; None if one left out may be farther."""
        while True:
            top = self.bound.max()
            stale = np.flatnonzero((self.bound == top) & (self.n_seen < len(picks)))
            if not len(stale):
                break
            tile = int(stale[0])
            own = slice(tile * TILE_ROWS, (tile + 1) * TILE_ROWS)
            approach(self.nearest[own], self.points[own], picks[self.n_seen[tile] :])
            self.bound[tile] = self.nearest[own].max()
            self.n_seen[tile] = len(picks)
        equal = np.flatnonzero(self.nearest == top)
        place = int(equal[self.indices[equal].argmin()])
        return place if (top, -self.indices[place]) > self.left_out else None


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
