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


def steep_triangle(kind: str, decades: int, n_columns: int = 500) -> tuple[Array, Array]:
    """R of cond(H) = 10^decades, and rows in and out of the data."""
    rng = np.random.default_rng(decades)
    data = steep_rows(n_columns, n_columns, decades / 2, seed=decades)
    if kind == "decaying columns":
        data = rng.normal(size=data.shape) * np.logspace(0, -decades / 2, n_columns)
    triangle = np.asfortranarray(np.linalg.qr(data)[1])
    weakest = np.linalg.svd(data)[2][-3:]
    return triangle, np.vstack([data[:20], rng.normal(size=(20, n_columns)), weakest])


@pytest.mark.parametrize("decades", [2, 6, 10, 12, 14])
@pytest.mark.parametrize("kind", ["mixed columns", "decaying columns"])
def test_errors_are_those_of_substitution(kind: str, decades: int) -> None:
    triangle, rows = steep_triangle(kind, decades)
    here, blas = errors(triangle, rows)
    print(kind, decades, here, blas, inverted(triangle))
    assert here <= 10 * blas + 100 * EPS
