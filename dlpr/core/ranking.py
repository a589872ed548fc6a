"""Does low rigidity find large errors? Ranks of the two beside one another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

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


def enrichment(
    rigidity: FloatArray, size: FloatArray, share: float, among: float = 0.05
) -> Enrichment:
    """Look for the largest errors among the least rigid.

    Parameters
    ----------
    rigidity, size : (n,) float64
        Rigidities and absolute errors, n at least 1; of equal ones the first come first.
    share, among : float
        Parts of all that are the largest errors, and the least rigid: rounded up.
    """
    n = len(size)
    n_worst, n_least = (int(np.ceil(part * n)) for part in (share, among))
    worst = np.argsort(-size, kind="stable")[:n_worst]
    least = np.argsort(rigidity, kind="stable")[:n_least]
    return Enrichment(share, n, n_worst, n_least, len(np.intersect1d(worst, least)))


def rank_correlation(rigidity: FloatArray, size: FloatArray) -> float | None:
    """Spearman's, of ``1 / R`` with absolute errors: 1 where the least rigid has the largest error.

    None for fewer than three values, or where all of one kind are equal.
    """
    if len(size) < 3 or np.ptp(rigidity) == 0.0 or np.ptp(size) == 0.0:
        return None
    return -float(spearmanr(rigidity, size).statistic)
