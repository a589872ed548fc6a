"""How far the distribution of rigidities has moved: distances with their sizes.

With millions of environments any difference is significant, and those of one trajectory are not
independent: what counts is how large a distance is, not how unlikely.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import kolmogorov
from scipy.stats import wasserstein_distance

from dlpr.core.quantiles import QuantileSketch, bin_middle
from dlpr.errors import InputError


@dataclass(frozen=True)
class Drift:
    """How values now differ from those before; infinite ones (rows of zeros) are in neither."""

    ks: float
    """largest difference of the two distribution functions, 0 to 1 (Kolmogorov and Smirnov)"""
    p_value: float
    """chance of so large a difference between equal distributions, if all values were independent,
    from the limit of many; an upper bound where values are equal"""
    wasserstein: float
    """decades by which the mean value has to be moved to make the distributions equal: the area
    between the distribution functions of log10; NaN where a side has nothing but zeros"""
    shift: float
    """log10 of the median now over that before, in decades; below 0: rigidity was lost"""
    superiority: float
    """chance that a value now exceeds one before, equal ones counted half: 1/2 where nothing has
    moved (Vargha and Delaney, J. Educ. Behav. Stat. 25, 101, 2000)"""
    zero_part: tuple[float, float]
    """part of zeros before and now: nothing constrains them; the smallest of all values, and not
    in ``wasserstein``"""
    n: tuple[int, int]
    """values before and now"""


def drift(before: QuantileSketch, now: QuantileSketch) -> Drift:
    """Compare two sets of rigidities.

    Values of one bin count as equal, so ``ks`` may be short by the part of all values in one bin,
    ``wasserstein`` be off by 4e-4 decades, the width of a bin, ``shift`` by as much.

    Parameters
    ----------
    before, now : QuantileSketch
        Each of at least one finite value.

    Raises
    ------
    InputError
        If a side has no finite value.
    """
    for name, side in (("before", before), ("now", now)):
        if not side.n_finite:
            raise InputError(
                f"no drift without rigidities: {side.n} values {name}, none of them finite; "
                "compare sets whose environments have features"
            )
    index = np.union1d(before.bin_index, now.bin_index)
    n = (before.n_finite, now.n_finite)
    old, new = _counts(before, index), _counts(now, index)
    old_below, new_below = np.cumsum(old), np.cumsum(new)
    ks = float(np.abs(old_below / n[0] - new_below / n[1]).max())
    wasserstein = np.nan
    if len(before.bin_index) and len(now.bin_index):
        decade = np.log10(bin_middle(index))
        wasserstein = float(wasserstein_distance(decade, decade, old[1:], new[1:]))
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = float(np.log10(now.quantile(0.5)) - np.log10(before.quantile(0.5)))
    return Drift(
        ks=ks,
        p_value=float(kolmogorov(ks * np.sqrt(n[0] / (n[0] + n[1]) * n[1]))),
        wasserstein=wasserstein,
        shift=shift,
        superiority=float(new / n[1] @ (old_below - 0.5 * old)) / n[0],
        zero_part=(before.n_zero / n[0], now.n_zero / n[1]),
        n=n,
    )


def _counts(sketch: QuantileSketch, index: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many values are zero, and in each bin of ``index``: (1 + n,)."""
    counts = np.zeros(1 + len(index), np.int64)
    counts[0] = sketch.n_zero
    counts[1 + np.searchsorted(index, sketch.bin_index)] = sketch.bin_count
    return counts
