from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from descriptors_cases import HYPERS, featomic_full, random_piece
from hypothesis import given, settings
from hypothesis import strategies as st

from dlpr.descriptors.neighbours import Surroundings
from dlpr.descriptors.soap import Soap
from dlpr.errors import InputError

SPECIES = (1, 6)
SOAP = Soap(HYPERS, SPECIES)
CUTOFF = SOAP.cutoff
MIXED = [(True, True, False), (False, True, True), (False, True, False), (True, False, False)]


def found(pieces, centres=None, cutoff=CUTOFF):
    """Vectors to the neighbours of each centre, one array (n, 3) for each of the species."""
    if centres is None:
        centres = [np.arange(len(piece.species)) for piece in pieces]
    n_centres = sum(map(len, centres))
    near = Surroundings(pieces, centres, cutoff, SPECIES).neighbours(0, n_centres)
    vectors = np.split((near.distance * near.direction).T, np.cumsum(near.count)[:-1])
    return [vectors[row * 2 : row * 2 + 2] for row in range(n_centres)]


def by_hand(piece, atom, cutoff=CUTOFF, n_cells=6):
    """All images within a wide block of cells, one by one."""
    steps = [range(-n_cells, n_cells + 1) if open_ else (0,) for open_ in piece.pbc]
    shifts = np.array(list(product(*steps))) @ np.where(piece.pbc[:, None], piece.cell, 0.0)
    vectors = piece.position[:, None] + shifts - piece.position[atom]
    distance = np.linalg.norm(vectors, axis=2)
    near = (distance < cutoff) & (distance > 1e-9)
    return [vectors[near & (piece.species == s)[:, None]] for s in SPECIES]


def assert_same(vectors, expected):
    assert len(vectors) == len(expected)
    for v, e in zip(vectors, expected, strict=True):
        assert v.shape == e.shape
        order, wanted = (np.lexsort(x.round(6).T) for x in (v, e))
        np.testing.assert_allclose(v[order], e[wanted], rtol=0, atol=1e-11)


@given(
    seed=st.integers(0, 10**6),
    pbc=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    far=st.integers(0, 3),
)
@settings(max_examples=100, deadline=None)
def test_neighbours_are_those_found_by_hand(seed, pbc, sizes, far):
    rng = np.random.default_rng(seed)
    pieces = [random_piece(n, SPECIES, seed + n, pbc) for n in sizes]
    outside = [
        rng.integers(-far, far + 1, (n, 3)) * piece.pbc
        for n, piece in zip(sizes, pieces, strict=True)
    ]
    pieces = [
        replace(piece, position=piece.position + shift @ piece.cell)
        for piece, shift in zip(pieces, outside, strict=True)
    ]
    vectors = iter(found(pieces))
    for piece in pieces:
        for atom in range(len(piece.species)):
            assert_same(next(vectors), by_hand(piece, atom, n_cells=6 + 2 * far))


def test_a_flat_cell_sees_many_images():
    piece = random_piece(1, SPECIES, 0)
    piece = replace(piece, cell=np.array([[0.9, 0, 0], [0.5, 1.1, 0], [0.3, 0.4, 2.0]]))
    assert_same(found([piece])[0], by_hand(piece, 0, n_cells=12))


def test_neighbours_of_chosen_centres_are_those_of_all():
    pieces = [random_piece(7, SPECIES, seed) for seed in range(3)]
    everyone = found(pieces)
    centres = [np.array([5, 0]), np.array([], int), np.array([3])]
    for row, some in zip((5, 0, 17), found(pieces, centres), strict=True):
        for s in range(2):
            np.testing.assert_array_equal(some[s], everyone[row][s])


@pytest.mark.parametrize("pbc", [*MIXED, (False, False, False)])
@pytest.mark.parametrize("known", [True, False])
def test_slab_wire_and_cluster_equal_a_large_periodic_cell(pbc, known):
    piece = random_piece(20, SPECIES, 3, pbc)
    cell = piece.cell.copy()
    for axis in np.flatnonzero(~piece.pbc):
        cell[axis] *= 100.0 / np.linalg.norm(cell[axis])
    expected, _ = featomic_full([replace(piece, cell=cell, pbc=np.ones(3, bool))], SPECIES)
    if not known:
        piece = replace(piece, cell=piece.cell * np.array(pbc)[:, None])
    features = SOAP.expand(SOAP.compute([piece]))
    np.testing.assert_allclose(features, expected, rtol=0, atol=1e-13)
    closed = SOAP.expand(SOAP.compute([random_piece(20, SPECIES, 3)]))
    assert np.abs(features - closed).max() > 1e-3


@pytest.mark.parametrize("pbc", [(True, True, True), (True, True, False), (True, False, False)])
def test_cells_that_do_not_span_their_periodic_directions_are_refused(pbc):
    piece = random_piece(5, SPECIES, 0, pbc)
    parallel = piece.cell.copy()
    parallel[0] = parallel[1] * -2.0 if pbc[1] else 0.0
    with pytest.raises(InputError, match=rf"the {sum(pbc)} periodic direction.* span no volume"):
        SOAP.compute([replace(piece, cell=parallel)])
