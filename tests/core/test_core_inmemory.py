from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import pytest
import skmatter.metrics as skmatter
import zarr
from core_oracle import Array, exact_rigidity

from dlpr.core import inmemory
from dlpr.core.inmemory import componentwise_prediction_rigidity, local_prediction_rigidity
from dlpr.errors import InputError, JobError, NumericsError


def structures(seed: int, n_structures: int, n_features: int = 12) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(rng.integers(1, 9), n_features)) for _ in range(n_structures)]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 5 environments, so that structures are cut and joined."""
    monkeypatch.setattr(inmemory, "BLOCK_NUMBERS", 60)


@pytest.mark.parametrize(("n_train", "alpha"), [(40, 1e-3), (8, 1e-5), (40, 0.0)])
@pytest.mark.usefixtures("small_blocks")
def test_same_as_scikit_matter(n_train: int, alpha: float) -> None:
    train, test = structures(0, n_train), structures(1, 7)
    lpr, rank_diff = local_prediction_rigidity(train, test, alpha)
    expected, expected_diff = skmatter.local_prediction_rigidity(train, test, alpha)
    assert rank_diff == expected_diff
    assert isinstance(lpr, list)
    for found, wanted in zip(lpr, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-8)

    dims = np.array([3, 5, 4])
    cpr, lcpr, rank_diff = componentwise_prediction_rigidity(train, test, alpha, dims)
    expected_cpr, expected_lcpr, _ = skmatter.componentwise_prediction_rigidity(
        train, test, alpha, dims
    )
    assert rank_diff == expected_diff
    assert isinstance(lcpr, list)
    np.testing.assert_allclose(cpr, expected_cpr, rtol=1e-8)
    for found, wanted in zip(lcpr, expected_lcpr, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-8)


def reference_cases(path: Path) -> dict[str, dict[str, Any]]:
    cases: dict[str, dict[str, Any]] = {}
    with np.load(path) as archive:
        for key in archive.files:
            case, field = key.rsplit("/", 1)
            cases.setdefault(case, {})[field] = archive[key]
    return cases


@pytest.mark.shared
def test_reference_cases(shared: Path) -> None:
    cases = reference_cases(shared / "reference" / "skmatter_lpr_seed0.npz")
    assert len(cases) >= 10
    for name, case in cases.items():
        train = np.split(case["X_train"], np.cumsum(case["n_train"])[:-1])
        test = np.split(case["X_test"], np.cumsum(case["n_test"])[:-1])
        alpha = float(case["alpha"])
        low, high = case["H_eigmin_eigmax"]
        lpr, rank_diff = local_prediction_rigidity(train, test, alpha)
        assert rank_diff == case["rank_diff"], name
        rtol = 1e-8 if high < 1e8 * abs(low) else 1e-5
        np.testing.assert_allclose(np.concatenate(lpr), case["LPR"], rtol=rtol, err_msg=name)
        cpr, lcpr, _ = componentwise_prediction_rigidity(train, test, alpha, case["comp_dims"])
        if rank_diff:
            continue  # a masked row leaves the span of the training data: see the tests below
        np.testing.assert_allclose(cpr, case["CPR"], rtol=rtol, err_msg=name)
        np.testing.assert_allclose(np.vstack(lcpr), case["LCPR"], rtol=rtol, err_msg=name)


@pytest.mark.usefixtures("small_blocks")
def test_dask_zarr_and_lists_are_read_alike() -> None:
    train, test = structures(2, 20), structures(3, 5)
    dims = [6, 0, 6]
    expected = componentwise_prediction_rigidity(train, test, 1e-4, dims)
    assert (expected[0][:, 1] == np.inf).all()
    lazy = [dask.array.from_array(x, chunks=(3, 5)) for x in train]
    stored = []
    for x in test:
        array = zarr.create_array(zarr.storage.MemoryStore(), shape=x.shape, dtype=x.dtype)
        array[:] = x
        stored.append(array)
    for first, second in [(lazy, stored), ([x.tolist() for x in train], test)]:
        cpr, lcpr, rank_diff = componentwise_prediction_rigidity(first, second, 1e-4, dims)
        np.testing.assert_array_equal(cpr, expected[0])
        np.testing.assert_array_equal(np.vstack(lcpr), np.vstack(expected[1]))
        assert rank_diff == expected[2]


def test_zero_vectors_are_infinitely_rigid() -> None:
    train, test = structures(4, 20), structures(5, 3)
    test[1][0] = 0.0
    test[2][:, :4] = 0.0
    lpr, _ = local_prediction_rigidity(train, test, 1e-4)
    assert lpr[1][0] == np.inf
    cpr, lcpr, _ = componentwise_prediction_rigidity(train, test, 1e-4, [4, 8])
    assert cpr[2, 0] == np.inf
    assert (lcpr[2][:, 0] == np.inf).all()
    assert np.isfinite(lcpr[2][:, 1]).all()


def test_without_regularizer_the_unconstrained_has_no_rigidity() -> None:
    """Training in 6 of 12 dimensions: scikit-matter ignores what lies outside or says 1e17."""
    rng = np.random.default_rng(6)
    span = np.linalg.qr(rng.normal(size=(12, 6)))[0].T
    train = [x @ span for x in structures(7, 30, 6)]
    test = [x @ span for x in structures(8, 3, 6)]
    lpr, rank_diff = local_prediction_rigidity(train, test, 0.0)
    expected, _ = skmatter.local_prediction_rigidity(train, test, 0.0)
    assert rank_diff == 6
    np.testing.assert_allclose(np.concatenate(lpr), np.concatenate(expected), rtol=1e-8)
    strange = [x + 0.01 * rng.normal(size=12) for x in test]
    lpr, _ = local_prediction_rigidity(train, strange, 0.0)
    np.testing.assert_array_equal(np.concatenate(lpr), 0.0)
    cpr, _, _ = componentwise_prediction_rigidity(train, test, 0.0, [6, 6])
    np.testing.assert_array_equal(cpr, 0.0)


@pytest.mark.parametrize("alpha", [1e-12, 1e-17, 1e-22])
def test_tiny_alpha_is_solved_by_qr(alpha: float) -> None:
    """scikit-matter turns negative here."""
    rng = np.random.default_rng(9)
    train = [x[:, :8] @ rng.normal(size=(8, 12)) / 12 for x in structures(10, 1)]
    train += [x[:, :8] @ np.eye(8, 12) for x in structures(11, 30)]
    test = structures(12, 4)
    lpr, rank_diff = local_prediction_rigidity(train, test, alpha)
    scale = float(np.mean(np.sum(np.vstack(train) ** 2, axis=1)))
    rows = np.array([x.mean(axis=0) for x in train])
    exact = exact_rigidity(rows, alpha * scale, np.vstack(test))
    np.testing.assert_allclose(np.concatenate(lpr), exact, rtol=5 * 2.3e-16 / np.sqrt(alpha) * 4)
    assert rank_diff == (3 if alpha < 1e-15 else 0)


def test_refusals() -> None:
    train, test = structures(13, 5), structures(14, 3)

    def refused(error: type[Exception], match: str, *changed: Any) -> None:
        with pytest.raises(error, match=match):
            local_prediction_rigidity(*changed)

    refused(InputError, "X_train holds no structure", [], test, 0.1)
    refused(InputError, "X_test holds no structure", train, [], 0.1)
    refused(InputError, r"X_train\[2\] has 3 features", [*train[:2], np.ones((2, 3))], test, 0.1)
    refused(InputError, r"X_test\[0\] has 3 features", train, [np.ones((2, 3))], 0.1)
    refused(InputError, r"X_test\[1\] has shape \(0, 12\)", train, [test[0], test[1][:0]], 0.1)
    refused(InputError, r"X_train\[0\] has shape \(12,\)", train[0], test, 0.1)
    refused(InputError, r"X_train\[0\] does not hold real", [np.array([["a"] * 12])], test, 0.1)
    refused(InputError, "all features of X_train are 0", [0 * x for x in train], test, 0.1)
    broken = [x.copy() for x in test]
    broken[2] = np.ones((6, 12))
    broken[2][4, 7] = np.nan
    refused(InputError, r"X_test\[2\] holds nan at atom 4, feature 7", train, broken, 0.1)
    for alpha in (-1e-9, np.nan):
        refused(JobError, "alpha is", train, test, alpha)
    refused(NumericsError, "use mu: 0", train[:2], test, 1e-34)
    for dims in ([5, 5], [13, -1], [6.0, 6.0], [[12]]):
        with pytest.raises(JobError, match="number of features, 12"):
            componentwise_prediction_rigidity(train, test, 0.1, dims)  # type: ignore[arg-type]
