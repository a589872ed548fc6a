import numpy as np
import pytest
from core_oracle import Array
from hypothesis import given
from hypothesis import strategies as st

from dlpr.core.validation import (
    Errors,
    energy_errors,
    force_errors,
    k_folds,
    robust_scores,
    stratified_folds,
    without_own_label,
)
from dlpr.errors import InputError, JobError


def test_measures_are_numpys_whatever_the_parts() -> None:
    rng = np.random.default_rng(0)
    errors = rng.standard_t(2, size=(5000, 3)) + 0.3
    whole = Errors()
    for part in np.array_split(errors, 7):
        own = Errors()
        own.add(part)
        whole.merge(own)
    size = np.abs(errors)
    assert whole.n == 15_000
    assert whole.bias == pytest.approx(errors.mean(), rel=1e-12)
    assert whole.mae == pytest.approx(size.mean(), rel=1e-12)
    assert whole.rmse == pytest.approx(np.sqrt((errors**2).mean()), rel=1e-12)
    assert whole.percentile(100) == size.max()
    for percent in (50, 95, 99):
        exact = np.percentile(size, percent, method="inverted_cdf")
        assert whole.percentile(percent) == pytest.approx(exact, rel=2.0**-11)


def test_no_errors_and_no_numbers() -> None:
    nothing = Errors()
    measures = (nothing.bias, nothing.mae, nothing.rmse, nothing.percentile(50))
    assert nothing.n == 0
    assert np.isnan(measures).all()
    for wrong in (np.nan, np.inf, -np.inf):
        with pytest.raises(InputError, match="1 of 3 errors are not finite"):
            nothing.add(np.array([1.0, wrong, 2.0]))
    assert nothing.n == 0


def test_independent_atoms_err_alike_by_the_root_of_their_number() -> None:
    """VAL23 fig. 4: a sum of N independent errors grows with sqrt(N)."""
    rng = np.random.default_rng(1)
    n_atoms = np.repeat([1, 16, 256], 2000)
    errors = rng.normal(size=6000) * np.sqrt(n_atoms)
    spread = {
        name: [np.std(scaled[n_atoms == n]) for n in (1, 16, 256)]
        for name, scaled in energy_errors(errors, n_atoms).items()
    }
    np.testing.assert_allclose(spread["sqrt"], [1, 1, 1], rtol=0.1)
    np.testing.assert_allclose(spread["sum"], [1, 4, 16], rtol=0.1)
    np.testing.assert_allclose(spread["mean"], [1, 1 / 4, 1 / 16], rtol=0.1)


def test_forces() -> None:
    label = np.array([[3.0, 0.0, 4.0], [0.0, 0.0, 0.0]])
    predicted = np.array([[0.0, 3.0, 4.0], [0.0, 2.0, 0.0]])
    found = force_errors(predicted, label)
    np.testing.assert_array_equal(found["component"], [-3, 3, 0, 0, 2, 0])
    np.testing.assert_allclose(found["magnitude"], [0.0, 2.0])
    np.testing.assert_allclose(found["vector"], [np.sqrt(18.0), 2.0])
    rng = np.random.default_rng(2)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    predicted, label = rng.normal(size=(2, 9, 3))
    turned, here = force_errors(predicted @ turn, label @ turn), force_errors(predicted, label)
    for name in ("magnitude", "vector"):
        np.testing.assert_allclose(turned[name], here[name], rtol=1e-12)


def digests(n: int) -> list[bytes]:
    return [np.random.default_rng(k).bytes(16) for k in range(n)]


@given(st.integers(2, 8), st.integers(0, 2**70), st.data())
def test_no_structure_moves_when_others_come_or_go(
    n_folds: int, seed: int, data: st.DataObject
) -> None:
    keys = digests(150)
    folds = k_folds(keys, n_folds, seed)
    order = data.draw(st.permutations(range(150)))[:120]
    np.testing.assert_array_equal(k_folds([keys[k] for k in order], n_folds, seed), folds[order])
    twice = k_folds([*keys, keys[3]], n_folds, seed)
    assert twice[-1] == folds[3]


def test_folds_are_even_in_every_group_and_of_another_seed_others() -> None:
    keys = digests(3000)
    folds = np.array([k_folds(keys, 5, seed) for seed in (0, 1)])
    for group in (slice(0, 500), slice(500, 3000), slice(None, None, 7)):
        for own in folds[:, group]:
            expected = len(own) / 5
            assert np.abs(np.bincount(own) - expected).max() < 4 * np.sqrt(expected)
    both = np.bincount(folds[0] * 5 + folds[1], minlength=25)
    assert np.abs(both - 120).max() < 4 * np.sqrt(120)


@given(st.integers(2, 9), st.integers(0, 2**70), st.data())
def test_dealt_folds_are_even_in_every_group_whatever_comes_behind(
    n_folds: int, seed: int, data: st.DataObject
) -> None:
    keys = digests(90)
    groups = data.draw(st.lists(st.sampled_from("abc"), min_size=90, max_size=90))
    n = data.draw(st.integers(45, 90))
    folds = stratified_folds(keys, groups, n_folds, seed)
    np.testing.assert_array_equal(stratified_folds(keys[:n], groups[:n], n_folds, seed), folds[:n])
    for group in set(groups):
        counts = np.bincount(folds[np.array(groups) == group], minlength=n_folds)
        assert counts.max() - counts.min() <= 1
    twice = stratified_folds([*keys, keys[3]], [*groups, groups[3]], n_folds, seed)
    assert twice[-1] == folds[3]


def test_dealt_folds_follow_seed_and_group_and_leave_one_out() -> None:
    keys = digests(60)
    one, other = (stratified_folds(keys, ["a"] * 60, 5, seed) for seed in (0, 1))
    assert (one != other).any()
    assert (one != stratified_folds(keys, ["b"] * 60, 5, 0)).any()
    assert len({tuple(hand) for hand in one.reshape(-1, 5).tolist()}) > 1
    assert sorted(stratified_folds(keys, ["a"] * 60, 60, 0)) == list(range(60))


def test_refusals() -> None:
    with pytest.raises(JobError, match=r"1 folds .* at least 2"):
        k_folds(digests(9), 1, 0)
    with pytest.raises(JobError, match=r"1 folds .* at least 2"):
        stratified_folds(digests(9), ["a"] * 9, 1, 0)
    with pytest.raises(InputError, match=r"fold \d of 4 is empty: 3 different"):
        stratified_folds(digests(3), ["a"] * 3, 4, 0)
    with pytest.raises(InputError, match=r"fold \d of 4 is empty: 3 different"):
        k_folds([b"bulk", b"surface", b"liquid", b"bulk"], 4, 0)


@pytest.mark.parametrize("weighted", [False, True])
def test_errors_of_fits_that_leave_one_out(weighted: bool) -> None:
    """Those of as many fits, and their spread over draws of the labels' noise."""
    rng = np.random.default_rng(3)
    rows, y = rng.normal(size=(30, 8)), rng.normal(size=30)
    weight = rng.uniform(0.2, 5.0, 30) if weighted else np.ones(30)

    def fit(own: Array, mu: float) -> tuple[Array, Array]:
        hessian = (rows[own].T * weight[own]) @ rows[own] + mu * np.eye(8)
        return hessian, np.linalg.solve(hessian, rows[own].T @ (weight[own] * y[own]))

    for mu in (0.5, 1e-12):
        hessian, weights = fit(np.ones(30, bool), mu)
        leverage = weight * np.einsum("ij,ji->i", rows, np.linalg.solve(hessian, rows.T))
        found, spread = without_own_label(rows @ weights - y, leverage)
        for k in range(30):
            rest, others = fit(np.arange(30) != k, mu)
            assert found[k] == pytest.approx(rows[k] @ others - y[k])
            variance = 1.0 + weight[k] * rows[k] @ np.linalg.solve(rest, rows[k])
            assert spread[k] == pytest.approx(np.sqrt(variance))


def test_what_only_its_own_label_speaks_of_has_no_error() -> None:
    found, spread = without_own_label(np.array([1e-9, 1.0]), np.array([1.0 - 1e-9, 0.5]))
    assert np.isnan(found[0])
    assert np.isnan(spread[0])
    assert found[1] == 2.0


def test_robust_scores() -> None:
    """Medians are groups' own; spreads too, where they are more than that of all."""
    rng = np.random.default_rng(4)
    group = np.repeat([0, 1, 2], [4000, 2000, 3])
    values = np.where(group == 1, rng.normal(500.0, 100.0, 6003), rng.normal(1.0, 0.1, 6003))
    values[[0, 1, 2]] = 1e9, np.nan, 1.5
    scores = robust_scores(values, group, 20)
    known = values[np.isfinite(values)]
    spread = 1.4826 * np.median(np.abs(known - np.median(known)))
    assert np.isnan(scores[1])
    assert scores[0] == pytest.approx(1e9 / spread)
    assert scores[2] == pytest.approx(0.5 / spread, rel=0.02)
    assert np.median(scores[4000:6000]) == 0.0
    assert np.std(scores[4000:6000]) == pytest.approx(1.0, rel=0.05)
    np.testing.assert_allclose(scores[6000:], (values[6000:] - np.median(known)) / spread)
    equal = robust_scores(np.array([2.0, 2.0, 3.0]), np.zeros(3, int), 1)
    np.testing.assert_array_equal(equal, [0.0, 0.0, np.inf])
