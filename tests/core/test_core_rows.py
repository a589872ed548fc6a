import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlpr.core.rows import Blocks, Layout, merge_blocks, row_factor, sum_rows
from dlpr.errors import JobError


@given(seed=st.integers(0, 2**31), n=st.integers(0, 40), n_blocks=st.integers(1, 3))
def test_sum_rows_is_the_loop_in_order(seed: int, n: int, n_blocks: int) -> None:
    rng = np.random.default_rng(seed)
    blocks = Blocks(4, n_blocks)
    features = rng.normal(size=(n, 4))
    block = rng.integers(0, n_blocks, n)
    structure = np.sort(rng.integers(0, 5, n))
    expected = np.zeros((5, blocks.n_columns))
    for i in range(n):
        expected[structure[i], 4 * block[i] : 4 * block[i] + 4] += features[i]
    rows = sum_rows(features, block, structure, 5, blocks)
    np.testing.assert_array_equal(rows, expected)
    assert rows.dtype == np.float64


def test_merge_blocks_gives_the_shared_model() -> None:
    rng = np.random.default_rng(0)
    features, block = rng.normal(size=(30, 3)), rng.integers(0, 4, 30)
    structure = np.sort(rng.integers(0, 6, 30))
    separate, shared = Blocks(3, 4), Blocks(3, 1)
    merged = merge_blocks(sum_rows(features, block, structure, 6, separate), separate)
    expected = sum_rows(features, np.zeros(30, dtype=int), structure, 6, shared)
    np.testing.assert_allclose(merged, expected, rtol=1e-13, atol=1e-14)


def test_row_factor() -> None:
    n_atoms = np.array([1, 4, 9])
    np.testing.assert_array_equal(row_factor(n_atoms, "mean"), 1 / n_atoms)
    np.testing.assert_array_equal(row_factor(n_atoms, "sum"), 1.0)
    np.testing.assert_allclose(row_factor(n_atoms, "sqrt"), [1, 1 / 2, 1 / 3], rtol=1e-15)
    with pytest.raises(JobError, match=r"'median'.*mean, sum, sqrt"):
        row_factor(n_atoms, "median")


@pytest.mark.parametrize(("block", "structure"), [(2, 0), (-1, 0), (0, 3), (0, -1)])
def test_sum_rows_refuses_what_it_cannot_place(block: int, structure: int) -> None:
    with pytest.raises(ValueError, match="allowed is 0"):
        sum_rows(np.ones((1, 2)), np.array([block]), np.array([structure]), 3, Blocks(2, 2))


def test_layouts_of_unequal_blocks() -> None:
    uneven = Layout((3, 0, 5))
    assert (uneven.n_blocks, uneven.n_columns) == (3, 8)
    assert [uneven.slice(block) for block in range(3)] == [slice(0, 3), slice(3, 3), slice(3, 8)]
