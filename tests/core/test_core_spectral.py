"""Fewer directions than columns: the dual form, the truncated eigenbasis, and their bounds."""

import numpy as np
import pytest
from core_oracle import Array, exact_rigidity, factorize_rows, steep_rows, telling_tests

from dlpr.core import factor as factor_module
from dlpr.core import factorize as factorize_module
from dlpr.core.factor import (
    EPS,
    RESIDUAL_ERROR,
    RESIDUAL_RTOL,
    SOLVE_ROWS,
    SpectralFactor,
    TriangularFactor,
    load_factor,
)
from dlpr.core.factorize import (
    TRUNCATION,
    factorize,
    factorize_automatically,
    kept_directions,
    prefers_basis,
)
from dlpr.core.folds import Gram, Triangle
from dlpr.errors import JobError, NumericsError


def folded(rows: Array, kind: type[Gram] | type[Triangle]) -> Gram | Triangle:
    fold = kind.zeros(rows.shape[1])
    fold.update(rows)
    return fold


@pytest.fixture
def residuals(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of rows whose residual was computed."""
    counts: list[int] = []
    compute = SpectralFactor._outside

    def counted(self: SpectralFactor, rows: Array, projection: Array) -> Array:
        counts.append(len(rows))
        return compute(self, rows, projection)

    monkeypatch.setattr(SpectralFactor, "_outside", counted)
    return counts


@pytest.mark.parametrize("decades", [4, 8, 12, 16, 20])
def test_dual_form_is_as_accurate_as_stated(decades: int) -> None:
    """cond(H) = 10^decades, against 500 bits."""
    rows, mu = steep_rows(12, 50, decades / 2 + 0.1, seed=decades), 10.0**-decades
    tests = telling_tests(rows, seed=decades)
    exact = exact_rigidity(rows, mu, tests)
    factor, stated = factorize_rows(rows, mu)
    assert np.abs(factor.rigidity(tests) / exact - 1.0).max() <= stated.accuracy
    assert stated.accuracy == pytest.approx(5 * EPS * 10 ** (decades / 2) + RESIDUAL_RTOL, rel=0.1)
    assert (stated.solver, stated.n_rows, stated.n_columns) == ("dual", 12, 50)
    assert (stated.rank, stated.rank_rtol) == (12, 50 * EPS)
    assert stated.condition == pytest.approx(1 / mu, rel=0.01)
    _, other = factorize(folded(rows, Triangle), mu, 12, "qr")
    assert stated.sigma_max == pytest.approx(other.sigma_max, rel=1e-12)
    assert (stated.n_determined, stated.n_kept) == (other.n_determined, other.n_kept)
    np.testing.assert_array_equal(
        load_factor(factor.to_arrays()).rigidity(tests), factor.rigidity(tests)
    )


def test_residuals_are_computed_where_the_difference_of_norms_fails(
    residuals: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, mu = steep_rows(12, 50, 6.0, seed=0), 1e-12
    factor, stated = factorize_rows(rows, mu)
    anywhere = np.random.default_rng(1).normal(size=(20, 50))
    inside = np.random.default_rng(2).normal(size=(60, 12)) @ rows
    tests = np.vstack([anywhere, inside])
    exact = exact_rigidity(rows, mu, tests)
    error = np.abs(factor.rigidity(tests) / exact - 1.0)
    assert residuals == [60]
    assert error.max() < stated.accuracy < 1e-8
    monkeypatch.setattr(factor_module, "RESIDUAL_RTOL", np.inf)
    careless = np.abs(factor.rigidity(tests) / exact - 1.0)
    assert residuals == [60]
    assert careless[:20].max() < stated.accuracy
    assert careless[20:].max() > 1e3 * stated.accuracy


@pytest.mark.parametrize("mu", [1e-3, 1e-5, 1e-7])
def test_prior_ratio_times_rounding_bounds_the_error(
    mu: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of rows from the span of the data to far from it, without any residual."""
    rows = steep_rows(12, 50, 2.0, seed=3)
    rng = np.random.default_rng(4)
    tests = rng.normal(size=(40, 12)) @ rows
    tests += np.logspace(-9, 0, 40)[:, None] * rng.normal(size=(40, 50))
    exact = exact_rigidity(rows, mu, tests)
    factor, _ = factorize_rows(rows, mu)
    monkeypatch.setattr(factor_module, "RESIDUAL_RTOL", np.inf)
    error = np.abs(factor.rigidity(tests) / exact - 1.0)
    prior_ratio = exact * (tests**2).sum(axis=1) / mu
    bound = RESIDUAL_ERROR * EPS * prior_ratio
    assert (error <= bound + 1e-13).all()
    assert error.max() > 0.01 * bound.max()


@pytest.mark.parametrize(("shape", "decades"), [((20, 50), 1), ((199, 700), 8), ((30, 3000), 2)])
def test_difference_of_norms_errs_as_little_as_stated(shape: tuple[int, int], decades: int) -> None:
    rows = steep_rows(*shape, decades, seed=5)
    factor, _ = factorize_rows(rows, 1e-20)
    rng = np.random.default_rng(6)
    tests = np.vstack([rng.normal(size=(50, shape[1])), rng.random((50, shape[1])), rows])
    tests = np.vstack([tests, factor.basis.T])
    projection = tests @ factor.basis
    square = np.einsum("ij,ij->i", tests, tests)
    difference = square - np.einsum("ij,ij->i", projection, projection)
    error = np.abs(difference - factor._outside(tests, projection)) / (EPS * square)
    assert 0.1 * RESIDUAL_ERROR < error.max() < 0.8 * RESIDUAL_ERROR


@pytest.mark.parametrize("kind", [Gram, Triangle])
def test_truncated_basis_moves_rigidities_less_than_stated(
    kind: type[Gram] | type[Triangle], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, mu = steep_rows(60, 24, 4.0, seed=7), 1e-4
    tests = telling_tests(rows, seed=7)
    exact = exact_rigidity(rows, mu, tests)
    for tolerance in (1e-1, 1e-2, 1e-3):
        monkeypatch.setattr(factorize_module, "TRUNCATION", tolerance)
        factor, stated = factorize(folded(rows, kind), mu, 60, "eigh")
        assert isinstance(factor, SpectralFactor)
        kept = np.count_nonzero(np.linalg.svd(rows)[1] ** 2 > tolerance * mu)
        assert stated.n_kept == factor.basis.shape[1] == kept < 24
        fall = 1.0 - factor.rigidity(tests) / exact
        assert fall.min() > -1e-9
        assert 0.1 * tolerance < fall.max() <= stated.accuracy
        assert stated.accuracy == pytest.approx(tolerance, rel=1e-5)


def test_truncation_as_shipped() -> None:
    rows, mu = steep_rows(90, 40, 12.0, seed=8), 1e-6
    tests = telling_tests(rows, seed=8)
    factor, stated = factorize(folded(rows, Triangle), mu, 90, "eigh")
    assert isinstance(factor, SpectralFactor)
    assert stated.n_kept == factor.basis.shape[1] < 30
    error = np.abs(factor.rigidity(tests) / exact_rigidity(rows, mu, tests) - 1.0).max()
    assert error <= stated.accuracy < 2e-8


def test_kept_directions_and_preference() -> None:
    spectrum = np.array([3.0, 2 * TRUNCATION, TRUNCATION, 0.5 * TRUNCATION, 0.0])
    assert kept_directions(spectrum, 1.0) == 2
    assert kept_directions(spectrum, 0.0) == 4
    assert prefers_basis(33, 100)
    assert not prefers_basis(34, 100)


@pytest.mark.parametrize("rank", [10, 30])
def test_few_directions_are_taken_as_a_basis_of_their_own_accord(rank: int) -> None:
    rng = np.random.default_rng(15)
    rows = rng.normal(size=(90, rank)) @ rng.normal(size=(rank, 60))
    tests = np.vstack([rows[:9], rng.normal(size=(9, 60))])
    factor, stated = factorize_automatically(folded(rows, Triangle), 1e-6, 90, 60)
    assert isinstance(factor, SpectralFactor) == (rank == 10)
    assert stated.n_kept == rank
    error = np.abs(factor.rigidity(tests) / exact_rigidity(rows, 1e-6, tests) - 1.0).max()
    assert error <= stated.accuracy < 2e-8
    assert isinstance(
        factorize_automatically(folded(rows, Gram), 1e-2, 90, 60)[0], TriangularFactor
    )
    narrow, _ = factorize_automatically(folded(rows, Triangle), 1e-6, 90, 3 * rank)
    assert isinstance(narrow, TriangularFactor)


def test_dual_form_without_regularizer(residuals: list[int]) -> None:
    """Rank 5 of 9 rows: as from the triangle; residuals only where the answer is in doubt."""
    rng = np.random.default_rng(9)
    rows = rng.normal(size=(9, 5)) @ rng.normal(size=(5, 40))
    factor, stated = factorize_rows(rows, 0.0)
    other, expected = factorize(folded(rows, Triangle), 0.0, 9, "qr")
    assert (stated.rank, expected.rank, factor.basis.shape[1]) == (5, 5, 5)
    assert stated.condition == pytest.approx(expected.condition, rel=1e-9)
    tests = np.vstack([rng.normal(size=(6, 9)) @ rows, rng.normal(size=(8, 40)), np.zeros((1, 40))])
    found = factor.rigidity(tests)
    assert residuals == [7]
    np.testing.assert_allclose(found, other.rigidity(tests), rtol=1e-10)
    assert (found[:6] > 0.0).all()
    np.testing.assert_array_equal(found[6:14], 0.0)
    assert found[14] == np.inf


def test_more_rows_than_are_solved_at_a_time() -> None:
    """Strips of a memory that may not be written, and any strides."""
    rows = steep_rows(12, 30, 3.0, seed=10)
    tests = np.random.default_rng(11).normal(size=(2 * SOLVE_ROWS + 3, 30))
    tests[::3] = tests[::3, :12] @ rows
    tests.flags.writeable = False
    dual, stated = factorize_rows(rows, 1e-9)
    triangular, _ = factorize(folded(rows, Triangle), 1e-9, 12, "qr")
    found = dual.rigidity(tests)
    np.testing.assert_allclose(found, triangular.rigidity(tests), rtol=2 * stated.accuracy)
    np.testing.assert_array_equal(dual.rigidity(tests), found)
    for factor in (dual, triangular):
        wide = np.hstack([tests, tests])
        np.testing.assert_allclose(factor.rigidity(wide[:, 30:]), factor.rigidity(tests), rtol=1e-9)


def test_dual_form_of_no_and_of_square_rows() -> None:
    tests = np.random.default_rng(12).normal(size=(3, 6))
    factor, stated = factorize_rows(np.empty((0, 6)), 0.2)
    np.testing.assert_allclose(factor.rigidity(tests), 0.2 / (tests**2).sum(axis=1), rtol=1e-14)
    assert (stated.rank, stated.n_determined, stated.condition, stated.sigma_max) == (0, 0, 1, 0)
    rows = np.random.default_rng(13).normal(size=(6, 6))
    factor, stated = factorize_rows(rows, 0.2)
    np.testing.assert_allclose(factor.rigidity(tests), exact_rigidity(rows, 0.2, tests), rtol=1e-12)
    assert stated.accuracy < 1e-12


def test_refusals() -> None:
    rows = np.random.default_rng(14).normal(size=(4, 6))
    with pytest.raises(JobError, match="regularizer mu is"):
        factorize_rows(rows, -1.0)
    with pytest.raises(JobError, match="6 rows of 4"):
        factorize_rows(rows.T, 1.0)
    with pytest.raises(NumericsError, match="no correct digit"):
        factorize_rows(rows, 1e-34)
    rows[2, 3] = np.nan
    with pytest.raises(NumericsError, match="NaN"):
        factorize_rows(rows, 1.0)
