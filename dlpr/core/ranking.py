"""Does low rigidity find large errors? Ranks of the two beside one another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlpr.core.rows import FloatArray


@dataclass(frozen=True)
class Enrichment:
    """How many of the largest errors are among the least rigid."""

    share: float
    """of all that count as the largest errors"""
    n: int
    n_worst: int
    n_least: int
    """least rigid"""
    n_found: int
    """of the largest errors, among the least rigid"""

    @property
    def factor(self) -> float:
        """Times as many as chance finds: 1 where rigidity says nothing, at most n / n_least."""
        return self.n_found * self.n / (self.n_worst * self.n_least)


class Ranking:
    """Some structures in the order of their rigidities, and in that of their errors.

    Parameters
    ----------
    rigidity, size : (n,) float64
        Rigidities and absolute errors; of equal ones the first come first.

    Attributes
    ----------
    least, worst : (n,) int64
        Places of the structures, the least rigid first, and the largest error first.
    """

    def __init__(self, rigidity: FloatArray, size: FloatArray) -> None:
        self._rigidity, self._size = rigidity, size
        self.least = np.argsort(rigidity, kind="stable")
        self.worst = np.argsort(-size, kind="stable")

    def enrichment(self, share: float, among: float = 0.05) -> Enrichment:
        """Look for the largest errors among the least rigid, of one structure at least.

        Parameters
        ----------
        share, among : float
            Parts of all that are the largest errors, and the least rigid: rounded up.
        """
        n = len(self._size)
        n_worst, n_least = (int(np.ceil(part * n)) for part in (share, among))
        found = np.isin(self.worst[:n_worst], self.least[:n_least])
        return Enrichment(share, n, n_worst, n_least, int(np.count_nonzero(found)))

    @property
    def rank_correlation(self) -> float | None:
        """Spearman's, of ``1 / R`` with absolute errors: 1 where they go rank for rank.

        None for fewer than three structures, or where all of one kind are equal.
        """
        if len(self._size) < 3:
            return None
        low = _mid_ranks(self._rigidity, self.least)
        large = _mid_ranks(self._size, self.worst)
        norm = float(np.sqrt(np.sum(low * low) * np.sum(large * large)))
        return float(np.sum(low * large)) / norm if norm > 0.0 else None


def _mid_ranks(values: FloatArray, order: NDArray[np.int64]) -> FloatArray:
    """(n,) ranks less their mean; equal values share the mean of their ranks."""
    ordered = values[order]
    starts = np.concatenate([[True], ordered[1:] != ordered[:-1], [True]])
    edges = np.flatnonzero(starts)
    ranks = np.empty(len(values))
    ranks[order] = np.repeat(0.5 * (edges[1:] + edges[:-1] - len(values)), np.diff(edges))
    return ranks
