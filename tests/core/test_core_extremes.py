from dataclasses import asdict

import numpy as np
import pytest
from core_oracle import steep_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from dlpr.core import factorize as factorize_module
from dlpr.core.extremes import largest_eigenvalue, n_above
from dlpr.core.factorize import Conditioning, factorize
from dlpr.core.folds import Gram, Triangle
from dlpr.errors import NumericsError

FOLDS = {"cholesky": Gram, "qr": Triangle}


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 90), bound=st.floats(-3.0, 3.0))
def test_counts_are_those_of_the_spectrum(seed: int, n: int, bound: float) -> None:
    matrix = np.random.default_rng(seed).normal(size=(n, n))
    symmetric = np.asfortranarray(matrix + matrix.T)
    kept = symmetric.copy()
    expected = int(np.count_nonzero(np.linalg.eigvalsh(symmetric) > bound))
    assert n_above(np.asfortranarray(np.triu(symmetric)), bound) == expected
    assert n_above(symmetric, bound) == expected
    np.testing.assert_array_equal(symmetric, kept)


@pytest.mark.parametrize("n", [1, 5, 9, 40, 300])
@pytest.mark.parametrize("decades", [0.0, 0.3, 8.0])
def test_largest_eigenvalue(n: int, decades: float) -> None:
    """From below, within a few percent even of a nearly flat spectrum; equal calls, equal bits."""
    basis = np.linalg.qr(np.random.default_rng(n).normal(size=(n, n)))[0]
    spectrum = np.logspace(0.0, -decades, n)
    matrix = (basis * spectrum) @ basis.T
    found = largest_eigenvalue(lambda v: matrix @ v, n)
    assert 0.9 < found < 1.0 + 1e-12
    assert found == largest_eigenvalue(lambda v: matrix @ v, n)


def both(
    solver: str, shape: tuple[int, int], decades: float, mu: float, patch: pytest.MonkeyPatch
) -> tuple[Conditioning, Conditioning]:
    """What is stated with and without the whole spectrum."""
    rows = steep_rows(*shape, decades, seed=int(decades))
    fold = FOLDS[solver].zeros(shape[1])
    fold.update(rows)
    stated = []
    for limit in (shape[1], 0):
        patch.setattr(factorize_module, "FULL_SPECTRUM", limit)
        stated.append(factorize(fold, mu, shape[0], solver)[1])
    return stated[0], stated[1]


@pytest.mark.parametrize("solver", FOLDS)
@pytest.mark.parametrize(
    ("shape", "decades", "mu"),
    [
        ((400, 150), 1.0, 1e-5),
        ((400, 150), 4.0, 1e-5),
        ((400, 150), 9.0, 1e-5),
        ((400, 150), 9.0, 1e-9),
        ((60, 150), 3.0, 1e-4),
        ((60, 150), 3.0, 1e-8),
        ((400, 150), 4.0, 1e-10),
    ],
)
def test_conditioning_without_the_spectrum(
    solver: str, shape: tuple[int, int], decades: float, mu: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, found = both(solver, shape, decades, mu, monkeypatch)
    assert found.condition == pytest.approx(full.condition, rel=0.1)
    assert found.sigma_max == pytest.approx(full.sigma_max, rel=0.05)
    assert found.n_determined == full.n_determined
    unknown = {"condition", "accuracy", "sigma_max", "rank", "n_kept"}
    if solver == "cholesky":
        unknown -= {"rank"}
    assert found.rank in (full.rank, None)
    assert found.n_kept in (full.n_kept, None)
    for name in set(asdict(full)) - unknown:
        assert asdict(found)[name] == asdict(full)[name], name


def test_what_a_large_triangle_may_leave_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    _, found = both("qr", (60, 150), 3.0, 1e-8, monkeypatch)
    assert found.rank is None
    assert found.n_determined is not None
    _, found = both("qr", (60, 150), 7.0, 1e-17, monkeypatch)
    assert found.n_determined is None
    _, found = both("qr", (400, 150), 3.0, 1e-9, monkeypatch)
    assert found.rank == 150


def test_no_digit_is_no_answer_without_the_spectrum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factorize_module, "FULL_SPECTRUM", 0)
    for solver, mu in (("cholesky", 3e-16), ("qr", 1e-32)):
        fold = FOLDS[solver].zeros(20)
        fold.update(steep_rows(10, 20, 3.0, seed=9))
        with pytest.raises(NumericsError, match=r"mu|qr"):
            factorize(fold, mu, 10, solver)
