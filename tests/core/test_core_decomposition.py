"""One decomposition against direct solutions with 500 bits, for every regularizer."""

import flint
import numpy as np
import pytest
from core_oracle import Array, exact_rigidity, factorize_rows, steep_rows, telling_tests

from dlpr.core.decomposition import (
    Decomposition,
    Scan,
    scan,
    solve_weights,
    square_error,
)
from dlpr.core.factor import EPS
from dlpr.core.factorize import factorize
from dlpr.core.folds import Gram, Triangle
from dlpr.errors import JobError, NumericsError

MU = np.array([1e-10, 1e-7, 1e-4, 1.0])
Kind = type[Gram] | type[Triangle]


def exact_fit(rows: Array, y: Array, mu: float) -> tuple[Array, float]:
    """Weights, and root of the mean squared error, with 500 bits of the given doubles."""
    flint.ctx.prec = 500
    g, target = flint.arb_mat(rows.tolist()), flint.arb_mat([[v] for v in y.tolist()])
    hessian = g.transpose() * g
    for k in range(rows.shape[1]):
        hessian[k, k] += flint.arb(mu)
    w = hessian.solve(g.transpose() * target)
    missed = target - g * w
    square = (missed.transpose() * missed)[0, 0] / len(rows)
    weights = np.array([float(w[k, 0].mid()) for k in range(rows.shape[1])])
    return weights, float(square.sqrt().mid())


def problem(n: int = 60, n_columns: int = 20, noise: float = 1e-3) -> tuple[Array, Array]:
    """Rows whose singular values fall by five decades, and targets that they nearly fit."""
    rows = steep_rows(n, n_columns, 5.0, seed=n)
    rng = np.random.default_rng(7)
    return rows, rows @ rng.normal(size=n_columns) + noise * rng.normal(size=n)


def folded(kind: Kind, *columns: Array, parts: int = 3) -> Gram | Triangle:
    extended = np.column_stack(columns)
    fold = kind.zeros(extended.shape[1])
    for part in np.array_split(extended, parts):
        fold.update(part)
    return fold


def decompositions(rows: Array, y: Array) -> dict[str, Decomposition]:
    n, n_columns = rows.shape
    made = {
        kind.__name__: Decomposition.of_fold(folded(kind, rows, y), n_columns, n)
        for kind in (Gram, Triangle)
    }
    return made | ({"rows": Decomposition.of_rows(rows, y, n)} if n <= n_columns else {})


def stated(rows: Array, mu: float, weights: Array, rmse: float, through_gram: bool) -> float:
    """Relative error of weights as `solve_weights` states it, times 30."""
    sigma = np.linalg.svd(rows, compute_uv=False)
    smallest = sigma[-1] if len(rows) >= rows.shape[1] else 0.0
    k = np.sqrt((sigma[0] ** 2 + mu) / (smallest**2 + mu))
    size = np.linalg.norm(weights)
    rho = np.sqrt(len(rows) * rmse**2 + mu * size**2)
    return 30 * EPS * (k**2 if through_gram else k + k**2 * rho / (sigma[0] * size))


@pytest.mark.parametrize("shape", [(60, 20), (12, 30)], ids=["tall", "wide"])
def test_every_mu_is_a_direct_fit(shape: tuple[int, int]) -> None:
    rows, y = problem(*shape)
    exact = [exact_fit(rows, y, mu) for mu in MU]
    for name, decomposition in decompositions(rows, y).items():
        found = scan(decomposition, MU)
        for k, (mu, (weights, rmse)) in enumerate(zip(MU, exact, strict=True)):
            allowed = stated(rows, mu, weights, rmse, name == "Gram")
            error = np.linalg.norm(found.weights[:, k] - weights) / np.linalg.norm(weights)
            assert error <= allowed, (name, mu)
            root = 50 * EPS * np.linalg.norm(y)
            # a Gram matrix knows the square to some eps (|y| + sigma_max |w|)^2
            size = np.linalg.norm(y) + np.linalg.norm(weights)
            square = 50 * EPS * size**2 / len(y) / rmse if name == "Gram" else 0.0
            assert found.train_rmse[k] == pytest.approx(rmse, rel=0, abs=root + square)


@pytest.mark.parametrize("shape", [(60, 20), (12, 30)], ids=["tall", "wide"])
def test_one_fit_is_as_accurate_as_stated(shape: tuple[int, int]) -> None:
    rows, y = problem(*shape)
    exact = [exact_fit(rows, y, mu) for mu in MU]
    for kind in (Gram, Triangle):
        fold = folded(kind, rows, y)
        before = fold.matrix.copy()
        for mu, (weights, rmse) in zip(MU, exact, strict=True):
            error = np.linalg.norm(solve_weights(fold, shape[1], mu) - weights)
            allowed = stated(rows, mu, weights, rmse, kind is Gram)
            assert error <= allowed * np.linalg.norm(weights)
        np.testing.assert_array_equal(fold.matrix, before)


def test_triangles_keep_digits_that_a_gram_matrix_loses() -> None:
    rows, y = problem(noise=0.0)
    weights, _ = exact_fit(rows, y, 1e-12)
    errors = [
        np.linalg.norm(solve_weights(folded(kind, rows, y), 20, 1e-12) - weights)
        for kind in (Triangle, Gram)
    ]
    assert errors[0] < 1e-2 * errors[1]
    tall = decompositions(rows, y)
    again = [np.linalg.norm(tall[k].weights(MU[:1] * 0.01)[:, 0] - weights) for k in tall]
    assert again[1] < 1e-2 * again[0]


@pytest.mark.parametrize("shape", [(60, 20), (12, 30)], ids=["tall", "wide"])
def test_rigidities_of_every_mu(shape: tuple[int, int]) -> None:
    rows, y = problem(*shape)
    tests = telling_tests(rows, seed=1)
    tests[1] = 0.0
    for name, decomposition in decompositions(rows, y).items():
        found = decomposition.rigidity(tests, MU)
        for k, mu in enumerate(MU):
            exact = exact_rigidity(rows, mu, np.delete(tests, 1, axis=0))
            condition = (1.0 + mu) / mu
            allowed = 10 * EPS * (condition if name == "Gram" else np.sqrt(condition)) + 1e-13
            np.testing.assert_allclose(np.delete(found[:, k], 1), exact, rtol=allowed)
            assert found[1, k] == np.inf


@pytest.mark.parametrize("kind", [Gram, Triangle])
def test_without_a_regularizer_the_shortest_best_weights(kind: Kind) -> None:
    """Rows of half the rank: as lstsq for weights, as the factor of mu = 0 for rigidities."""
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(40, 5)) @ rng.normal(size=(5, 10))
    y = rng.normal(size=40)
    zero = np.array([0.0, 1e-3, 0.0])
    found = Decomposition.of_fold(folded(kind, rows, y), 10, 40)
    assert found.rank == 5
    expected = np.linalg.lstsq(rows, y)[0]
    result = scan(found, zero)
    for k in (0, 2):
        np.testing.assert_allclose(result.weights[:, k], expected, rtol=1e-6, atol=1e-7)
        missed = np.sqrt(np.square(y - rows @ expected).mean())
        assert result.train_rmse[k] == pytest.approx(missed, rel=1e-9)
    inside, outside = rng.normal(size=(3, 40)) @ rows, rng.normal(size=(2, 10))
    tests = np.vstack([inside, outside, np.zeros(10)])
    factor, _ = factorize(folded(kind, rows), 0.0, 40, "eigh")
    np.testing.assert_allclose(found.rigidity(tests, zero)[:, 2], factor.rigidity(tests), rtol=1e-6)
    np.testing.assert_array_equal(found.rigidity(tests, zero)[3:, 0], [0.0, 0.0, np.inf])
    assert (found.rigidity(tests, zero)[3:5, 1] > 0).all()


def test_the_dual_form_without_a_regularizer() -> None:
    rows, y = problem(8, 30)
    tests = telling_tests(rows, seed=2)
    found = Decomposition.of_rows(rows, y, 8)
    np.testing.assert_allclose(rows @ found.weights(np.zeros(1))[:, 0], y, rtol=1e-9)
    assert found.rmse(np.zeros(1)) == [0.0]
    expected = factorize_rows(rows, 0.0)[0].rigidity(tests)
    np.testing.assert_allclose(found.rigidity(tests, np.zeros(1))[:, 0], expected, rtol=1e-9)
    with pytest.raises(JobError, match="31 rows of 30"):
        Decomposition.of_rows(np.ones((31, 30)), np.ones(31), 31)


@pytest.mark.parametrize("kind", [Gram, Triangle])
def test_another_baseline_needs_no_second_fold(kind: Kind) -> None:
    rows, y = problem()
    rng = np.random.default_rng(1)
    composition = rng.integers(1, 9, size=(60, 2)).astype(float)
    fold, mix = folded(kind, rows, y, composition), np.array([1.0, 0.3, -0.7])
    left = y - composition @ -mix[1:]
    own = folded(kind, rows, left)
    np.testing.assert_allclose(
        solve_weights(fold, 20, 1e-3, mix), solve_weights(own, 20, 1e-3), rtol=1e-9
    )
    found = scan(Decomposition.of_fold(fold, 20, 60, mix), MU[1:])
    expected = scan(Decomposition.of_fold(own, 20, 60), MU[1:])
    np.testing.assert_allclose(found.weights, expected.weights, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.train_rmse, expected.train_rmse, rtol=1e-9)


@pytest.mark.parametrize("kind", [Gram, Triangle])
def test_validation_picks_the_regularizer(kind: Kind) -> None:
    """Noise of 0.03 and weights of 1 make mu near 1e-3 the best."""
    rng = np.random.default_rng(5)
    basis = steep_rows(230, 20, 3.0, seed=0) * 3
    y = basis @ rng.normal(size=20) + 0.03 * rng.normal(size=230)
    train, test = slice(30), slice(30, None)
    mu = np.logspace(-9, 3, 25)
    found = scan(Decomposition.of_fold(folded(kind, basis[train], y[train]), 20, 30), mu)
    with pytest.raises(JobError, match="without a validation set"):
        found.best()
    checked = found.validated(square_error(basis[test], y[test], found.weights), 200)
    assert checked.validation_rmse is not None
    direct = [
        np.sqrt(np.mean((y[test] - basis[test] @ exact_fit(basis[train], y[train], m)[0]) ** 2))
        for m in mu[::6]
    ]
    np.testing.assert_allclose(checked.validation_rmse[::6], direct, rtol=1e-6)
    best = checked.best()
    assert checked.validation_rmse[best] == checked.validation_rmse.min()
    assert 1e-6 < mu[best] < 1.0
    assert not checked.at_edge()
    assert (np.diff(checked.train_rmse) > 0).all()


def test_of_equal_errors_the_largest_mu_is_best() -> None:
    flat = Scan(np.array([1.0, 4.0, 2.0, 0.1]), np.zeros((3, 4)), np.ones(4))
    tied = flat.validated(np.array([2.0, 8.0, 2.0, 2.0]), 2)
    assert tied.best() == 2
    assert not tied.at_edge()
    for edge in (1, 3):
        assert flat.validated(np.where(np.arange(4) == edge, 1.0, 2.0), 2).at_edge()
    np.testing.assert_array_equal(tied.validation_rmse, [1.0, 2.0, 1.0, 1.0])


def test_what_cannot_be_fitted_is_refused() -> None:
    rows, y = problem()
    fold = folded(Gram, rows, y)
    for wrong in (0.0, -1.0, np.inf):
        with pytest.raises(JobError, match="need a positive number"):
            solve_weights(fold, 20, wrong)
    with pytest.raises(JobError, match="0 or positive"):
        Decomposition.of_fold(fold, 20, 60).weights(np.array([1.0, -1.0]))
    with pytest.raises(ValueError, match="21 columns is not of 21 features and 1"):
        solve_weights(fold, 21, 1.0)
    with pytest.raises(NumericsError, match="broke down"):
        solve_weights(folded(Gram, np.ones((9, 20)), np.ones(9)), 20, 1e-300)
    with pytest.raises(NumericsError, match="NaN or infinities"):
        solve_weights(folded(Gram, rows * np.nan, y), 20, 1.0)
