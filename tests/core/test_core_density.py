"""Outlines of distributions: against a kernel density estimate of all values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import gaussian_kde

from dlpr.core.density import N_POINTS, outline
from dlpr.core.quantiles import QuantileSketch


def sketch_of(values: object) -> QuantileSketch:
    sketch = QuantileSketch()
    sketch.add(np.asarray(values, np.float64))
    return sketch


def lognormal(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    narrow, wide = rng.normal(-3.0, 0.2, n), rng.normal(0.0, 0.6, n)
    return 10.0 ** np.where(rng.random(n) < 0.3, narrow, wide)


@pytest.mark.parametrize("n", [100, 5000])
def test_it_is_the_kernel_density_of_all_values(n: int) -> None:
    values = np.log10(lognormal(n, n))
    found = outline(sketch_of(10.0**values))
    assert found is not None
    low, high, first, third = np.quantile(values, [0.01, 0.99, 0.25, 0.75], method="inverted_cdf")
    np.testing.assert_allclose(np.log10([found.low, found.high]), [low, high], atol=1e-3)
    width = 0.9 * min(values.std(), (third - first) / 1.34) * n**-0.2
    kernel = gaussian_kde(values, width / values.std(ddof=1))
    expected = kernel(np.linspace(low, high, N_POINTS))
    np.testing.assert_allclose(found.height, expected / expected.max(), atol=0.01)


@given(power=st.integers(-100, 100), seed=st.integers(0, 99))
def test_units_only_shift_it(power: int, seed: int) -> None:
    values = lognormal(200, seed)
    one, other = outline(sketch_of(values)), outline(sketch_of(values * 2.0**power))
    assert one is not None
    assert other is not None
    np.testing.assert_allclose(other.height, one.height, atol=1e-6)
    np.testing.assert_allclose([other.low, other.high], np.array([one.low, one.high]) * 2.0**power)


@given(st.lists(st.floats(0.0, 1e300) | st.just(np.inf), max_size=30), st.floats(1e-300, 1e300))
def test_any_values_have_a_finite_outline_or_none(values: list[float], extra: float) -> None:
    found = outline(sketch_of([*values, extra]))
    spread = [v for v in [*values, extra] if 0.0 < v < np.inf]
    if found is None:
        return
    assert min(spread) * 0.99 <= found.low < found.high <= max(spread) * 1.01
    assert np.isfinite(found.height).all()
    assert (found.height >= 0.0).all()
    assert found.height.max() == 1.0


@pytest.mark.parametrize("values", [[], [0.0, np.inf], [3.0], [3.0] * 9, [0.0, 0.0, 2.0]])
def test_what_does_not_spread_has_none(values: list[float]) -> None:
    assert outline(sketch_of(values)) is None
