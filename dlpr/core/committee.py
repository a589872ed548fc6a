"""Committees: many weights of one model, whose disagreement is a variance per environment.

Members are fitted to sub-samples of the structures (JCTC23 fig. 4c-d, 8a; FD24 fig. 2), from rows
of structures alone, or drawn from the posterior ``N(w, a^2 H^-1)``.

What is random is a function of the seed, the member and a number, the structure's or the column's,
through Philox, a counter-based generator: neither blocks, nor their order, nor data or members that
are appended change it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import dtrsm
from scipy.special import ndtri

from dlpr.core.factor import HeldFactor, TriangularFactor
from dlpr.core.folds import Gram, Triangle
from dlpr.core.rows import FloatArray
from dlpr.core.scan import TARGET, solve_weights
from dlpr.errors import InputError, JobError, NumericsError

WORDS = 4
"""64-bit words that one step of Philox's counter yields"""


@dataclass(frozen=True)
class Subsample:
    """Which structures are in which member: each with the same chance, independently."""

    n_members: int
    fraction: float
    """chance of a structure to be in a member"""
    seed: int

    def __post_init__(self) -> None:
        if self.n_members < 2:
            raise JobError(f"a committee needs at least 2 members, and {self.n_members} are given")
        if not 0.0 < self.fraction < 1.0:
            raise JobError(
                f"the fraction of a sub-sample is {self.fraction}; it must lie between 0 and 1"
            )

    def chosen(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Memberships (stop - start, n_members) of structures start to stop of the training set."""
        numbers = uniform(self.seed, start, stop, self.n_members)
        chosen: NDArray[np.bool_] = np.less(numbers, self.fraction)
        return chosen

    @property
    def variance_factor(self) -> float:
        """``f/(1 - f)``, from a variance over members to one over training sets of full size.

        Of the delete-d jackknife: Shao and Wu, Ann. Stat. 17, 1176 (1989). The papers plot the
        variance over members as it is; `dlpr.core.calibration` makes any factor superfluous.
        """
        return self.fraction / (1.0 - self.fraction)


@dataclass
class MemberFold:
    """What the rows of one member fold into."""

    fold: Gram | Triangle
    """of rows ``[G, Z]``, see `dlpr.core.scan`"""
    n_labelled: int = 0


def fold_members(
    blocks: Iterable[tuple[int, FloatArray, FloatArray]],
    subsample: Subsample,
    kind: type[Gram] | type[Triangle],
    n_columns: int,
    n_targets: int = 1,
    members: Sequence[int] | None = None,
) -> list[MemberFold]:
    """Fold the rows of every member in one pass over the rows of structures.

    All folds are in memory, ``8 (n_columns + n_targets)^2`` bytes each: ``members`` divides them
    among passes or tasks.

    Parameters
    ----------
    blocks : iterable of (start, rows, targets)
        Number of the first structure, rows (n, n_columns) and targets (n, n_targets) of the loss:
        convention and weights are in them. Rows with a NaN among their targets are left out.
    subsample : Subsample
    kind : Gram or Triangle
    n_columns, n_targets : int
    members : sequence of int, optional
        All of them unless given.

    Returns
    -------
    list of MemberFold, in the order of ``members``
    """
    chosen_members = list(range(subsample.n_members) if members is None else members)
    folds = [MemberFold(kind.zeros(n_columns + n_targets)) for _ in chosen_members]
    for start, rows, targets in blocks:
        labelled: NDArray[np.bool_] = np.logical_not(np.isnan(targets).any(axis=1))
        chosen = subsample.chosen(start, start + len(rows)) & labelled[:, None]
        extended = np.hstack([rows, targets])
        for member, own in zip(chosen_members, folds, strict=True):
            own.fold.update(extended[chosen[:, member]])
            own.n_labelled += int(np.count_nonzero(chosen[:, member]))
    return folds


def solve_members(
    folds: Sequence[MemberFold], n_columns: int, mu: float, mix: FloatArray = TARGET
) -> FloatArray:
    """Weights (n_columns, n_members) of folded members, see `solve_weights`.

    mu is the whole model's: a member of a part f of the data is regularized 1/f times as strongly
    beside them.

    Raises
    ------
    InputError
        If a member has no labelled structure.
    """
    empty = [k for k, member in enumerate(folds) if not member.n_labelled]
    if empty:
        raise InputError(
            f"{len(empty)} of {len(folds)} members of the committee have no labelled structure, "
            f"the first is member {empty[0]}: raise the fraction, or give more structures"
        )
    return np.column_stack([solve_weights(member.fold, n_columns, mu, mix) for member in folds])


def draw_members(
    factor: HeldFactor, weights: FloatArray, scale: float, n_members: int, seed: int
) -> FloatArray:
    """Draw weights from the posterior ``N(w, a^2 H^-1)``: ``w + a L^-T z``.

    With ``H = R^T R`` these are ``w + a R^-1 z``; in an eigenbasis ``w + a H^-1/2 z``.

    Parameters
    ----------
    factor : TriangularFactor or SpectralFactor
        Of the whole H, no block of it.
    weights : (n_columns,) float64
    scale : float
        a, see `dlpr.core.calibration`.
    n_members, seed : int

    Returns
    -------
    (n_columns, n_members) float64

    Raises
    ------
    NumericsError
        If H is singular: some weights are then free to be anything.
    """
    n_columns = len(weights)
    z = ndtri(uniform(seed, 0, n_columns, n_members))
    deviation: FloatArray
    if isinstance(factor, TriangularFactor):
        if not factor.triangle.diagonal().all():
            raise NumericsError(_free(n_columns, int((factor.triangle.diagonal() != 0).sum())))
        deviation = dtrsm(1.0, factor.triangle, z)
    else:
        basis = factor.basis
        rank = basis.shape[1]
        if factor.mu == 0.0 and rank < n_columns:
            raise NumericsError(_free(n_columns, rank))
        inside = basis.T @ z
        deviation = basis @ (inside / np.sqrt(factor.eigenvalue)[:, None])
        if rank < n_columns:
            deviation += (z - basis @ inside) / np.sqrt(factor.mu)
    return weights[:, None] + scale * deviation


def committee_variance(rows: FloatArray, members: FloatArray) -> FloatArray:
    """Variance of the members' predictions of each row (JCTC23 fig. 4c, FD24 fig. 2).

    The sum of squared deviations from the committee's mean over ``n_members - 1``: the papers do
    not say which divisor is theirs.

    Parameters
    ----------
    rows : (n, n_columns) float64
    members : (n_columns, n_members) float64

    Returns
    -------
    (n,) float64
    """
    deviation = members - members.mean(axis=1, keepdims=True)
    variance: FloatArray = np.square(rows @ deviation).sum(axis=1) / (members.shape[1] - 1)
    return variance


def uniform(seed: int, start: int, stop: int, n: int) -> FloatArray:
    """Uniform numbers between 0 and 1, each a function of seed, row and column alone.

    Parameters
    ----------
    seed : int
        From 0 to 2^64 - 1.
    start, stop : int
        Rows.
    n : int
        Columns.

    Returns
    -------
    (stop - start, n) float64
    """
    if not 0 <= seed < 2**64:
        raise JobError(f"the seed is {seed}; it must lie in 0..2^64 - 1")
    words = [
        np.random.Philox(key=seed + (group << 64))
        .advance(start)
        .random_raw((stop - start) * WORDS)
        .reshape(stop - start, WORDS)
        for group in range(-(-n // WORDS))
    ]
    # the upper 52 bits and a half: neither 0 nor 1
    upper = np.hstack(words)[:, :n] >> np.uint64(12)
    middle: FloatArray = (upper.astype(np.float64) + 0.5) * 2.0**-52
    return middle


def _free(n_columns: int, rank: int) -> str:
    return (
        f"H has {n_columns} columns and rank {rank}: with mu = 0 the posterior of "
        f"{n_columns - rank} directions has no bounds; draw members with a positive mu"
    )
