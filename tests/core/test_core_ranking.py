"""Ranks of errors beside ranks of rigidities: against SciPy, and counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from dlpr.core.ranking import Ranking


def test_the_correlation_is_spearmans_of_the_inverse() -> None:
    rng = np.random.default_rng(0)
    rigidity = rng.exponential(size=80).round(1) + 0.1  # some are equal
    size = np.abs(rng.normal(size=80)) / np.sqrt(rigidity)
    expected = spearmanr(1.0 / rigidity, size).statistic
    assert expected > 0.3
    assert Ranking(rigidity, size).rank_correlation == pytest.approx(expected)


def test_a_rigidity_of_zero_is_the_least() -> None:
    found = Ranking(np.array([3.0, 2.0, 0.0]), np.array([1.0, 2.0, 9.0]))
    assert found.rank_correlation == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("rigidity", "size"), [([], []), ([1, 2], [2, 1]), ([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [4] * 3)]
)
def test_ranks_that_say_nothing(rigidity: list[float], size: list[float]) -> None:
    assert Ranking(np.array(rigidity, float), np.array(size, float)).rank_correlation is None


def test_enrichment_counted_by_hand() -> None:
    size = np.arange(200.0)  # the largest ten: 190 to 199
    rigidity = np.full(200, 5.0)
    rigidity[[0, 1, 2, 3, 4, 5, 6, 195, 198, 199]] = 1.0
    ranking = Ranking(rigidity, size)
    found = ranking.enrichment(0.05)
    assert (found.n_worst, found.n_least, found.n_found) == (10, 10, 3)
    assert found.factor == pytest.approx(3 / (10 * 10 / 200))
    few = ranking.enrichment(0.01)
    assert (few.n_worst, few.n_found, few.factor) == (2, 2, 20.0)


@given(st.integers(1, 300), st.integers(0, 10), st.sampled_from([0.01, 0.05, 0.3]))
def test_chance_is_one_and_bounds_are_kept(n: int, seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    rigidity, size = rng.random(n), rng.random(n)
    found = Ranking(rigidity, size).enrichment(share)
    best = Ranking(-size, size).enrichment(share)
    assert 0 <= found.n_found <= best.n_found == min(best.n_worst, best.n_least)
    assert Ranking(rigidity, size).enrichment(share, among=1.0).factor == pytest.approx(1.0)
