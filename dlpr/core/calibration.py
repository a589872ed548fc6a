"""Uncertainties from rigidities: the scale ``a`` of ``var = a^2 (1/R + r)``, and how well it holds.

``1/R`` is the variance of a prediction per unit of ``a^2`` (FD24 fig. 1). With
``a^2 = sigma_w^2 mu`` it is the subset-of-regressors variance (JCTC23 eq. 17). ``r`` is what a
sparse model cannot see, the residual of the kernel over ``mu``. The errors of a validation set,
which took no part in the fit, give ``a``.

A rigidity of inf (nothing is predicted) is a variance of 0, one of 0 (nothing constrains the
prediction) a variance of inf. Such rows enter no mean: they are counted apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import erf, ndtr

from dlpr.core.rows import FloatArray
from dlpr.errors import InputError, JobError

EXPECTED_COVERAGE = tuple(float(erf(k / np.sqrt(2.0))) for k in (1, 2, 3))
"""Parts of a Gaussian's errors within 1, 2 and 3 standard deviations"""


@dataclass(frozen=True)
class Calibration:
    """The scale of uncertainties, and its statistics over the rows it was fitted on."""

    method: str
    scale: float
    """a, in units of the prediction times the root of the rigidity's"""
    n: int
    """rows of finite variance, which all else is about"""
    n_rigid: int
    """rows of variance 0 (rigidity inf): their error should be 0"""
    n_unknown: int
    """rows of variance inf (rigidity 0): nothing constrains them"""
    nll: float
    """mean negative log-likelihood of a Gaussian"""
    crps: float
    """mean continuous ranked probability score, in units of the errors"""
    rmse_z: float
    """root of the mean of ``(error/sigma)^2``; 1 where the estimate holds"""

    def sigma(self, unit_variance: FloatArray) -> FloatArray:
        """Standard deviations ``a sqrt(1/R + r)``: 0 where R is inf, inf where R is 0."""
        sigma: FloatArray = self.scale * np.sqrt(unit_variance)
        return sigma


@dataclass(frozen=True)
class Reliability:
    """Estimated variance against squared error in bins of equal count (FD24 fig. 1, bottom)."""

    count: NDArray[np.int64]
    """(n_bins,) rows of each bin, differing by 1 at most"""
    variance: FloatArray
    """(n_bins,) mean of ``sigma^2``, ascending"""
    squared_error: FloatArray
    """(n_bins,) mean of ``error^2``"""
    standard_error: FloatArray
    """(n_bins,) standard error of that mean"""
    coverage: tuple[float, ...]
    """parts of all rows with ``|error|`` up to 1, 2 and 3 sigma, beside `EXPECTED_COVERAGE`"""
    n_rigid: int
    n_unknown: int


def gaussian_crps(errors: FloatArray, sigma: FloatArray) -> FloatArray:
    """Continuous ranked probability score of Gaussians, ``(n,)``.

    ``sigma (z (2 Phi(z) - 1) + 2 phi(z) - 1/sqrt(pi))`` with ``z = error/sigma``: Gneiting and
    Raftery, J. Am. Stat. Assoc. 102, 359 (2007), eq. 21.

    Parameters
    ----------
    errors, sigma : (n,) float64
        Sigma positive and finite.
    """
    z = errors / sigma
    score: FloatArray = sigma * (z * (2.0 * ndtr(z) - 1.0) + 2.0 * _phi(z) - 1.0 / np.sqrt(np.pi))
    return score


def calibrate(
    errors: FloatArray,
    unit_variance: FloatArray,
    method: str = "likelihood",
    weights: FloatArray | None = None,
) -> Calibration:
    """Fit the scale ``a`` of ``var = a^2 u``.

    Parameters
    ----------
    errors : (n,) float64
        Prediction minus target of validation rows.
    unit_variance : (n,) float64
        u: ``1/R``, or ``1/R + r``; 0 and inf are allowed.
    method : {"squared", "absolute", "likelihood", "crps"}
        "squared": the mean squared error is the mean variance, ``a^2 = <e^2>/<u>``.
        "absolute": the mean absolute error is that of Gaussians, ``a = sqrt(pi/2) <|e|>/<sqrt u>``.
        "likelihood": maximum likelihood of Gaussians, ``a^2 = <e^2/u>``.
        "crps": least mean `gaussian_crps`, which is convex in ``a``.
        For errors that are Gaussian all agree, up to the scatter of the sample. Rows of large
        variance decide "squared" most, those with large ``e^2/u`` "likelihood"; "absolute" and
        "crps" bear outliers best.
    weights : (n,) float64, optional
        Weight of each row in all means, at least 0.

    Raises
    ------
    JobError
        If the method is none of these.
    InputError
        If arrays do not fit together, hold NaN or negative variances or weights, no row counts, or
        the errors leave no scale but 0.
    """
    if method not in METHODS:
        raise JobError(f"unknown calibration {method!r}; choose one of {', '.join(METHODS)}")
    weights = np.ones_like(errors) if weights is None else weights
    if not len(errors) == len(unit_variance) == len(weights):
        raise InputError(
            f"{len(errors)} errors need as many variances and weights, and there are "
            f"{len(unit_variance)} and {len(weights)}"
        )
    counts = _counted(errors, unit_variance)
    _refuse(~((weights >= 0.0) & (weights < np.inf)), "weights are negative or not finite")
    e, u, w = (x[counts] for x in (errors, unit_variance, weights))
    if not w.sum() > 0.0:
        raise InputError(
            f"no scale of uncertainties can be fitted: of {len(errors)} rows none has both a "
            "finite variance and a positive weight; give a validation set that the training set "
            "says something about"
        )
    w = w / w.sum()
    scale = METHODS[method](e, u, w)
    if not 0.0 < scale < np.inf:
        raise InputError(
            f"method {method!r} gives a scale of {scale:g} for {len(e)} errors of at most "
            f"{np.abs(e).max():.3g}: take rows that were not fitted exactly, or another method"
        )
    sigma = scale * np.sqrt(u)
    z2 = np.square(e / sigma)
    return Calibration(
        method=method,
        scale=scale,
        n=len(e),
        n_rigid=int(np.count_nonzero(unit_variance == 0.0)),
        n_unknown=int(np.count_nonzero(unit_variance == np.inf)),
        nll=float(w @ (0.5 * np.log(2.0 * np.pi) + np.log(sigma) + 0.5 * z2)),
        crps=float(w @ gaussian_crps(e, sigma)),
        rmse_z=float(np.sqrt(w @ z2)),
    )


def reliability(errors: FloatArray, sigma: FloatArray, n_bins: int) -> Reliability:
    """Compare estimated variances with squared errors.

    Parameters
    ----------
    errors : (n,) float64
    sigma : (n,) float64
        Estimated standard deviations; 0 and inf are allowed and counted apart.
    n_bins : int
        Bins of equal count, by sigma; at least 2 rows in each.

    Raises
    ------
    InputError
        If arrays do not fit together or hold NaN or negative sigmas, or rows are too few.
    """
    if len(errors) != len(sigma):
        raise InputError(f"{len(errors)} errors need as many sigmas, and there are {len(sigma)}")
    counts = _counted(errors, sigma)
    e, s = errors[counts], sigma[counts]
    if not 1 <= n_bins <= len(e) // 2:
        raise InputError(
            f"{len(e)} rows of finite uncertainty make 1 to {len(e) // 2} bins of two rows or "
            f"more, and {n_bins} are asked for"
        )
    order = np.argsort(s, kind="stable")
    variances = np.array_split(np.square(s[order]), n_bins)
    squares = np.array_split(np.square(e[order]), n_bins)
    count = np.array([len(part) for part in squares])
    scatter = np.array([part.std(ddof=1) for part in squares])
    return Reliability(
        count=count,
        variance=np.array([part.mean() for part in variances]),
        squared_error=np.array([part.mean() for part in squares]),
        standard_error=scatter / np.sqrt(count),
        coverage=tuple(float(np.mean(np.abs(e) <= k * s)) for k in (1, 2, 3)),
        n_rigid=int(np.count_nonzero(sigma == 0.0)),
        n_unknown=int(np.count_nonzero(sigma == np.inf)),
    )


def _squared(e: FloatArray, u: FloatArray, w: FloatArray) -> float:
    return float(np.sqrt((w @ np.square(e)) / (w @ u)))


def _absolute(e: FloatArray, u: FloatArray, w: FloatArray) -> float:
    return float(np.sqrt(0.5 * np.pi) * (w @ np.abs(e)) / (w @ np.sqrt(u)))


def _likelihood(e: FloatArray, u: FloatArray, w: FloatArray) -> float:
    return float(np.sqrt(w @ np.square(e / np.sqrt(u))))


def _crps(e: FloatArray, u: FloatArray, w: FloatArray) -> float:
    """Find the root of the derivative of the mean CRPS, which grows with ``a``.

    ``d/da <CRPS> = <sqrt(u) (2 phi(e/(a sqrt(u))) - 1/sqrt(pi))>``. The part of one row is 0 at
    ``a^2 = e^2/(u log 2)``; beyond 40 standard deviations phi is 0.
    """
    spread = np.sqrt(u)
    ratio = np.abs(e) / spread

    def slope(log_scale: float) -> float:
        return float((w * spread) @ (2.0 * _phi(ratio / np.exp(log_scale)) - 1.0 / np.sqrt(np.pi)))

    telling = ratio[(ratio > 0.0) & (w > 0.0)]
    if not len(telling):
        return 0.0
    lower, upper = np.log(telling.min() / 40.0), np.log(telling.max() / np.sqrt(np.log(2.0)))
    if slope(lower) >= 0.0:
        return 0.0
    return float(np.exp(brentq(slope, lower, upper + 1e-9, xtol=1e-14, rtol=1e-14)))


METHODS: dict[str, Callable[[FloatArray, FloatArray, FloatArray], float]] = {
    "squared": _squared,
    "absolute": _absolute,
    "likelihood": _likelihood,
    "crps": _crps,
}
"""Scale from errors, variances per unit and normalized weights, by the name of the method"""


def _phi(z: FloatArray) -> FloatArray:
    density: FloatArray = np.exp(-0.5 * np.square(z)) / np.sqrt(2.0 * np.pi)
    return density


def _counted(errors: FloatArray, spread: FloatArray) -> NDArray[np.bool_]:
    """Rows of finite and positive variance or sigma."""
    _refuse(~np.isfinite(errors), "errors are not finite")
    _refuse(~(spread >= 0.0), "variances are negative or NaN")
    counts: NDArray[np.bool_] = (spread > 0.0) & (spread < np.inf)
    return counts


def _refuse(wrong: NDArray[np.bool_], what: str) -> None:
    if wrong.any():
        raise InputError(
            f"{np.count_nonzero(wrong)} of {len(wrong)} {what}, the first in row "
            f"{int(np.argmax(wrong))} (from 0): leave out rows without a label"
        )
