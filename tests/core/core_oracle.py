"""Rigidities in extended precision, rows with a spectrum to order, and their dual form."""

from __future__ import annotations

import flint
import numpy as np
from numpy.typing import NDArray

from dlpr.core.decomposition import Decomposition
from dlpr.core.factor import SpectralFactor
from dlpr.core.factorize import Conditioning, factorize_decomposed

Array = NDArray[np.float64]


def exact_rigidity(rows: Array, mu: float, tests: Array) -> Array:
    """``1/(g^T (G^T G + mu 1)^-1 g)`` with 500 bits of the given doubles."""
    flint.ctx.prec = 500
    g = flint.arb_mat(rows.tolist())
    hessian = g.transpose() * g
    for k in range(rows.shape[1]):
        hessian[k, k] += flint.arb(mu)
    columns = flint.arb_mat(tests.T.tolist())
    solved = hessian.solve(columns)
    values = []
    for j in range(len(tests)):
        total = flint.arb(0)
        for k in range(rows.shape[1]):
            total += columns[k, j] * solved[k, j]
        values.append(float((1 / total).mid()))
    return np.array(values)


def steep_rows(n_rows: int, n_columns: int, decades: float, seed: int) -> Array:
    """Rows whose singular values fall from 1 by so many decades, evenly on a log scale."""
    rng = np.random.default_rng(seed)
    rank = min(n_rows, n_columns)
    left = np.linalg.qr(rng.normal(size=(n_rows, rank)))[0]
    right = np.linalg.qr(rng.normal(size=(n_columns, rank)))[0]
    return (left * np.logspace(0.0, -decades, rank)) @ right.T


def telling_tests(rows: Array, seed: int) -> Array:
    """Rows to predict: anywhere, in the data, and along what the data know least about."""
    rng = np.random.default_rng(seed)
    weakest = np.linalg.svd(rows, full_matrices=True)[2][-3:]
    mixed = rng.normal(size=(3, len(rows))) @ rows
    return np.vstack([rng.normal(size=(4, rows.shape[1])), rows[:4], weakest, mixed])


def factorize_rows(rows: Array, mu: float) -> tuple[SpectralFactor, Conditioning]:
    """The dual form of rows without targets."""
    return factorize_decomposed(Decomposition.of_rows(rows, np.zeros(len(rows)), len(rows)), mu)
