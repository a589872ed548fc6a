import numpy as np
import pytest
from core_oracle import Array, steep_rows
from numpy.typing import NDArray
from scipy.linalg.blas import dtrsm

import dlpr.core.substitution as substitution
from dlpr.core.factor import EPS, TriangularFactor
from dlpr.core.substitution import COPY_ROWS, PART_ROWS, Leaf, Substitution


def exact_norm(triangle: Array, rows: Array) -> Array:
    """By substitution with 64 bits of mantissa (x86), which doubles cannot reach."""
    wide: NDArray[np.longdouble] = triangle.astype(np.longdouble)
    solved: NDArray[np.longdouble] = rows.astype(np.longdouble)
    for k in range(len(triangle)):
        solved[:, k] /= wide[k, k]
        solved[:, k + 1 :] -= solved[:, k, None] * wide[k, k + 1 :]
    norm: Array = (solved**2).sum(axis=1).astype(np.float64)
    return norm


def errors(triangle: Array, rows: Array) -> tuple[float, float]:
    """Largest relative error here, and of substitution by BLAS."""
    exact = exact_norm(triangle, rows)
    blas = (dtrsm(1.0, triangle, rows.T, trans_a=1) ** 2).sum(axis=0)
    found = Substitution(triangle).square_norm(rows)
    return np.abs(found / exact - 1).max(), np.abs(blas / exact - 1).max()


def inverted(triangle: Array) -> list[bool]:
    return [s.inverted for s in Substitution(triangle).steps if isinstance(s, Leaf)]


def steep_triangle(kind: str, decades: int, n_columns: int = 260) -> tuple[Array, Array]:
    """R of cond(H) = 10^decades, and rows in and out of the data."""
    rng = np.random.default_rng(decades)
    data = steep_rows(n_columns, n_columns, decades / 2, seed=decades)
    if kind == "decaying columns":
        data = rng.normal(size=data.shape) * np.logspace(0, -decades / 2, n_columns)
    triangle = np.asfortranarray(np.linalg.qr(data)[1])
    weakest = np.linalg.svd(data)[2][-3:]
    return triangle, np.vstack([data[:20], rng.normal(size=(20, n_columns)), weakest])


@pytest.mark.parametrize("decades", [2, 10, 12, 14])
@pytest.mark.parametrize("kind", ["mixed columns", "decaying columns"])
def test_errors_are_those_of_substitution(kind: str, decades: int) -> None:
    triangle, rows = steep_triangle(kind, decades)
    here, blas = errors(triangle, rows)
    assert here <= 5 * blas + 10 * EPS
    assert any(inverted(triangle))


def test_ill_conditioned_triangle_is_not_inverted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kahan's D, columns that depend on D's, and little beside: the inverse's residual tells."""
    n, rng = 40, np.random.default_rng(0)
    sine, cosine = 0.9, np.sqrt(1 - 0.9**2)
    triangle = np.zeros((2 * n, 2 * n), order="F")
    kahan = np.eye(n) - cosine * np.triu(np.ones((n, n)), 1)
    triangle[:n, :n] = sine ** np.arange(n)[:, None] * kahan
    triangle[:n, n:] = triangle[:n, :n] @ rng.normal(size=(n, n)) / 12
    triangle[n:, n:] = 1e-6 * np.eye(n)
    rows = rng.normal(size=(30, 2 * n)) @ triangle
    monkeypatch.setattr(substitution, "LEAF", n)
    here, blas = errors(triangle, rows)
    assert here <= 5 * blas
    assert len(inverted(triangle)) > 2
    monkeypatch.setattr(substitution, "GROWTH", np.inf)
    careless, _ = errors(triangle, rows)
    assert careless >= 100 * blas
    assert all(inverted(triangle))


def test_narrow_triangles_beyond_the_limit_are_substituted() -> None:
    """``|D| |D^-1|`` is near 1e7."""
    triangle = np.asfortranarray(np.eye(24) - np.triu(np.ones((24, 24)), 1))
    assert inverted(triangle) == [False]
    here, blas = errors(triangle, np.eye(24)[:3])
    assert here == blas == 0.0


@pytest.mark.parametrize("n_columns", [1, 31, 192, 193, 450])
@pytest.mark.parametrize("n_rows", [0, 1, COPY_ROWS + 1, 2 * PART_ROWS + 5])
def test_any_shape_and_strides(n_rows: int, n_columns: int) -> None:
    rng = np.random.default_rng(n_columns)
    triangle = np.asfortranarray(np.triu(rng.normal(size=(n_columns, n_columns))) / 30)
    triangle += np.eye(n_columns)
    triangle.flags.writeable = False
    rows = rng.normal(size=(n_rows, n_columns))
    kept = rows.copy()
    rows.flags.writeable = False
    expected = 1 / (dtrsm(1.0, triangle, rows.T, trans_a=1) ** 2).sum(axis=0)
    factor = TriangularFactor(triangle)
    found = factor.rigidity(rows)
    np.testing.assert_allclose(found, expected, rtol=1e-11)
    whitened = dtrsm(1.0, triangle, rows.T, trans_a=1).T
    np.testing.assert_allclose(factor.whiten(rows), whitened, rtol=1e-9, atol=1e-11)
    np.testing.assert_array_equal(rows, kept)
    np.testing.assert_array_equal(factor.rigidity(rows), found)
    np.testing.assert_array_equal(TriangularFactor(triangle).rigidity(rows), found)
    np.testing.assert_array_equal(factor.rigidity(np.hstack([rows, rows])[:, :n_columns]), found)
