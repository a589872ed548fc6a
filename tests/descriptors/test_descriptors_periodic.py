from dataclasses import replace

import numpy as np
import pytest
from descriptors_cases import HYPERS, featomic_full, random_piece
from hypothesis import given, settings
from hypothesis import strategies as st

from dlpr.descriptors.periodic import make_periodic
from dlpr.descriptors.soap import Soap
from dlpr.errors import InputError

SOAP = Soap(HYPERS, [1, 6])
CUTOFF = SOAP.cutoff
OPEN = [(True, True, False), (False, True, True), (False, True, False), (True, False, False)]


def by_hand(piece):
    """Periodic axes kept; open ones along a direction of the old cell, 100 Å long."""
    cell = piece.cell.copy()
    for axis in np.flatnonzero(~piece.pbc):
        cell[axis] *= 100.0 / np.linalg.norm(cell[axis])
    return replace(piece, cell=cell, pbc=np.ones(3, bool))


@pytest.mark.parametrize("pbc", [*OPEN, (False, False, False)])
@pytest.mark.parametrize("known", [True, False])
def test_slab_wire_and_cluster_equal_a_large_periodic_cell(pbc, known):
    piece = random_piece(20, [1, 6], 3, pbc)
    expected, _ = featomic_full([by_hand(piece)], [1, 6])
    if not known:
        piece = replace(piece, cell=piece.cell * np.array(pbc)[:, None])
    features = SOAP.expand(SOAP.compute([piece]))
    np.testing.assert_allclose(features, expected, rtol=0, atol=1e-13)
    closed = SOAP.expand(SOAP.compute([replace(random_piece(20, [1, 6], 3))]))
    assert np.abs(features - closed).max() > 1e-3


def test_a_cluster_equals_featomics_open_system_to_the_bit():
    piece = random_piece(20, [1, 6], 4, (False, False, False))
    assert SOAP.full_columns["weight"].max() > 1
    features = SOAP.compute([piece])
    wrapped = make_periodic(piece, CUTOFF)
    open_rows, _ = featomic_full([piece], [1, 6])
    periodic_rows, _ = featomic_full([wrapped], [1, 6])
    np.testing.assert_array_equal(periodic_rows, open_rows)
    np.testing.assert_allclose(SOAP.expand(features), open_rows, rtol=4e-16, atol=0)


@given(
    seed=st.integers(0, 10**6),
    pbc=st.tuples(st.booleans(), st.booleans(), st.booleans()).filter(lambda pbc: not all(pbc)),
    scale=st.floats(0.0, 30.0),
)
@settings(max_examples=100, deadline=None)
def test_no_atom_sees_an_image_along_an_open_direction(seed, pbc, scale):
    rng = np.random.default_rng(seed)
    piece = replace(
        random_piece(6, [6], seed, pbc), position=rng.normal(scale=scale + 1e-9, size=(6, 3))
    )
    made = make_periodic(piece, CUTOFF)
    assert made.pbc.all()
    assert np.linalg.det(made.cell) > 0
    np.testing.assert_array_equal(made.cell[piece.pbc], piece.cell[piece.pbc])
    np.testing.assert_array_equal(made.position, piece.position)
    open_axes = np.flatnonzero(~piece.pbc)
    for axis in open_axes:
        direction = made.cell[axis] / np.linalg.norm(made.cell[axis])
        np.testing.assert_allclose(np.delete(made.cell, axis, 0) @ direction, 0, atol=1e-9)
        gap = np.linalg.norm(made.cell[axis]) - np.ptp(piece.position @ direction)
        assert CUTOFF < gap < 2.1 * CUTOFF + 1e-4 * scale


def test_a_periodic_piece_is_returned_as_it_is():
    piece = random_piece(5, [6], 0)
    assert make_periodic(piece, CUTOFF) is piece


@pytest.mark.parametrize("pbc", [(True, True, True), (True, True, False), (True, False, False)])
def test_cells_that_do_not_span_their_periodic_directions_are_refused(pbc):
    piece = random_piece(5, [6], 0, pbc)
    parallel = piece.cell.copy()
    parallel[0] = parallel[1] * -2.0 if pbc[1] else 0.0
    with pytest.raises(InputError, match=rf"the {sum(pbc)} periodic direction"):
        make_periodic(replace(piece, cell=parallel), CUTOFF)
