"""Members of committees: the same for any blocks, fitted as alone, drawn with the right spread."""

from itertools import pairwise

import numpy as np
import pytest
from core_oracle import Array, steep_rows, telling_tests
from hypothesis import given, settings
from hypothesis import strategies as st

from dlpr.core.committee import (
    Subsample,
    committee_variance,
    draw_members,
    fold_members,
    solve_members,
    uniform,
)
from dlpr.core.factor import SpectralFactor, TriangularFactor
from dlpr.core.factorize import factorize, factorize_rows
from dlpr.core.folds import Gram, Triangle
from dlpr.errors import InputError, JobError, NumericsError

Kind = type[Gram] | type[Triangle]


def blocks(rows: Array, targets: Array, cuts: list[int]) -> list[tuple[int, Array, Array]]:
    edges = [0, *cuts, len(rows)]
    return [(a, rows[a:b], targets[a:b]) for a, b in pairwise(edges)]


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(0, 40),
    cut=st.integers(0, 40),
    n_members=st.integers(2, 9),
    more=st.integers(0, 9),
    seed=st.integers(0, 2**64 - 1),
)
def test_membership_knows_no_blocks(n: int, cut: int, n_members: int, more: int, seed: int) -> None:
    """Nor is it changed by structures or members that are appended."""
    subsample = Subsample(n_members, 0.7, seed)
    whole = subsample.chosen(0, n)
    assert whole.shape == (n, n_members)
    cut = min(cut, n)
    np.testing.assert_array_equal(subsample.chosen(cut, n), whole[cut:])
    wider = Subsample(n_members + more, 0.7, seed).chosen(0, n + more)
    np.testing.assert_array_equal(wider[:n, :n_members], whole)


def test_membership_is_by_chance() -> None:
    chosen = Subsample(6, 0.8, seed=1).chosen(0, 20_000)
    np.testing.assert_allclose(chosen.mean(axis=0), 0.8, atol=5 * np.sqrt(0.16 / 20_000))
    correlation = np.corrcoef(chosen.T) - np.eye(6)
    assert np.abs(correlation).max() < 5 / np.sqrt(20_000)
    successive = np.corrcoef(chosen[:-1].ravel(), chosen[1:].ravel())[0, 1]
    assert abs(successive) < 5 / np.sqrt(120_000)
    other = Subsample(6, 0.8, seed=2).chosen(0, 20_000)
    assert abs(np.corrcoef(chosen.ravel(), other.ravel())[0, 1]) < 5 / np.sqrt(120_000)


def test_numbers_are_those_of_philox() -> None:
    """The first words of the generator, so that another NumPy would be found out."""
    generator = np.random.Philox(key=5)
    words = generator.random_raw(12).reshape(3, 4)
    np.testing.assert_array_equal(
        uniform(5, 1, 3, 3), ((words[1:, :3] >> np.uint64(12)) + 0.5) / 2**52
    )
    numbers = uniform(0, 0, 5000, 5)
    assert ((numbers > 0) & (numbers < 1)).all()
    np.testing.assert_allclose(
        np.quantile(numbers, [0.01, 0.3, 0.9]), [0.01, 0.3, 0.9], atol=5 * 0.5 / np.sqrt(25_000)
    )


@pytest.mark.parametrize("kind", [Gram, Triangle])
def test_members_are_fits_of_their_own_structures(kind: Kind) -> None:
    rng = np.random.default_rng(0)
    rows, y = rng.normal(size=(50, 6)), rng.normal(size=(50, 1))
    y[[4, 17]] = np.nan
    subsample, mu = Subsample(5, 0.6, seed=3), 0.2
    fits = []
    for cuts in ([], [1, 1, 20, 33], list(range(1, 50))):
        folds = fold_members(blocks(rows, y, cuts), subsample, kind, 6)
        fits.append(solve_members(folds, 6, mu))
    chosen = subsample.chosen(0, 50) & ~np.isnan(y)
    assert [fold.n_labelled for fold in folds] == chosen.sum(axis=0).tolist()
    for k in range(5):
        g, target = rows[chosen[:, k]], y[chosen[:, k], 0]
        direct = np.linalg.solve(g.T @ g + mu * np.eye(6), g.T @ target)
        for fit in fits:
            np.testing.assert_allclose(fit[:, k], direct, rtol=1e-10, atol=1e-12)
    assert np.ptp(fits[0], axis=1).min() > 1e-3


def test_members_can_be_folded_one_by_one() -> None:
    rng = np.random.default_rng(1)
    rows, composition = rng.normal(size=(30, 4)), rng.integers(1, 5, (30, 2)).astype(float)
    targets = np.column_stack([rng.normal(size=30), composition])
    mix = np.array([1.0, -0.5, 2.0])
    subsample = Subsample(4, 0.5, seed=9)
    parts = blocks(rows, targets, [11])
    all_at_once = solve_members(fold_members(parts, subsample, Triangle, 4, 3), 4, 0.1, mix)
    for k in range(4):
        alone = fold_members(parts, subsample, Triangle, 4, 3, members=[k])
        np.testing.assert_array_equal(solve_members(alone, 4, 0.1, mix)[:, 0], all_at_once[:, k])
        g = rows[subsample.chosen(0, 30)[:, k]]
        left = (targets @ mix)[subsample.chosen(0, 30)[:, k]]
        direct = np.linalg.solve(g.T @ g + 0.1 * np.eye(4), g.T @ left)
        np.testing.assert_allclose(all_at_once[:, k], direct, rtol=1e-10)


def test_the_jackknife_factor_gives_the_variance_of_a_mean() -> None:
    """One weight that is a mean of N numbers: its variance over training sets is 1/N."""
    n = 3000
    y = np.random.default_rng(2).normal(size=(n, 1))
    for fraction in (0.5, 0.9):
        subsample = Subsample(400, fraction, seed=4)
        members = solve_members(
            fold_members([(0, np.ones((n, 1)), y)], subsample, Gram, 1), 1, 1e-9
        )
        variance = committee_variance(np.ones((1, 1)), members)[0]
        # the variance of 400 numbers scatters by 7 per cent
        assert subsample.variance_factor * variance == pytest.approx(1 / n, rel=0.3)


def factors() -> dict[str, tuple[TriangularFactor | SpectralFactor, Array]]:
    """Factors of every form, with rows to predict."""
    tall, wide, mu = steep_rows(40, 12, 2.0, 0), steep_rows(7, 25, 2.0, 0), 1e-3
    fold = Triangle.zeros(12)
    fold.update(tall)
    return {
        "triangle": (factorize(fold, mu, 40, "qr")[0], telling_tests(tall, 0)),
        "eigenbasis": (factorize(fold, mu, 40, "eigh")[0], telling_tests(tall, 0)),
        "free": (factorize(fold, 0.0, 40, "eigh")[0], telling_tests(tall, 0)),
        "dual": (factorize_rows(wide, mu)[0], telling_tests(wide, 0)),
    }


@pytest.mark.parametrize("form", ["triangle", "eigenbasis", "free", "dual"])
def test_drawn_members_spread_as_the_rigidity_says(form: str) -> None:
    """Variance ``a^2/R`` about the fit's prediction, for every row (FD24 eq. 2)."""
    factor, tests = factors()[form]
    n = 3000
    weights = np.random.default_rng(0).normal(size=tests.shape[1])
    members = draw_members(factor, weights, 0.3, n, seed=11)
    assert members.shape == (len(weights), n)
    expected = 0.3**2 / factor.rigidity(tests)
    ratio = committee_variance(tests, members) / expected
    np.testing.assert_allclose(ratio, 1.0, atol=5 * np.sqrt(2 / n))
    shift = tests @ (members.mean(axis=1) - weights)
    assert (np.abs(shift) < 5 * np.sqrt(expected / n)).all()
    np.testing.assert_array_equal(draw_members(factor, weights, 0.3, n, seed=11), members)
    np.testing.assert_array_equal(draw_members(factor, weights, 0.3, 7, seed=11), members[:, :7])
    assert not np.isin(draw_members(factor, weights, 0.3, 7, seed=12), members).any()


def test_variance_is_about_the_committees_mean() -> None:
    """Of predictions of 1e8 that differ by 1e-3: no digit is lost to the mean."""
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(20, 5))
    offsets = 1e-3 * rng.normal(size=(5, 8))
    found = committee_variance(rows, offsets + 1e8 * np.ones((5, 1)))
    np.testing.assert_allclose(found, np.var(rows @ offsets, axis=1, ddof=1), rtol=1e-3)
    np.testing.assert_allclose(
        committee_variance(rows, offsets), np.var(rows @ offsets, axis=1, ddof=1), rtol=1e-12
    )


def test_what_makes_no_committee_is_refused() -> None:
    with pytest.raises(JobError, match="at least 2 members, and 1"):
        Subsample(1, 0.5, 0)
    for fraction in (0.0, 1.0, 1.5):
        with pytest.raises(JobError, match="between 0 and 1"):
            Subsample(3, fraction, 0)
    with pytest.raises(JobError, match="the seed is -1"):
        Subsample(3, 0.5, -1).chosen(0, 4)
    rows = np.ones((2, 3))
    folds = fold_members([(0, rows, np.full((2, 1), np.nan))], Subsample(3, 0.5, 0), Gram, 3)
    with pytest.raises(InputError, match=r"3 of 3 members .* the first is member 0"):
        solve_members(folds, 3, 1.0)
    singular = TriangularFactor(np.triu(np.ones((4, 4))) - np.diag([0.0, 0.0, 1.0, 0.0]))
    spectral = SpectralFactor(np.eye(4)[:, :3], np.ones(3), 0.0)
    for factor in (singular, spectral):
        with pytest.raises(NumericsError, match="4 columns and rank 3"):
            draw_members(factor, np.zeros(4), 1.0, 3, seed=0)
