"""Losses that are not squared: with which weight a row enters a fit, and with which one H.

``L = sum_t lambda_t l(r_t) + mu/2 |w|^2``, ``l(r) = r^2/2`` where the loss is squared (JCTC23
eq. 1), hence ``H = mu 1 + sum_t lambda_t l''(r_t) g_t g_t^T`` at the fit (FD24 eq. 9). The fit
itself is found by iteratively reweighted least squares: rows of weight ``l'(r)/r`` make a sum of
squares with the same gradient, whose least value is the next fit. Where ``l'(r)/r`` does not rise
with ``|r|`` that sum bounds the loss from above, so that no step raises it (Huber and Ronchetti,
Robust Statistics, sec. 7.8; Holland and Welsch, Commun. Stat. A 6, 813 (1977)).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from dlpr.core.rows import FloatArray
from dlpr.errors import InputError


class Loss(Protocol):
    """An even loss of residuals (n,)."""

    def weight(self, residual: FloatArray) -> FloatArray:
        """``l'(r)/r`` (n,), and its limit at r = 0."""

    def second(self, residual: FloatArray) -> FloatArray:
        """``l''(r)`` (n,)."""


@dataclass(frozen=True)
class Huber:
    """``r^2/2`` up to ``|r| = delta``, ``delta (|r| - delta/2)`` beyond.

    Rows beyond delta have no part in H: their residuals can grow at no change of the gradient.
    """

    delta: float
    """in units of the residual, positive"""

    def weight(self, residual: FloatArray) -> FloatArray:
        """``min(1, delta/|r|)``."""
        weight: FloatArray = self.delta / np.maximum(np.abs(residual), self.delta)
        return weight

    def second(self, residual: FloatArray) -> FloatArray:
        """1 up to delta, 0 beyond."""
        return (np.abs(residual) <= self.delta).astype(np.float64)


@dataclass(frozen=True)
class LogCosh:
    """``delta^2 log cosh(r/delta)``: ``r^2/2`` for small r, ``delta |r|`` for large ones."""

    delta: float
    """in units of the residual, positive"""

    def weight(self, residual: FloatArray) -> FloatArray:
        """``tanh(u)/u`` with ``u = r/delta``."""
        u = np.abs(residual) / self.delta
        weight = np.ones_like(u)
        np.divide(np.tanh(u), u, out=weight, where=u > 0.0)
        return weight

    def second(self, residual: FloatArray) -> FloatArray:
        """``1/cosh(u)^2``."""
        decay = np.exp(-2.0 * np.abs(residual) / self.delta)
        second: FloatArray = 4.0 * decay / np.square(1.0 + decay)
        return second


@dataclass(frozen=True)
class Given:
    """A loss whose derivatives a function gives.

    Attributes
    ----------
    function : callable
        From residuals (n,) to their ``l'`` and ``l''``, two arrays (n,).
    options : dict
        Keywords of the function.
    name : str
        What messages call it.
    """

    function: Callable[..., Any]
    options: dict[str, Any]
    name: str

    def weight(self, residual: FloatArray) -> FloatArray:
        """``l'(r)/r``, and ``l''(0)`` at 0.

        Raises
        ------
        InputError
            If the function cannot be used, or ``l'`` points away from the target.
        """
        first, weight = self._derivatives(residual)
        np.divide(first, residual, out=weight, where=residual != 0.0)
        self._check("l'(r)/r", weight, residual)
        return weight

    def second(self, residual: FloatArray) -> FloatArray:
        """``l''(r)``.

        Raises
        ------
        InputError
            If the function cannot be used, or a second derivative is negative.
        """
        _, second = self._derivatives(residual)
        self._check("l''(r)", second, residual)
        return second

    def _derivatives(self, residual: FloatArray) -> tuple[FloatArray, FloatArray]:
        try:
            first, second = (
                np.array(one, np.float64) for one in self.function(residual.copy(), **self.options)
            )
        except Exception as error:
            raise InputError(
                f"{self.name} raised {type(error).__name__}: {error}, for {len(residual)} "
                f"residual(s). It takes an array (n,) and returns two, l' and l''. Correct the "
                f"function or its options."
            ) from error
        if first.shape != residual.shape or second.shape != residual.shape:
            raise InputError(
                f"{self.name} returned arrays of the shapes {first.shape} and {second.shape} for "
                f"residuals {residual.shape}; needed are two of that shape, l' and l''. Correct "
                f"the function."
            )
        return first, second

    def _check(self, what: str, value: FloatArray, residual: FloatArray) -> None:
        wrong = np.flatnonzero(~((value >= 0.0) & (value < np.inf)))
        if len(wrong):
            raise InputError(
                f"{self.name}: {what} is {value[wrong[0]]:.3g} at r = {residual[wrong[0]]:.3g}, "
                f"and not >= 0 and finite for {len(wrong)} of {len(value)} residuals: rows of such "
                f"weights make no Hessian. Take a convex loss."
            )


LOSSES: dict[str, type[Huber] | type[LogCosh]] = {"huber": Huber, "log_cosh": LogCosh}
"""Losses by the name they have in a job file"""


def left_to_go(changes: Sequence[float]) -> float:
    """How far a fit still is from where its iterations lead, from the last two of its steps.

    Steps that shrink by a factor q have ``q/(1 - q)`` of the last one to go; infinite without two
    steps, or where they grow.
    """
    if changes and changes[-1] == 0.0:
        return 0.0
    if len(changes) < 2 or changes[-1] >= changes[-2]:
        return np.inf
    rate = changes[-1] / changes[-2]
    return float(changes[-1] * max(1.0, rate / (1.0 - rate)))


FARTHEST = 100.0
"""Steps by which a fit is moved at once at most."""


def extrapolated(
    after: FloatArray,
    first: FloatArray,
    second: FloatArray,
    product: Callable[[FloatArray, FloatArray], float],
) -> FloatArray:
    """Where two steps of an iteration lead if what changes between them goes on to change so.

    Reweighting alone converges linearly, slowly where most of what determines some weights lies in
    rows beyond delta. This is Anderson's mixing of depth 1, begun anew every two steps: exact where
    the steps shrink by one factor (Walker and Ni, SIAM J. Numer. Anal. 49, 1715 (2011)).

    Parameters
    ----------
    after : (n,) float64
        The fit after both steps.
    first, second : (n,) float64
        The steps.
    product : callable
        Inner product of two steps.

    Returns
    -------
    (n,) float64
        ``after + t second``, with t >= 0 such that ``|second + t (second - first)|`` is least.
    """
    bend = second - first
    square = product(bend, bend)
    if square <= 0.0:
        return after
    ahead = min(max(-product(second, bend) / square, 0.0), FARTHEST)
    return after + ahead * second
