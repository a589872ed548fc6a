import numpy as np
import pytest
from core_oracle import Array
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp, mannwhitneyu, wasserstein_distance

from dlpr.core.drift import Drift, drift
from dlpr.core.quantiles import QuantileSketch
from dlpr.errors import InputError


def sketch_of(values: Array) -> QuantileSketch:
    sketch = QuantileSketch()
    for part in np.array_split(values, 3):
        sketch.add(part)
    return sketch


def drift_of(before: Array, now: Array) -> Drift:
    return drift(sketch_of(before), sketch_of(now))


def lognormal(n: int, mean: float, width: float, seed: int) -> Array:
    """Widths and means in decades."""
    return 10.0 ** np.random.default_rng(seed).normal(mean, width, n)


@pytest.mark.parametrize("sizes", [(4000, 900), (50, 6000), (1, 40)])
@pytest.mark.parametrize(("mean", "width"), [(0.0, 1.0), (-0.3, 1.0), (0.1, 3.0), (-20.0, 0.5)])
def test_against_the_samples_themselves(sizes: tuple[int, int], mean: float, width: float) -> None:
    before, now = lognormal(sizes[0], 0.0, 1.0, 1), lognormal(sizes[1], mean, width, 2)
    found = drift_of(before, now)
    exact = ks_2samp(before, now, method="asymp")
    in_a_bin = 5.0 / min(sizes)
    assert exact.statistic - in_a_bin <= found.ks <= exact.statistic + 1e-12
    assert found.wasserstein == pytest.approx(
        wasserstein_distance(np.log10(before), np.log10(now)), abs=5e-4
    )
    medians = [np.quantile(np.log10(x), 0.5, method="inverted_cdf") for x in (before, now)]
    assert found.shift == pytest.approx(medians[1] - medians[0], abs=5e-4)
    share = mannwhitneyu(now, before).statistic / (sizes[0] * sizes[1])
    assert found.superiority == pytest.approx(share, abs=in_a_bin)
    assert (found.n, found.zero_part) == (sizes, (0.0, 0.0))


def test_p_value_of_distributions_that_are_equal() -> None:
    """It is uniform for independent values, and that of SciPy for many."""
    p = [
        drift_of(lognormal(800, 0, 1, k), lognormal(700, 0, 1, 1000 + k)).p_value
        for k in range(200)
    ]
    assert np.mean(np.less(p, 0.5)) == pytest.approx(0.5, abs=0.15)
    assert 0 < np.count_nonzero(np.less(p, 0.1)) < 50
    before, now = lognormal(20_000, 0, 1, 3), lognormal(30_000, 0.01, 1, 4)
    exact = ks_2samp(before, now, method="asymp").pvalue
    assert drift_of(before, now).p_value == pytest.approx(exact, rel=0.2)


def test_a_shift_is_told_in_decades() -> None:
    values = lognormal(3000, 0.0, 0.2, 5)
    lost = drift_of(values, values / 100)
    assert lost.shift == pytest.approx(-2.0, abs=1e-3)
    assert lost.wasserstein == pytest.approx(2.0, abs=1e-3)
    assert (lost.ks, lost.superiority) == (1.0, 0.0)
    same = drift_of(values, np.tile(values, 3))
    assert (same.ks, same.wasserstein, same.shift) == (0.0, 0.0, 0.0)
    assert (same.p_value, same.superiority) == (1.0, pytest.approx(0.5))


@given(
    st.lists(st.sampled_from([0.0, 1.0, 4.0, np.inf]), min_size=1, max_size=30),
    st.lists(st.sampled_from([0.0, 1.0, 4.0, np.inf]), min_size=1, max_size=30),
)
def test_zeros_and_infinities(first: list[float], second: list[float]) -> None:
    """Zeros are the smallest values, infinite ones none at all; the other way round is opposite."""
    before, now = np.array(first), np.array(second)
    finite = [side[np.isfinite(side)] for side in (before, now)]
    if not all(map(len, finite)):
        with pytest.raises(InputError, match="none of them finite"):
            drift_of(before, now)
        return
    found, back = drift_of(before, now), drift_of(now, before)
    greater = (finite[1][:, None] > finite[0]).mean() + (finite[1][:, None] == finite[0]).mean() / 2
    assert found.superiority == pytest.approx(greater)
    assert found.superiority + back.superiority == pytest.approx(1.0)
    below = [[np.mean(side <= value) for value in (0.0, 1.0, 4.0)] for side in finite]
    assert found.ks == pytest.approx(np.abs(np.subtract(*below)).max())
    assert found.ks == back.ks
    assert found.zero_part == tuple(float((side == 0).mean()) for side in finite)
    positive = [np.log10(side[side > 0]) for side in finite]
    if all(map(len, positive)):
        assert found.wasserstein == pytest.approx(wasserstein_distance(*positive), abs=1e-3)
    else:
        assert np.isnan(found.wasserstein)
