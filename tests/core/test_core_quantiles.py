import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from dlpr.core.quantiles import QuantileSketch
from dlpr.errors import NumericsError

values_lists = st.lists(
    st.one_of(st.just(0.0), st.just(np.inf), st.floats(2.3e-308, 1.7e308)), max_size=60
)


def sketch_of(values: list[float]) -> QuantileSketch:
    sketch = QuantileSketch()
    sketch.add(np.array(values))
    return sketch


@given(values=values_lists, q=st.floats(0, 1))
def test_quantile_is_numpys(values: list[float], q: float) -> None:
    sketch = sketch_of(values)
    finite = np.array([v for v in values if v < np.inf])
    assert (sketch.n, sketch.n_finite) == (len(values), len(finite))
    assert (sketch.n_zero, sketch.n_inf) == (values.count(0.0), values.count(np.inf))
    if not len(finite):
        assert np.isnan(sketch.quantile(q))
        return
    assert (sketch.minimum, sketch.maximum) == (finite.min(), finite.max())
    assert sketch.minimum <= sketch.quantile(q) <= sketch.maximum
    # the order statistic, which numpy may take one rank off where q n rounds to an integer
    rank = max(int(np.ceil(q * len(finite))), 1)
    assert sketch.quantile(q) == pytest.approx(np.sort(finite)[rank - 1], rel=2.0**-11)


def test_quantiles_of_many() -> None:
    values = np.exp(np.random.default_rng(0).normal(scale=4.0, size=20_000))
    sketch = QuantileSketch()
    for part in np.array_split(values, 7):
        sketch.add(part)
    for q in (0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0):
        expected = np.quantile(values, q, method="inverted_cdf")
        assert sketch.quantile(q) == pytest.approx(expected, rel=2.0**-11)


@given(values=values_lists, bound=st.floats(0, 1.7e308))
def test_share_below_is_that_of_the_values_but_for_one_bin(
    values: list[float], bound: float
) -> None:
    sketch = sketch_of(values)
    finite = np.array([v for v in values if v < np.inf])
    if not len(finite):
        assert np.isnan(sketch.share_below(bound))
        return
    # a bin is at most 2^-10 wide, relative to its edge
    lowest, highest = (np.count_nonzero(finite < bound * f) for f in (1 - 2.0**-9, 1 + 2.0**-9))
    assert lowest <= round(sketch.share_below(bound) * len(finite)) <= highest
    assert sketch.share_below(finite.min()) == 0.0
    assert sketch.share_below(np.nextafter(finite.max(), np.inf)) == 1.0


def test_share_below_counts_whole_bins() -> None:
    sketch = sketch_of([0.0, 1.0, 2.0, 4.0, np.inf])
    assert [sketch.share_below(x) for x in (0.0, 0.5, 1.5, 3.0, 5.0)] == [0, 0.25, 0.5, 0.75, 1]


@given(parts=st.lists(values_lists, min_size=1, max_size=4), seed=st.integers(0, 99))
def test_merge_in_any_order_is_one_add(parts: list[list[float]], seed: int) -> None:
    merged = QuantileSketch()
    for k in np.random.default_rng(seed).permutation(len(parts)):
        merged.merge(sketch_of(parts[k]))
    whole = sketch_of([v for part in parts for v in part])
    np.testing.assert_array_equal(merged.bin_index, whole.bin_index)
    np.testing.assert_array_equal(merged.bin_count, whole.bin_count)
    assert (merged.n_zero, merged.n_inf) == (whole.n_zero, whole.n_inf)
    assert (merged.minimum, merged.maximum) == (whole.minimum, whole.maximum)


@pytest.mark.parametrize("wrong", [np.nan, -1.0, -np.inf])
def test_refuses_what_no_rigidity_is(wrong: float) -> None:
    with pytest.raises(NumericsError, match="1 of 3 values"):
        sketch_of([1.0, wrong, np.inf])
    with pytest.raises(ValueError, match=r"must lie in 0\.\.1"):
        sketch_of([1.0]).quantile(1.5)


@given(values=st.lists(st.sampled_from([0.0, 1e-300, 0.5, 3.0, 7.0, 1e9]), min_size=1))
def test_mid_ranks_are_those_of_equal_values(values: list[float]) -> None:
    """Of values that fall into bins of their own: SciPy's average ranks, about their mean."""
    expected = rankdata(values) - 0.5 * (len(values) + 1)
    np.testing.assert_allclose(sketch_of(values).mid_rank(np.array(values)), expected, atol=1e-12)
