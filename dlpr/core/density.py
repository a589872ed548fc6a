"""The outline of a distribution of which there is only a sketch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dlpr.core.quantiles import QuantileSketch, bin_middle
from dlpr.core.rows import FloatArray

ENDS = (0.01, 0.99)
"""Quantiles between which an outline goes."""
N_POINTS = 41
_N_CELLS = 256
"""Into which values are counted first: a kernel is many of them wide, and time does not grow with
the number of values."""


@dataclass(frozen=True)
class Outline:
    """A density over the logarithm of positive numbers."""

    low: float
    high: float
    height: FloatArray
    """(n_points,) at equal logarithmic steps from ``low`` to ``high``; the largest is 1"""


def outline(sketch: QuantileSketch) -> Outline | None:
    """Estimate the density of log10 of the positive finite values with Gaussian kernels.

    The kernels' width is Silverman's, 0.9 min(s, IQR / 1.34) n^(-1/5) (Density Estimation, 1986,
    eq. 3.31), and at least a step of the outline.

    Returns
    -------
    Outline or None
        None where values do not spread.
    """
    value, count = np.log10(bin_middle(sketch.bin_index)), sketch.bin_count
    reached = np.cumsum(count)
    n = int(reached[-1]) if len(reached) else 0
    if n == 0:
        return None
    rank = np.maximum(np.ceil(n * np.array([*ENDS, 0.25, 0.75])), 1)
    low, high, first, third = value[np.searchsorted(reached, rank)]
    deviation = np.sqrt(np.cov(value, fweights=count, ddof=0))
    spread = min(deviation, (third - first) / 1.34) or deviation
    if not high > low:
        return None
    width = max(0.9 * spread * n**-0.2, (high - low) / N_POINTS)
    cells = np.linspace(low - 4 * width, high + 4 * width, _N_CELLS)
    inside = (value >= cells[0]) & (value <= cells[-1])
    nearest = np.rint((value[inside] - cells[0]) / (cells[1] - cells[0])).astype(np.int64)
    mass = np.bincount(nearest, count[inside], _N_CELLS)
    at = np.linspace(low, high, N_POINTS)
    height = np.exp(-0.5 * np.square((at[:, None] - cells) / width)) @ mass
    return Outline(float(10.0**low), float(10.0**high), height / height.max())
