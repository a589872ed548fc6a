"""What to label next: the structures that make targets most rigid (FD24 sec. 4.1).

Greedy: each pick is the candidate that helps most once all picks before it are in the training set,
as a refit for every candidate would find it. Only rigidities are asked for, so no label is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlpr.core.candidates import Candidates, Pool
from dlpr.core.factor import EPS, reciprocal
from dlpr.core.rows import FloatArray, square_norm
from dlpr.core.sampling import draw_keys
from dlpr.errors import InputError, JobError

RULES = ("greedy", "d_optimal", "random")
TIE_RTOL = 1e-9
"""Relative difference up to which two candidates help as much as each other"""


@dataclass(frozen=True)
class Objective:
    """One number for the variances v (n_targets,) of all targets."""

    value: Callable[[FloatArray], float]
    """of v"""
    gain: Callable[[FloatArray, FloatArray], FloatArray]
    """(n,) of v and what n candidates would take from it (n, n_targets): by which part they would
    make the value better, by how much where it is a logarithm"""


OBJECTIVES = {
    "mean_variance": Objective(
        lambda v: float(v.mean()), lambda v, fall: fall.mean(axis=1) / v.mean()
    ),
    "mean_log_rigidity": Objective(
        lambda v: -float(np.log(v).mean()), lambda v, fall: -np.log1p(-fall / v).mean(axis=1)
    ),
    "mean_rigidity": Objective(
        lambda v: float((1.0 / v).mean()),
        lambda v, fall: (fall / (v * (v - fall))).mean(axis=1) / (1.0 / v).mean(),
    ),
    "min_rigidity": Objective(
        lambda v: 1.0 / float(v.max()), lambda v, fall: v.max() / (v - fall).max(axis=1) - 1.0
    ),
}
"""What picks are to make better: the mean of 1/R smaller, or that of log R, of R, or the smallest
R larger"""


@dataclass(frozen=True)
class Proposal:
    """Structures to label, in this order.

    Attributes
    ----------
    picks : (n_picks,) int64
        Candidates, counted through all chunks.
    rigidity : (n_picks + 1, n_targets) float64
        Of the targets, before and after every pick; inf where a target's row is zero.
    curve : (n_picks + 1,) float64
        The objective before and after every pick, zero rows apart.
    """

    picks: NDArray[np.int64]
    rigidity: FloatArray
    curve: FloatArray


def propose(
    targets: FloatArray,
    chunks: Sequence[Candidates],
    n_picks: int,
    objective: str = "mean_variance",
    rule: str = "greedy",
    seed: int = 0,
) -> Proposal:
    """Pick structures, each once; of those that help equally, the one with the lowest index.

    A first pass takes ``n_rows n_columns (n_targets + m)`` multiplications for candidates of n_rows
    rows in all, m of them each, and every pick then ``n_rows m (n_columns + n_targets + m)``. What
    is held are ``n_rows (n_targets + m)`` numbers, beside two copies of the rows of one chunk.

    Parameters
    ----------
    targets : (n_targets, n_columns) float64
        Rows of the environments (or structures) that are to become more rigid, whitened.
    chunks : sequence of Candidates
        Whitened by the same factor; taken by number, once per pick.
    n_picks : int
        At least 1. There are fewer where no other candidate helps.
    objective : {"mean_variance", "mean_log_rigidity", "mean_rigidity", "min_rigidity"}
        What is to become better, see `OBJECTIVES`.
    rule : {"greedy", "d_optimal", "random"}
        "greedy" picks what makes the objective best. "d_optimal" picks what raises the determinant
        of the Hessian most, whatever the targets, and "random" anything: what greedy picks have
        to be better than.
    seed : int
        Of "random", from 0 to 2^64 - 1.

    Raises
    ------
    JobError
        If objective or rule is none of these, or ``n_picks`` is below 1.
    InputError
        If all targets are rows of zeros, or rows are not finite.
    NumericsError
        If the rows of one structure are so much alike that double precision cannot tell them
        apart, for want of a regularizer.
    """
    _check(objective, rule, n_picks)
    counts = square_norm(targets) > 0.0
    if not counts.any():
        raise InputError(
            f"all {len(targets)} targets are rows of zeros, which no label makes more rigid: "
            "take others, which the model describes"
        )
    measure = OBJECTIVES[objective]
    pool = Pool(targets[counts], chunks)
    left = np.ones(pool.n, bool)
    picks: list[int] = []
    variance = [pool.variance.copy()]
    while len(picks) < n_picks and left.any():
        score = _scores(pool, rule, measure, seed + (len(picks) << 64))
        score[~left] = 0.0
        best = score.max()
        if best <= EPS:
            break
        picks.append(int(np.argmax(score >= (1.0 - TIE_RTOL) * best)))
        left[picks[-1]] = False
        pool.take(picks[-1])
        variance.append(pool.variance.copy())
    rigidity = np.full((len(variance), len(targets)), np.inf)
    rigidity[:, counts] = reciprocal(np.array(variance))
    curve = np.array([measure.value(v) for v in variance])
    return Proposal(np.array(picks, dtype=np.int64), rigidity, curve)


def _scores(pool: Pool, rule: str, measure: Objective, key: int) -> FloatArray:
    """How much each candidate is wanted, (n,)."""
    if rule == "random":
        return draw_keys(np.ones(pool.n), 0, key)
    score = np.empty(pool.n)
    most = (1.0 - EPS) * pool.variance
    for alike in pool:
        if rule == "d_optimal":
            score[alike.index] = alike.information()
        else:
            for index, fall in alike.falls():
                score[index] = measure.gain(pool.variance, np.minimum(fall, most))
    return score


def _check(objective: str, rule: str, n_picks: int) -> None:
    if objective not in OBJECTIVES:
        raise JobError(f"unknown objective {objective!r}; choose one of {', '.join(OBJECTIVES)}")
    if rule not in RULES:
        raise JobError(f"unknown rule {rule!r}; choose one of {', '.join(RULES)}")
    if n_picks < 1:
        raise JobError(f"{n_picks} structures are to be picked; the number must be at least 1")
