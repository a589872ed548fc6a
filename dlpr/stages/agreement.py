"""How a committee's variance goes with the rigidity: rank for rank, however many there are."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dlpr.core.quantiles import QuantileSketch
from dlpr.core.rows import FloatArray

Block = tuple[NDArray[np.int64], FloatArray, FloatArray]
"""Of some environments: a label, LPR and variance, each (n,)."""
ALL = -1
"""The label under which all environments are counted once more."""


@dataclass
class Agreement:
    """Variances over the members, and how their ranks go with those of the rigidities."""

    lpr: QuantileSketch = field(default_factory=QuantileSketch)
    variance: QuantileSketch = field(default_factory=QuantileSketch)
    _moments: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))

    def rank(self, lpr: FloatArray, variance: FloatArray) -> None:
        """Add the products of some environments' ranks; all of them are in the sketches."""
        x, y = self.lpr.mid_rank(lpr), self.variance.mid_rank(variance)
        self._moments += [np.sum(x * y), np.sum(x * x), np.sum(y * y)]

    @property
    def rank_correlation(self) -> float | None:
        """Spearman's, values equal that share a bin of the sketch; None where all are equal."""
        product, x, y = self._moments.tolist()
        return product / float(np.sqrt(x * y)) if x * y > 0.0 else None


def agreements(blocks: Callable[[], Iterator[Block]]) -> dict[Hashable, Agreement]:
    """By label, in two passes; environments without a finite rigidity above 0 are left out.

    Parameters
    ----------
    blocks : callable
        Gives all environments anew.
    """
    found: dict[Hashable, Agreement] = {}
    for key, lpr, variance in _by_label(blocks()):
        own = found.setdefault(key, Agreement())
        own.lpr.add(lpr)
        own.variance.add(variance)
    for key, lpr, variance in _by_label(blocks()):
        found[key].rank(lpr, variance)
    return found


def _by_label(blocks: Iterator[Block]) -> Iterator[tuple[int, FloatArray, FloatArray]]:
    for label, lpr, variance in blocks:
        told = (lpr > 0.0) & np.isfinite(lpr)
        yield ALL, lpr[told], variance[told]
        for key in np.unique(label).tolist():
            own = told & (label == key)
            yield key, lpr[own], variance[own]
