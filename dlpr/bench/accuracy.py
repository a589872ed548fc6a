"""Relative error of rigidities on a steep spectrum: dlpr's ways, and those of others."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from dlpr.bench.measure import Bench, Row
from dlpr.bench.peers import metatrain_way, naive_inverse, scikit_matter
from dlpr.core.factorize import factorize
from dlpr.core.folds import Gram, Triangle

FloatArray = NDArray[np.float64]
N_COLUMNS, ROWS_PER_COLUMN, N_TEST = 160, 20, 500
ORDERS = 5.0
"""Orders of magnitude by which singular values fall: eigenvalues by twice as many, as of SOAP."""
ALPHA = 1e-8


def measure(bench: Bench) -> Iterator[Row]:
    """Largest relative error in and out of the training distribution."""
    rows, inside, outside = steep_data(np.random.default_rng(0))
    mu = ALPHA * float(np.einsum("ij,ij->", inside, inside)) / len(inside)
    test = np.concatenate([inside, outside])
    exact = reference(rows, test, mu)
    ways: dict[str, Callable[[], FloatArray]] = {
        "dlpr, solver qr": lambda: _dlpr(Triangle, "qr", rows, test, mu),
        "dlpr, solver cholesky": lambda: _dlpr(Gram, "cholesky", rows, test, mu),
        "dlpr, features of float32": lambda: _dlpr(
            Triangle, "qr", _rounded(rows), _rounded(test), mu
        ),
        "scikit-matter": lambda: _scikit_matter(rows, test, mu),
        "inverse in float64": lambda: naive_inverse(rows, test, mu),
        "metatrain's way (float32)": lambda: metatrain_way(rows, test, mu),
    }
    for way, function in ways.items():
        try:
            found = function()
        except ImportError:
            yield Row(f"relative error: {way}", None, note="not installed")
            continue
        error = np.abs(found / exact - 1.0)
        for name, part in (("in", error[:N_TEST]), ("out of", error[N_TEST:])):
            size = {"columns": N_COLUMNS, "distribution": name}
            worst = float(part.max()) if np.isfinite(part).all() else None
            note = "" if worst is not None else "not a number"
            yield Row(f"relative error: {way}", worst, "", size, "80-bit QR", note=note)


def steep_data(rng: np.random.Generator) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Rows to train on, test rows of their distribution, and test rows of any direction."""
    basis = np.linalg.qr(rng.standard_normal((N_COLUMNS, N_COLUMNS)))[0]
    spectrum = 10.0 ** -np.linspace(0, ORDERS, N_COLUMNS)

    def draw(count: int) -> FloatArray:
        found: FloatArray = (rng.standard_normal((count, N_COLUMNS)) * spectrum) @ basis.T
        return found

    rows, inside = draw(ROWS_PER_COLUMN * N_COLUMNS), draw(N_TEST)
    outside = rng.standard_normal((N_TEST, N_COLUMNS))
    outside *= np.sqrt(np.square(inside).sum() / np.square(outside).sum())
    return rows, inside, outside


def reference(rows: FloatArray, test: FloatArray, mu: float) -> FloatArray:
    """``1/|R^-T x|^2`` with R of ``[rows; sqrt(mu) 1]`` by Householder QR in extended precision."""
    n_columns = rows.shape[1]
    stack = np.concatenate([rows, np.sqrt(mu) * np.eye(n_columns)]).astype(np.longdouble)
    for k in range(n_columns):
        reflector = stack[k:, k].copy()
        reflector[0] += np.copysign(np.sqrt(reflector @ reflector), reflector[0])
        reflector /= np.sqrt(reflector @ reflector)
        stack[k:, k:] -= np.multiply.outer(2 * reflector, reflector @ stack[k:, k:])
    solved = test.T.astype(np.longdouble)
    for k in range(n_columns):
        solved[k] = (solved[k] - stack[:k, k] @ solved[:k]) / stack[k, k]
    return np.asarray(1.0 / np.square(solved).sum(axis=0), np.float64)


def _dlpr(
    kind: type[Gram] | type[Triangle], solver: str, rows: FloatArray, test: FloatArray, mu: float
) -> FloatArray:
    fold = kind.zeros(rows.shape[1])
    fold.update(rows)
    return factorize(fold, mu, len(rows), solver)[0].rigidity(test)


def _rounded(rows: FloatArray) -> FloatArray:
    return rows.astype(np.float32).astype(np.float64)


def _scikit_matter(rows: FloatArray, test: FloatArray, mu: float) -> FloatArray:
    """Structures of one environment each; its alpha is mu over the square of its scale."""
    scale = float(np.mean(np.square(rows), axis=0).sum())
    train = [row[None] for row in rows]
    lpr: FloatArray = scikit_matter()(train, [test], mu / scale)[0][0]
    return lpr
