import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlpr.core.models import Identity, Model, Targets
from dlpr.core.rows import Layout, row_factor, strips, sum_rows
from dlpr.errors import JobError


@given(seed=st.integers(0, 2**31), n=st.integers(0, 40))
def test_sum_rows_is_the_loop_in_order(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    features, structure = rng.normal(size=(n, 4)), np.sort(rng.integers(0, 5, n))
    expected = np.zeros((5, 4))
    for i in range(n):
        expected[structure[i]] += features[i]
    rows = sum_rows(features, structure, 5)
    np.testing.assert_array_equal(rows, expected)
    assert rows.dtype == np.float64


@given(data=st.data(), n=st.integers(0, 9), size=st.integers(1, 4), scaled=st.booleans())
def test_strips_are_columns_of_arrays_side_by_side(
    data: st.DataObject, n: int, size: int, scaled: bool
) -> None:
    rng = np.random.default_rng(n)
    widths = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
    sides = [rng.normal(size=(n, width)) for width in widths]
    start = data.draw(st.integers(0, sum(widths)))
    columns = slice(start, data.draw(st.integers(start, sum(widths))))
    scale = rng.random(n) if scaled else None
    expected = np.hstack(sides)[:, columns]
    if scale is not None:
        expected = expected * scale[:, None]
    found = [strip.copy() for strip in strips(sides, scale, columns, size)]
    assert all(len(strip) <= size and strip.flags.c_contiguous for strip in found)
    np.testing.assert_array_equal(
        np.concatenate([np.empty((0, expected.shape[1])), *found]), expected
    )


def test_row_factor() -> None:
    n_atoms = np.array([1, 4, 9])
    np.testing.assert_array_equal(row_factor(n_atoms, "mean"), 1 / n_atoms)
    np.testing.assert_array_equal(row_factor(n_atoms, "sum"), 1.0)
    np.testing.assert_allclose(row_factor(n_atoms, "sqrt"), [1, 1 / 2, 1 / 3], rtol=1e-15)
    with pytest.raises(JobError, match=r"'median'.*mean, sum, sqrt"):
        row_factor(n_atoms, "median")


@pytest.mark.parametrize("structure", [3, -1])
def test_sum_rows_refuses_what_it_cannot_place(structure: int) -> None:
    with pytest.raises(ValueError, match="allowed is 0"):
        sum_rows(np.ones((1, 2)), np.array([structure]), 3)


def test_layouts_of_unequal_blocks() -> None:
    uneven = Layout((3, 0, 5))
    assert (uneven.n_blocks, uneven.n_columns) == (3, 8)
    assert [uneven.slice(block) for block in range(3)] == [slice(0, 3), slice(3, 3), slice(3, 8)]


def test_weights_that_species_share_take_the_sum_of_blocks_and_no_stack_of_them() -> None:
    n, width, n_species = 200, 300, 8
    rng = np.random.default_rng(0)
    rows, count = rng.normal(size=(n, n_species * width)), rng.random((n, n_species))
    model = Model(Identity(width, n_species), "sum", shared=True)
    targets = Targets(rows, count, np.zeros(n), np.ones(n), np.ones(n))
    tracemalloc.start()
    total, *_ = model.sides(targets)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(total, rows.reshape(n, n_species, width).sum(axis=1))
    assert peak < 2 * total.nbytes
