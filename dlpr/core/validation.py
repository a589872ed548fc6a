"""Numerical validation where labels exist (VAL23 sec. IV): errors, and folds to find them with."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dlpr.core.quantiles import QuantileSketch
from dlpr.core.rows import CONVENTIONS, FloatArray, IntArray, row_factor, square_norm
from dlpr.errors import InputError, JobError

NORMAL = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""
LEAST_FREEDOM = 1e-6
"""Part of a structure's residual that must be left for it to be told from rounding."""


@dataclass
class Errors:
    """Measures of errors too many to hold; sums of equal parts in equal order have equal bits."""

    absolute: QuantileSketch = field(default_factory=QuantileSketch)
    """of ``|e|``"""
    sums: FloatArray = field(default_factory=lambda: np.zeros(3))
    """of e, ``|e|`` and e^2"""

    def add(self, errors: FloatArray) -> None:
        """Add errors of any shape, prediction minus label.

        Raises
        ------
        InputError
            If one is not finite.
        """
        wrong = np.size(errors) - np.count_nonzero(np.isfinite(errors))
        if wrong:
            raise InputError(
                f"{wrong} of {np.size(errors)} errors are not finite: leave out what has no label, "
                "and look for predictions that are not finite"
            )
        size = np.abs(errors)
        self.absolute.add(size)
        self.sums += [np.sum(errors), np.sum(size), np.sum(np.square(errors))]

    def merge(self, other: Errors) -> None:
        """Add all errors of another part."""
        self.absolute.merge(other.absolute)
        self.sums += other.sums

    @property
    def n(self) -> int:
        """Number of errors."""
        return self.absolute.n

    @property
    def bias(self) -> float:
        """Mean of e; NaN without errors, as are the others."""
        return self._mean(0)

    @property
    def mae(self) -> float:
        """Mean of ``|e|``."""
        return self._mean(1)

    @property
    def rmse(self) -> float:
        """Root of the mean of e^2."""
        return float(np.sqrt(self._mean(2)))

    def percentile(self, percent: float) -> float:
        """What ``percent`` of all ``|e|`` do not exceed, to a relative 2^-11; 100: the largest."""
        return self.absolute.quantile(percent / 100.0)

    def _mean(self, power: int) -> float:
        return float(self.sums[power]) / self.n if self.n else float("nan")


def energy_errors(errors: FloatArray, n_atoms: IntArray) -> dict[str, FloatArray]:
    """Errors of energies, scaled in each of three ways (VAL23 fig. 4).

    That of a cell grows with the number of atoms N and that of an atom falls with it: sets of
    different sizes are compared by ``1/sqrt(N)``.

    Parameters
    ----------
    errors : (n,) float64
        Of total energies.
    n_atoms : (n,) int

    Returns
    -------
    dict of str to (n,) float64
        "mean" per atom, "sum" per cell, "sqrt" per root of the number of atoms.
    """
    return {name: errors * row_factor(n_atoms, name) for name in CONVENTIONS}


def force_errors(predicted: FloatArray, label: FloatArray) -> dict[str, FloatArray]:
    """Errors of forces, by component and magnitude (VAL23 sec. IV B) and as vectors (XPOT24 eq. 7).

    Parameters
    ----------
    predicted, label : (n, 3) float64

    Returns
    -------
    dict of str to float64
        "component" (3 n,), "magnitude" (n,) ``|F| - |F_label|``, "vector" (n,) ``|F - F_label|``.
    """
    difference = predicted - label
    return {
        "component": difference.ravel(),
        "magnitude": np.sqrt(square_norm(predicted)) - np.sqrt(square_norm(label)),
        "vector": np.sqrt(square_norm(difference)),
    }


def without_own_label(errors: FloatArray, leverage: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Errors of fits that leave out one structure each, of one fit to all.

    ``r / (1 - h)`` of a fit that minimizes a sum of squares and a square penalty, where h is the
    structure's leverage ``w g^T H^-1 g = w / PR`` (Sherman and Morrison). Its spread is that of
    labels over ``sqrt(1 - h)``: ``r / sqrt(1 - h)`` is the studentized residual (Cook, Weisberg,
    Residuals and Influence in Regression, 1982).

    Parameters
    ----------
    errors : (n,) float64
        Residuals r of the fit to all.
    leverage : (n,) float64
        From 0 to 1.

    Returns
    -------
    errors : (n,) float64
        NaN where `LEAST_FREEDOM` or less is left by 1 - h: only its own label says anything of such
        a structure.
    spread : (n,) float64
        Of each, in that of labels.
    """
    left = 1.0 - leverage
    left[left < LEAST_FREEDOM] = np.nan
    return errors / left, 1.0 / np.sqrt(left)


def robust_scores(values: FloatArray, group: IntArray, fewest: int) -> FloatArray:
    """How far each value is from the median of its group, in units of the spread.

    The larger of the spreads of the group and of all: small differences within a group of equals
    say nothing. A spread is 1.4826 times the median absolute deviation, that of a normal
    distribution: values that lie far out do not move it (Rousseeuw, Croux, J. Am. Stat. Assoc. 88,
    1273, 1993).

    Parameters
    ----------
    values : (n,) float64
        NaN: unknown.
    group : (n,) int
    fewest : int
        A group of fewer values has median and spread of all.

    Returns
    -------
    (n,) float64
        NaN where the value is; inf for what differs where both spreads are 0.
    """
    scores = np.full(len(values), np.nan)
    known = np.isfinite(values)
    of_all = _spread(values[known]) if known.any() else (0.0, 0.0)
    for number in np.unique(group[known]):
        own = np.flatnonzero(known & (group == number))
        middle, spread = _spread(values[own]) if len(own) >= fewest else of_all
        spread, away = max(spread, of_all[1]), values[own] - middle
        with np.errstate(divide="ignore", invalid="ignore"):
            scores[own] = np.where(away == 0.0, 0.0, away / spread)
    return scores


def _spread(values: FloatArray) -> tuple[float, float]:
    middle = float(np.median(values))
    return middle, NORMAL * float(np.median(np.abs(values - middle)))


def k_folds(keys: Sequence[bytes], n_folds: int, seed: int) -> NDArray[np.int64]:
    """Which fold of a cross-validation each structure is in, (n,).

    The fold of a structure is a function of its key and the seed alone: structures that come or go
    move no other, so the partial of a fold to which nothing was added stays as it is. Each group is
    spread over the folds by chance, hence evenly but for the scatter of small numbers. Equal keys
    share a fold.

    Parameters
    ----------
    keys : sequence of bytes
        Digest of each structure; or the name of its group or trajectory, which is then left out as
        a whole.
    n_folds : int
        At least 2.
    seed : int
        At least 0.

    Raises
    ------
    JobError
        If there are fewer than two folds.
    InputError
        If a fold is empty.
    """
    _check_several(n_folds)
    start = hashlib.blake2b(f"{seed} ".encode(), digest_size=8)
    folds = np.empty(len(keys), np.int64)
    for number, key in enumerate(keys):
        digest = start.copy()
        digest.update(key)
        folds[number] = int.from_bytes(digest.digest(), "little") % n_folds
    _check_filled(folds, n_folds, keys)
    return folds


def stratified_folds(
    keys: Sequence[bytes], groups: Sequence[str], n_folds: int, seed: int
) -> NDArray[np.int64]:
    """Folds (n,) over which each group is spread evenly: its parts differ by one structure at most.

    Every ``n_folds`` different structures of a group, in the order given, are dealt out in an order
    of their own, drawn from seed, group and how many were dealt before: structures that come behind
    the others move none, those that come in between move all of their group behind them. Equal keys
    of a group share a fold, that of the first.

    Parameters
    ----------
    keys : sequence of bytes
        Digest of each structure.
    groups : sequence of str
        Its group.
    n_folds : int
        At least 2; as many as there are structures in one group, all different: leave one out.
    seed : int
        At least 0.

    Raises
    ------
    JobError
        If there are fewer than two folds.
    InputError
        If a fold is empty.
    """
    _check_several(n_folds)
    folds = np.empty(len(keys), np.int64)
    of_group: defaultdict[str, dict[bytes, int]] = defaultdict(dict)
    orders: dict[str, list[int]] = {}
    for place, (key, group) in enumerate(zip(keys, groups, strict=True)):
        dealt = of_group[group]
        if key not in dealt:
            number, step = divmod(len(dealt), n_folds)
            if step == 0:
                orders[group] = _order(n_folds, f"{seed} {number} {group}")
            dealt[key] = orders[group][step]
        folds[place] = dealt[key]
    _check_filled(folds, n_folds, keys)
    return folds


def _order(n: int, of: str) -> list[int]:
    """An order of n numbers that a text decides."""

    def word(number: int) -> bytes:
        return hashlib.blake2b(f"{number} {of}".encode(), digest_size=8).digest()

    return sorted(range(n), key=word)


def _check_several(n_folds: int) -> None:
    if n_folds < 2:
        raise JobError(f"{n_folds} folds cannot be told apart; a cross-validation needs at least 2")


def _check_filled(folds: IntArray, n_folds: int, keys: Sequence[bytes]) -> None:
    empty = np.flatnonzero(np.bincount(folds, minlength=n_folds) == 0)
    if len(empty):
        raise InputError(
            f"fold {empty[0]} of {n_folds} is empty: {len(set(keys))} different structures or "
            "groups are few for so many folds; take fewer folds, another seed, or stratified folds"
        )
