"""Members of committees: the same for any number of others, drawn with the right spread."""

import numpy as np
import pytest
from core_oracle import Array, factorize_rows, steep_rows, telling_tests
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest
from test_core_tiles import tiled

from dlpr.core.committee import committee_variance, draw, spread, subsample
from dlpr.core.factor import Factor, SpectralFactor
from dlpr.core.factorize import factorize
from dlpr.core.folds import Triangle
from dlpr.core.tiles import Tiling
from dlpr.errors import NumericsError

A = 0.3
N = 3000


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(0, 60),
    more=st.integers(0, 9),
    member=st.integers(0, 9),
    seed=st.integers(0, 2**64 - 1),
)
def test_structures_that_are_appended_move_no_other(
    n: int, more: int, member: int, seed: int
) -> None:
    longer = subsample(seed, member, 0.7, n + more)
    assert longer.shape == (n + more,)
    np.testing.assert_array_equal(subsample(seed, member, 0.7, n), longer[:n])


def test_membership_is_by_chance() -> None:
    chosen = np.array([subsample(1, member, 0.8, 20_000) for member in range(6)])
    np.testing.assert_allclose(chosen.mean(axis=1), 0.8, atol=5 * np.sqrt(0.16 / 20_000))
    correlation = np.corrcoef(chosen) - np.eye(6)
    assert np.abs(correlation).max() < 5 / np.sqrt(20_000)
    successive = np.corrcoef(chosen[:, :-1].ravel(), chosen[:, 1:].ravel())[0, 1]
    assert abs(successive) < 5 / np.sqrt(120_000)
    other = subsample(2, 0, 0.8, 20_000)
    assert abs(np.corrcoef(chosen[0], other)[0, 1]) < 5 / np.sqrt(20_000)


def test_numbers_are_those_of_philox() -> None:
    """The first words of the generator, so that another NumPy would be found out."""
    words = np.random.Philox(key=5 + (3 << 64)).random_raw(7)
    expected = ((words >> np.uint64(12)) + 0.5) / 2**52 < 0.4
    assert 0 < expected.sum() < 7
    np.testing.assert_array_equal(subsample(5, 3, 0.4, 7), expected)


def factors() -> dict[str, tuple[Factor, Array]]:
    """Factors of every form, with rows to predict."""
    tall, wide, mu = steep_rows(40, 12, 2.0, 0), steep_rows(7, 25, 2.0, 0), 1e-3
    fold = Triangle.zeros(12)
    fold.update(tall)
    tests = telling_tests(tall, 0)
    return {
        "triangle": (factorize(fold, mu, 40, "qr")[0], tests),
        "eigenbasis": (factorize(fold, mu, 40, "eigh")[0], tests),
        "free": (factorize(fold, 0.0, 40, "eigh")[0], tests),
        "dual": (factorize_rows(wide, mu)[0], telling_tests(wide, 0)),
        "tiles": (tiled(tall, Tiling((0, 5, 9, 12)), mu), tests),
        "tiles in another order": (tiled(tall, Tiling((0, 5, 9, 12)), mu, (2, 0, 1)), tests),
    }


@pytest.mark.parametrize("form", factors())
def test_drawn_members_spread_as_the_rigidity_says(form: str) -> None:
    """Variance ``a^2/R`` about the fit's prediction, for every row (FD24 eq. 2)."""
    factor, tests = factors()[form]
    weights = np.random.default_rng(0).normal(size=tests.shape[1])
    members = draw(factor, weights, N, 11, A)
    assert members.shape == (N, len(weights))
    expected = A**2 / factor.rigidity(tests)
    ratio = committee_variance(tests, spread(members)) / expected
    np.testing.assert_allclose(ratio, 1.0, atol=5 * np.sqrt(2 / N))
    shift = tests @ (members.mean(axis=0) - weights)
    assert (np.abs(shift) < 5 * np.sqrt(expected / N)).all()
    np.testing.assert_array_equal(draw(factor, weights, N, 11, A), members)
    # a member does not know of the others, but for the order in which BLAS adds
    np.testing.assert_allclose(draw(factor, weights, 7, 11, A), members[:7], rtol=1e-9, atol=1e-9)
    assert not np.isin(draw(factor, weights, 7, 12, A), members).any()


@pytest.mark.parametrize("form", factors())
def test_the_root_is_one_of_the_inverse(form: str) -> None:
    """Its square gives 1/R of every row, to rounding."""
    factor, tests = factors()[form]
    root = factor.root_solve(np.eye(tests.shape[1], order="F"))
    np.testing.assert_allclose(np.square(tests @ root).sum(axis=1), 1 / factor.rigidity(tests))


def test_draws_are_gaussian() -> None:
    factor = SpectralFactor(np.eye(1), np.ones(1), 0.0)
    z = draw(factor, np.zeros(1), N, 4)[:, 0]
    assert kstest(z, "norm").pvalue > 1e-3


def test_variance_is_about_the_committees_mean() -> None:
    """Of predictions of 1e8 that differ by 1e-3: no digit is lost to the mean."""
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(20, 5))
    offsets = 1e-3 * rng.normal(size=(8, 5))
    expected = np.var(rows @ offsets.T, axis=1, ddof=1)
    far = committee_variance(rows, spread(offsets + 1e8))
    np.testing.assert_allclose(far, expected, rtol=1e-3)
    np.testing.assert_allclose(committee_variance(rows, spread(offsets)), expected, rtol=1e-12)


def test_what_nothing_bounds_is_not_drawn() -> None:
    factor = SpectralFactor(np.eye(4)[:, :3], np.ones(3), 0.0)
    with pytest.raises(NumericsError, match=r"4 columns and rank 3.*1 directions"):
        draw(factor, np.zeros(4), 3, 0)
