"""Fits without their energies per atom, against dense solutions with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from core_oracle import steep_rows

from dlpr.core.baseline import Folded, fitted, given
from dlpr.core.decomposition import Decomposition
from dlpr.core.folds import Gram, Triangle

Array = np.ndarray[Any, Any]


def problem() -> tuple[Array, Array, Array]:
    """Rows of 6 features, numbers of atoms of 2 species, targets that they nearly fit."""
    rng = np.random.default_rng(3)
    rows = steep_rows(30, 6, 2.0, seed=1)
    count = rng.integers(1, 5, (30, 2)).astype(float)
    y = rows @ rng.normal(size=6) + count @ [-3.0, 5.0] + 0.01 * rng.normal(size=30)
    return rows, count, y


def forms(matrix: Array) -> dict[str, Folded]:
    made: dict[str, Folded] = {"rows": matrix}
    for kind in (Gram, Triangle):
        fold = kind.zeros(matrix.shape[1])
        fold.update(matrix)
        made[kind.__name__] = fold
    return made


COLUMNS = np.array([0, 1, 6, 2, 3, 4, 5, 7])
"""Two species whose blocks of features end with a number of atoms."""
CONSTANTS = np.array([2, 7])


def decomposed(reduced: Folded, n: int) -> Decomposition:
    """The decomposition of a fold, or of rows that are folded here."""
    if isinstance(reduced, np.ndarray):
        fold = Triangle.zeros(reduced.shape[1])
        fold.update(reduced)
        reduced = fold
    return Decomposition.of_fold(reduced, reduced.matrix.shape[1] - 1, n)


@pytest.mark.parametrize("form", ["rows", "Gram", "Triangle"])
def test_fitted_energies_keep_their_own_regularizer(form: str) -> None:
    rows, count, y = problem()
    matrix = np.hstack([np.hstack([rows, count])[:, COLUMNS], y[:, None]])
    nu, mu = 0.3, np.array([1e-4, 1e-1, 10.0])
    folded = forms(matrix)[form]
    reduced, baseline = fitted(folded, CONSTANTS, nu)
    found = decomposed(reduced, len(y))
    weights = found.weights(mu)
    tests = np.random.default_rng(4).normal(size=(5, 6))
    number = np.arange(10.0).reshape(5, 2)
    for k, one in enumerate(mu):
        both = np.hstack([rows, count])
        hessian = both.T @ both + np.diag([one] * 6 + [nu] * 2)
        expected = np.linalg.solve(hessian, both.T @ y)
        np.testing.assert_allclose(weights[:, k], expected[:6], rtol=1e-7, atol=1e-10)
        error = y - both @ expected
        left = baseline.target(y, count) - baseline.rows(rows, count) @ weights[:, k]
        np.testing.assert_allclose(left, error, atol=1e-9)
        square = len(y) * found.rmse(mu)[k] ** 2 - baseline.penalty(weights)[k]
        assert square == pytest.approx(error @ error, rel=1e-7)
        own = np.hstack([tests, number])
        variance = np.einsum("ij,ji->i", own, np.linalg.solve(hessian, own.T))
        rigidity = found.rigidity(baseline.rows(tests, number), mu)[:, k]
        whole = 1.0 / rigidity + baseline.variance(number)
        np.testing.assert_allclose(whole, variance, rtol=1e-7)


@pytest.mark.parametrize("form", ["rows", "Gram", "Triangle"])
def test_given_energies_leave_the_targets(form: str) -> None:
    rows, count, y = problem()
    matrix = np.hstack([np.hstack([rows, count])[:, COLUMNS], y[:, None]])
    energy, mu = np.array([-3.0, 5.0]), np.array([1e-4, 1.0])
    folded = forms(matrix)[form]
    before = np.array(folded if isinstance(folded, np.ndarray) else folded.matrix)
    reduced, baseline = given(folded, CONSTANTS, energy)
    found = decomposed(reduced, len(y))
    for k, one in enumerate(mu):
        left = y - count @ energy
        expected = np.linalg.solve(rows.T @ rows + one * np.eye(6), rows.T @ left)
        np.testing.assert_allclose(found.weights(mu)[:, k], expected, rtol=1e-7, atol=1e-10)
        error = left - rows @ expected
        assert found.rmse(mu)[k] == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-7)
    np.testing.assert_array_equal(baseline.target(y, count), y - count @ energy)
    np.testing.assert_array_equal(baseline.variance(count), np.zeros(30))
    np.testing.assert_array_equal(
        folded if isinstance(folded, np.ndarray) else folded.matrix, before
    )
