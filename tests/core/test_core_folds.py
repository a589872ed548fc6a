import numpy as np
import pytest
from core_oracle import Array, steep_rows, telling_tests
from hypothesis import given, settings
from hypothesis import strategies as st

from dlpr.core.decomposition import Decomposition
from dlpr.core.factorize import factorize
from dlpr.core.folds import Gram, Triangle

FOLDS = [(Gram, "cholesky"), (Triangle, "qr")]
Kind = type[Gram] | type[Triangle]


def square(fold: Gram | Triangle) -> Array:
    """G^T G of either fold."""
    if isinstance(fold, Triangle):
        return fold.matrix.T @ fold.matrix
    upper = np.triu(fold.matrix)
    return upper + np.triu(upper, 1).T


def folded(kind: Kind, parts: list[Array], groups: Array | None = None) -> Gram | Triangle:
    """Fold parts of rows; each group into its own partial, partials added in order."""
    groups = np.zeros(len(parts), dtype=int) if groups is None else groups
    total = kind.zeros(parts[0].shape[1])
    for group in np.unique(groups):
        partial = kind.zeros(parts[0].shape[1])
        for part, own in zip(parts, groups, strict=True):
            if own == group:
                partial.update(part)
        total.add(partial)  # type: ignore[arg-type]
    return total


@pytest.mark.parametrize(("kind", "solver"), FOLDS)
@settings(max_examples=15, deadline=None)
@given(data=st.data(), n_rows=st.integers(1, 90), n_columns=st.integers(1, 60))
def test_any_split_and_grouping_agree(
    kind: Kind, solver: str, data: st.DataObject, n_rows: int, n_columns: int
) -> None:
    rows = steep_rows(n_rows, n_columns, 3.0, seed=n_rows)
    cuts = sorted(data.draw(st.lists(st.integers(0, n_rows), max_size=6)))
    parts = np.split(rows, cuts)
    groups = np.array([data.draw(st.integers(0, 2)) for _ in parts])
    whole, split = folded(kind, [rows]), folded(kind, parts, groups)
    np.testing.assert_allclose(square(split), rows.T @ rows, rtol=0, atol=1e-14)
    again = folded(kind, parts, groups)
    np.testing.assert_array_equal(split.matrix, again.matrix)

    tests = telling_tests(rows, seed=1)
    one, conditioning = factorize(whole, 1e-7, n_rows, solver)
    other, _ = factorize(split, 1e-7, n_rows, solver)
    np.testing.assert_allclose(
        other.rigidity(tests), one.rigidity(tests), rtol=2 * conditioning.accuracy
    )


@pytest.mark.parametrize(("kind", "solver"), FOLDS)
def test_folding_needs_no_second_matrix(kind: Kind, solver: str) -> None:
    rows = np.random.default_rng(0).normal(size=(7, 70))
    kept = rows.copy()
    fold = kind.zeros(70)
    held = fold.matrix
    fold.update(rows)
    other = kind.zeros(70)
    other.update(2 * rows)
    before = other.matrix.copy()
    fold.add(other)  # type: ignore[arg-type]
    fold.update(np.empty((0, 70)))
    assert np.shares_memory(fold.matrix, held)
    np.testing.assert_array_equal(rows, kept)
    np.testing.assert_array_equal(other.matrix, before)
    np.testing.assert_allclose(square(fold), 5 * rows.T @ rows, rtol=1e-12, atol=1e-12)
    matrix = fold.matrix.copy()
    factorize(fold, 1.0, 14, solver)
    np.testing.assert_array_equal(fold.matrix, matrix)


@pytest.mark.parametrize("kind", [Gram, Triangle])
def test_rows_of_any_strides_and_scale(kind: Kind) -> None:
    """Columns of a wider block that may not be written, of more rows than are copied at a time."""
    rng = np.random.default_rng(1)
    wide, scale = rng.normal(size=(1500, 21)), rng.random(1500)
    wide.flags.writeable = False
    for rows in (wide, wide[:, 4:13], wide[:, ::2], wide[::-1].T[:, :21].T):
        for factor in (None, scale[: len(rows)]):
            fold = kind.zeros(rows.shape[1])
            fold.update(rows, factor)
            weighted = rows if factor is None else rows * factor[:, None]
            np.testing.assert_allclose(square(fold), weighted.T @ weighted, rtol=1e-11, atol=1e-11)


def test_triangle_is_triangular() -> None:
    fold = folded(Triangle, np.array_split(steep_rows(40, 55, 2.0, 0), 3), np.array([0, 1, 1]))
    np.testing.assert_array_equal(np.tril(fold.matrix, -1), 0.0)


@pytest.mark.parametrize("kind", [Gram, Triangle])
@pytest.mark.parametrize("mu", [0.1, 0.0])
def test_folded_targets_give_weights_for_any_baseline(kind: Kind, mu: float) -> None:
    rng = np.random.default_rng(0)
    rows, y, composition = rng.normal(size=(20, 5)), rng.normal(size=20), rng.random((20, 2))
    every = np.column_stack([rows[:, :2], composition[:, :1], rows[:, 2:], composition[:, 1:], y])
    fold, constants = folded(kind, np.array_split(every, 3)), np.array([2, 6])
    baseline = np.array([1.5, -0.5])
    fold.shift_target(constants, baseline)
    chosen = fold.select(np.array([0, 1, 3, 4, 5, 7]), np.array([1, 2, 1, 1, 1, 1.0]))
    g = rows * [1, 2, 1, 1, 1]
    expected = np.linalg.solve(g.T @ g + mu * np.eye(5), g.T @ (y - composition @ baseline))
    np.testing.assert_allclose(
        Decomposition.of_fold(chosen, 5, 20).weights(np.array([mu]))[:, 0], expected, rtol=1e-11
    )


@pytest.mark.parametrize("kind", [Gram, Triangle])
def test_weights_of_a_sum_are_those_of_repeated_rows(kind: Kind) -> None:
    rows = np.random.default_rng(1).normal(size=(12, 4))
    total = folded(kind, [rows])
    total.add(folded(kind, [rows[:5]]), 2.0)  # type: ignore[arg-type]
    expected = folded(kind, [rows, rows[:5], rows[:5]])
    np.testing.assert_allclose(square(total), square(expected), rtol=1e-12, atol=1e-12)
