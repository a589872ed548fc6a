"""Quantiles of numbers too many to hold: a histogram whose merge is exact in any order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlpr.core.rows import FloatArray
from dlpr.errors import NumericsError

MANTISSA_BITS = 10
"""Bits of the mantissa that name a bin: bins are at most 2^-10 wide, relative to their edge."""
_SHIFT = 52 - MANTISSA_BITS


def _no_counts() -> NDArray[np.int64]:
    return np.empty(0, dtype=np.int64)


@dataclass
class QuantileSketch:
    """Mergeable histogram of rigidities or other numbers from 0 to inf.

    A bin holds the doubles that share sign, exponent and `MANTISSA_BITS` leading bits of the
    mantissa: logarithmic to a factor of two, and exact on every machine. Zeros and infinities are
    counted apart. Zeros are the smallest values; infinities (rows without any feature) are in no
    statistic. Any order of ``add`` and ``merge`` gives the same sketch.
    """

    bin_index: NDArray[np.int64] = field(default_factory=_no_counts)
    """(n_bins,) ascending, occupied bins only"""
    bin_count: NDArray[np.int64] = field(default_factory=_no_counts)
    """(n_bins,)"""
    n_zero: int = 0
    n_inf: int = 0
    minimum: float = np.inf
    """smallest finite value, exact; inf where there is none"""
    maximum: float = -np.inf
    """largest finite value, exact; -inf where there is none"""

    @property
    def n_finite(self) -> int:
        """Number of values in the statistics, zeros included."""
        return self.n_zero + int(self.bin_count.sum())

    @property
    def n(self) -> int:
        """Number of values added."""
        return self.n_finite + self.n_inf

    def add(self, values: FloatArray) -> None:
        """Add values of any shape.

        Raises
        ------
        NumericsError
            If one is negative or NaN.
        """
        values = np.asarray(values, dtype=np.float64)
        finite = values[values < np.inf]
        n_inf = int(np.count_nonzero(values == np.inf))
        if finite.size + n_inf < values.size or (finite < 0.0).any():
            n_wrong = values.size - n_inf - int(np.count_nonzero(finite >= 0.0))
            raise NumericsError(f"{n_wrong} of {values.size} values are negative or NaN")
        positive = finite[finite > 0.0]
        index, count = np.unique(positive.view(np.int64) >> _SHIFT, return_counts=True)
        self.merge(
            QuantileSketch(
                index,
                count.astype(np.int64),
                n_zero=finite.size - positive.size,
                n_inf=n_inf,
                minimum=float(finite.min(initial=np.inf)),
                maximum=float(finite.max(initial=-np.inf)),
            )
        )

    def merge(self, other: QuantileSketch) -> None:
        """Add all values of another sketch."""
        merged, place = np.unique(
            np.concatenate([self.bin_index, other.bin_index]), return_inverse=True
        )
        count = np.zeros(len(merged), dtype=np.int64)
        np.add.at(count, place, np.concatenate([self.bin_count, other.bin_count]))
        self.bin_index, self.bin_count = merged, count
        self.n_zero += other.n_zero
        self.n_inf += other.n_inf
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)

    def mid_rank(self, values: FloatArray) -> FloatArray:
        """Ranks of finite values that were added, less the mean of all ranks: (n,).

        Values of one bin share the mean of their ranks, as equal values do.
        """
        start = self.n_zero + np.concatenate([[0], np.cumsum(self.bin_count)])
        place = np.searchsorted(self.bin_index, values.view(np.int64) >> _SHIFT)
        middle = 0.5 * (start + np.append(start[1:], start[-1]))[place]
        rank: FloatArray = np.where(values > 0.0, middle, 0.5 * self.n_zero)
        return rank - 0.5 * self.n_finite

    def share_below(self, bound: float) -> float:
        """The part of the finite values that are below a bound; NaN where there are none.

        Values of the bound's own bin are all counted as its middle; exact at the ends.
        """
        if not self.n_finite:
            return float("nan")
        if bound <= self.minimum:
            return 0.0
        if bound > self.maximum:
            return 1.0
        below = self.bin_count[bin_middle(self.bin_index) < bound]
        return (self.n_zero + int(below.sum())) / self.n_finite

    def quantile(self, q: float) -> float:
        """Return the smallest value that a part ``q`` of the finite values does not exceed.

        ``numpy.quantile(values, q, method="inverted_cdf")`` to a relative 2^-11 (the middle of its
        bin); exact at the ends, NaN without finite values.
        """
        if not 0.0 <= q <= 1.0:
            raise ValueError(f"q is {q}, it must lie in 0..1")
        rank = max(int(np.ceil(q * self.n_finite)), 1)
        if self.n_finite == 0:
            return float("nan")
        if rank == self.n_finite:
            return self.maximum
        if rank == 1 or rank <= self.n_zero:
            return self.minimum
        place = int(np.searchsorted(np.cumsum(self.bin_count), rank - self.n_zero))
        middle = bin_middle(self.bin_index[place : place + 1])[0]
        return float(np.clip(middle, self.minimum, self.maximum))


def bin_middle(index: NDArray[np.int64]) -> FloatArray:
    """The middle of each bin, (n,)."""
    lower, upper = (np.stack([index, index + 1]) << _SHIFT).view(np.float64)
    middle: FloatArray = lower + 0.5 * (np.minimum(upper, np.finfo(np.float64).max) - lower)
    return middle


def pack(sketches: Sequence[QuantileSketch]) -> dict[str, NDArray[Any]]:
    """Arrays that hold some sketches exactly: what `unpack` takes back."""
    counts = [len(sketch.bin_index) for sketch in sketches]
    return {
        "bin_edge": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        "bin_index": np.concatenate([_no_counts(), *(s.bin_index for s in sketches)]),
        "bin_count": np.concatenate([_no_counts(), *(s.bin_count for s in sketches)]),
        "n_zero": np.array([s.n_zero for s in sketches], np.int64),
        "n_inf": np.array([s.n_inf for s in sketches], np.int64),
        "minimum": np.array([s.minimum for s in sketches], np.float64),
        "maximum": np.array([s.maximum for s in sketches], np.float64),
    }


def unpack(arrays: Mapping[str, NDArray[Any]]) -> list[QuantileSketch]:
    """The sketches of `pack`."""
    return [
        QuantileSketch(
            arrays["bin_index"][start:stop],
            arrays["bin_count"][start:stop],
            int(arrays["n_zero"][k]),
            int(arrays["n_inf"][k]),
            float(arrays["minimum"][k]),
            float(arrays["maximum"][k]),
        )
        for k, (start, stop) in enumerate(pairwise(arrays["bin_edge"].tolist()))
    ]
