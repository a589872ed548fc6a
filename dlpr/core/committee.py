"""Committees: many weights of one model, whose disagreement is a variance for every prediction.

Members are fitted to sub-samples of the structures (JCTC23 fig. 4c-d, 8a; FD24 fig. 2), or drawn
from the posterior ``N(w, a^2 H^-1)``, whose variance is ``a^2/R`` (FD24 eq. 2, JCTC23 eq. 17).

What is random is a function of the seed, the member and a number, the structure's or the column's,
through Philox, a counter-based generator: neither blocks, nor their order, nor data or members that
are appended change it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from dlpr.core.factor import Factor
from dlpr.core.rows import FloatArray, square_norm


def subsample(seed: int, member: int, fraction: float, n_structures: int) -> NDArray[np.bool_]:
    """Which structures of a training set are in a member, (n_structures,).

    Each with the same chance, whatever the others', and none of them twice.
    """
    chosen: NDArray[np.bool_] = np.less(_uniform(seed, member, n_structures), fraction)
    return chosen


def draw(
    factor: Factor, weights: FloatArray, n_members: int, seed: int, scale: float = 1.0
) -> FloatArray:
    """Draw weights from the posterior, ``w + a C z`` with ``C C^T = H^-1`` and z Gaussian.

    Parameters
    ----------
    factor : Factor
        Of the whole H, no block of it.
    weights : (n_columns,) float64
        w, of the fit.
    n_members, seed : int
    scale : float
        a, see `dlpr.core.calibration`.

    Returns
    -------
    (n_members, n_columns) float64

    Raises
    ------
    NumericsError
        If H is singular: some weights are then free to be anything.
    """
    z = np.array([ndtri(_uniform(seed, member, len(weights))) for member in range(n_members)])
    drawn: FloatArray = weights + scale * factor.root_solve(np.asfortranarray(z.T)).T
    return drawn


def spread(members: FloatArray) -> FloatArray:
    """The root S of the members' covariance (n_columns, n_members), of divisor n_members - 1.

    Deviations from the members' mean, over ``sqrt(n_members - 1)``. The papers do not say which
    divisor is theirs.

    Parameters
    ----------
    members : (n_members, n_columns) float64
        At least two.
    """
    deviation = (members - members.mean(axis=0)) / np.sqrt(len(members) - 1)
    root: FloatArray = np.ascontiguousarray(deviation.T)
    return root


def committee_variance(rows: FloatArray, root: FloatArray) -> FloatArray:
    """Variance over members of ``g.w`` of each row g, (n,): ``|S^T g|^2`` (JCTC23 fig. 4c).

    Parameters
    ----------
    rows : (n, n_columns) float64
    root : (n_columns, n_members) float64
        S, see `spread`; of the rows' columns alone.
    """
    return square_norm(rows @ root)


def _uniform(seed: int, member: int, n: int) -> FloatArray:
    """Uniform numbers between 0 and 1, the k-th a function of seed, member and k alone: (n,)."""
    words = np.random.Philox(key=seed + (member << 64)).random_raw(n)
    # the upper 52 bits and a half: neither 0 nor 1
    middle: FloatArray = ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return middle
