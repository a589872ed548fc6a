"""Sorting by bins and cutting clusters, against brute force over periodic images."""

import itertools

import numpy as np
import pytest
from ase import Atoms
from ase.neighborlist import neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st

from dlpr.structures import spatial
from dlpr.structures.spatial import complete_box, cut_cluster, sort_by_bins, wrap

TRICLINIC = np.array([[20.0, 0, 0], [7, 18, 0], [-6, 5, 22]])
CASES = {
    "cubic": (np.eye(3) * 25, (1, 1, 1)),
    "triclinic": (TRICLINIC, (1, 1, 1)),
    "slab": (np.diag([20.0, 25.0, 0.0]), (1, 1, 0)),
    "tilted slab": (TRICLINIC, (0, 1, 1)),
    "wire": (np.array([[0, 0, 0], [4.0, 3, 15], [0, 0, 0]]), (0, 1, 0)),
    "cluster": (np.zeros((3, 3)), (0, 0, 0)),
    "left-handed": (TRICLINIC[[1, 0, 2]], (1, 1, 1)),
    "thin": (np.diag([3.1, 25, 25]), (1, 1, 1)),
    "thin wire": (np.diag([0, 0, 2.7]), (0, 0, 1)),
}


def atoms_in(cell, pbc, n_atoms=400, seed=0, spread=3.0):
    """Atoms scattered over several cells: nothing is wrapped."""
    rng = np.random.default_rng(seed)
    pbc = np.array(pbc, bool)
    frame = np.where(pbc[:, None], cell, np.eye(3) * 22)
    position = ((rng.random((n_atoms, 3)) - 0.4) * np.where(pbc, spread, 1.0)) @ frame
    return position, np.asarray(cell, float), pbc


class Frame:
    """A sorted frame that counts what is read of it."""

    def __init__(self, position, cell, pbc):
        self.cell, self.pbc = cell, pbc
        self.order, *bins = sort_by_bins(position, cell, pbc)
        self.bins = dict(
            zip(["bin_shape", "bin_box", "bin_origin", "bin_range"], bins, strict=True)
        )
        self.position = position[self.order]
        self.species = (self.order % 7 + 1).astype(np.uint8)
        self.n_read = 0

    def read(self, a, b):
        self.n_read += b - a
        return self.position[a:b], self.species[a:b], self.order[a:b]

    def cut(self, start, stop, cutoff):
        return cut_cluster(
            self.read, **self.bins, cell=self.cell, pbc=self.pbc, start=start, stop=stop,
            cutoff=cutoff,
        )  # fmt: skip


def surroundings(piece, cutoff):
    """Per centre, the sorted (species, vector) of all atoms within the cutoff."""
    found = []
    for centre in piece.centre:
        vector = piece.position - piece.position[centre]
        near = np.linalg.norm(vector, axis=1) < cutoff
        found.append((piece.species[near], vector[near]))
    return found


def brute_force(position, cell, pbc, centre, cutoff):
    """All images of all atoms around one atom, by going through far more cells than needed."""
    reach = [0] * 3
    if pbc.any():
        frame = complete_box(position, cell, pbc)[0]
        thickness = 1 / np.linalg.norm(spatial.reciprocal(frame), axis=1)
        fraction = (position - position[centre]) @ np.linalg.inv(frame)
        reach = np.where(pbc, np.ceil(cutoff / thickness + abs(fraction).max(axis=0)) + 1, 0)
    for shift in itertools.product(*[range(-int(r), int(r) + 1) for r in reach]):
        vector = position + np.array(shift) @ cell - position[centre]
        near = np.flatnonzero(np.linalg.norm(vector, axis=1) < cutoff)
        yield from zip(near, vector[near], strict=True)


def same_sets(mine, theirs):
    assert len(mine) == len(theirs)
    mine, theirs = (np.round(x, 6)[np.lexsort(np.round(x, 6).T)] + 0.0 for x in (mine, theirs))
    np.testing.assert_allclose(mine, theirs, atol=2e-6)


@pytest.mark.parametrize("cutoff", [3.0, 7.5])
@pytest.mark.parametrize("case", CASES)
def test_every_environment_of_a_cut_is_that_of_the_frame(case, cutoff):
    position, cell, pbc = atoms_in(*CASES[case], n_atoms=120 if "thin" in case else 400)
    frame = Frame(position, cell, pbc)
    start, stop = 30, 65
    piece = frame.cut(start, stop, cutoff)
    assert not piece.pbc.any()
    assert not piece.cell.any()
    assert piece.species[piece.centre].tolist() == frame.species[start:stop].tolist()
    assert piece.atom[piece.centre].tolist() == frame.order[start:stop].tolist()
    image = (piece.position - position[piece.atom]) @ np.linalg.pinv(
        np.where(pbc[:, None], cell, 0)
    )
    np.testing.assert_allclose(image, np.round(image), atol=1e-9)
    for stored, (species, vector) in zip(
        range(start, stop), surroundings(piece, cutoff), strict=True
    ):
        expected = list(brute_force(frame.position, cell, pbc, stored, cutoff))
        z = frame.species[[row for row, _ in expected]]
        same_sets(
            np.column_stack([vector, species]), np.column_stack([[v for _, v in expected], z])
        )


def test_images_agree_with_ase():
    cell = np.array([[4.0, 0, 0], [1, 5, 0], [0.5, -1, 4.5]])
    position, cell, pbc = atoms_in(cell, (1, 1, 1), n_atoms=20)
    frame = Frame(position, cell, pbc)
    piece = frame.cut(3, 17, 9.0)
    atoms = Atoms(frame.species, frame.position, cell=cell, pbc=True)
    i, vector = neighbor_list("iD", atoms, 9.0)
    for stored, (_, found) in zip(range(3, 17), surroundings(piece, 9.0), strict=True):
        same_sets(found, np.vstack([vector[i == stored], np.zeros((1, 3))]))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    pbc=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    n_atoms=st.integers(2, 150),
    cutoff=st.floats(1.0, 8.0),
    edge=st.sampled_from([1.5, 3.0, 6.0]),
)
def test_any_cell_and_bins(seed, pbc, n_atoms, cutoff, edge):
    rng = np.random.default_rng(seed)
    cell = np.diag(rng.uniform(3, 15, 3)) + rng.uniform(-2, 2, (3, 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spatial, "BIN_EDGE", edge)
        position, cell, pbc = atoms_in(cell, pbc, n_atoms, seed)
        frame = Frame(position, cell, pbc)
    start = int(rng.integers(n_atoms))
    stop = int(rng.integers(start, n_atoms)) + 1
    piece = frame.cut(start, stop, cutoff)
    row = int(rng.integers(start, stop))
    _, vector = surroundings(piece, cutoff)[row - start]
    same_sets(vector, [v for _, v in brute_force(frame.position, cell, pbc, row, cutoff)])


@pytest.mark.parametrize("case", CASES)
def test_a_cut_holds_nothing_that_is_not_needed(case):
    position, cell, pbc = atoms_in(*CASES[case])
    piece = Frame(position, cell, pbc).cut(10, 20, 4.0)
    distance = np.linalg.norm(piece.position[:, None] - piece.position[piece.centre], axis=2)
    assert distance.min(axis=1).max() <= 4.0 + 1e-5


def test_atoms_of_a_cut_are_in_source_order_then_image():
    position, cell, pbc = atoms_in(np.eye(3) * 6, (1, 1, 1), n_atoms=30, spread=1.0)
    frame = Frame(position, cell, pbc)
    frame.species = frame.order.astype(np.uint8)  # lets a piece tell its source atoms
    piece = frame.cut(5, 12, 8.0)
    source = piece.species.astype(int)
    assert (np.diff(source) >= 0).all()
    assert np.bincount(source).max() > 1
    wrapped = wrap(position, *complete_box(position, cell, pbc), pbc)[1]
    image = np.round((piece.position - wrapped[source]) / 6).astype(int)
    key = np.column_stack([source, image])
    assert key.tolist() == sorted(key.tolist())
    assert source[piece.centre].tolist() == frame.order[5:12].tolist()


def test_atoms_inside_the_cell_keep_their_bits():
    rng = np.random.default_rng(3)
    cell = TRICLINIC * 1.1
    position = rng.random((300, 3)) @ cell
    frame = Frame(position, cell, np.ones(3, bool))
    piece = frame.cut(0, 40, 2.0)
    assert piece.position[piece.centre].tobytes() == frame.position[:40].tobytes()


@pytest.mark.parametrize("case", CASES)
def test_bins_hold_each_atom_once_and_where_it_is(case):
    position, cell, pbc = atoms_in(*CASES[case], n_atoms=900)
    order, shape, box, origin, ranges = sort_by_bins(position, cell, pbc)
    assert sorted(order) == list(range(900))
    assert len(ranges) == shape.prod()
    ranges_in_order = ranges[np.argsort(ranges[:, 0], kind="stable")]
    filled = ranges_in_order[ranges_in_order[:, 1] > ranges_in_order[:, 0]]
    assert filled[0, 0] == 0
    assert filled[-1, 1] == 900
    assert (filled[1:, 0] == filled[:-1, 1]).all()
    fraction, wrapped = wrap(position, box, origin, pbc)
    np.testing.assert_allclose(origin + fraction @ box, wrapped, atol=1e-9)
    for axis in np.flatnonzero(pbc):
        np.testing.assert_array_equal(box[axis], cell[axis])
        assert fraction[:, axis].min() >= 0
        assert fraction[:, axis].max() < 1
    place = np.minimum((fraction * shape).astype(int), shape - 1)
    for number, (start, stop) in enumerate(ranges):
        inside = order[start:stop]
        assert (np.diff(inside) > 0).all()  # source order within a bin
        assert (place[inside] == np.unravel_index(number, tuple(shape))).all()


def test_open_axes_are_orthogonal_to_all_others():
    position, cell, pbc = atoms_in(*CASES["tilted slab"])
    box, _ = complete_box(position, cell, pbc)
    np.testing.assert_allclose(box[0] @ box[1:].T, 0, atol=1e-12)
    position, cell, pbc = atoms_in(*CASES["wire"])
    box, _ = complete_box(position, cell, pbc)
    products = box @ box.T
    np.testing.assert_allclose(products - np.diag(np.diag(products)), 0, atol=1e-9)


def test_a_run_of_stored_atoms_is_compact_and_a_cut_reads_little():
    rng = np.random.default_rng(0)
    n_atoms, cell, pbc = 40_000, np.eye(3) * 74.0, np.ones(3, bool)
    frame = Frame(rng.random((n_atoms, 3)) * 74.0, cell, pbc)
    assert frame.bins["bin_shape"].tolist() == [12, 12, 12]
    piece = frame.cut(20_000, 21_000, 4.0)
    assert len(piece.centre) == 1000
    # a cube of 1000 atoms has an edge of 21.6 Å; with 4 Å around it 2580 atoms
    assert len(piece.position) < 2 * 2580
    assert frame.n_read < n_atoms / 3
    assert piece.position[piece.centre].tobytes() == frame.position[20_000:21_000].tobytes()


def test_vacuum_does_not_multiply_bins():
    position = np.random.default_rng(0).random((100, 3)) * 10
    position[0] += 1e5
    order, shape, _, _, ranges = sort_by_bins(position, np.zeros((3, 3)), np.zeros(3, bool))
    assert shape.prod() <= 100
    assert (ranges[:, 1] - ranges[:, 0]).sum() == len(order) == 100


def test_atoms_just_below_a_face_stay_in_the_cell():
    position = np.array([[-1e-18, 0, 0], [5, 5, 5], [10.0, 0, 0]])
    fraction, wrapped = wrap(position, np.eye(3) * 10, np.zeros(3), np.ones(3, bool))
    assert (fraction >= 0).all()
    assert (fraction < 1).all()
    np.testing.assert_allclose(wrapped, [[0, 0, 0], [5, 5, 5], [0, 0, 0]], atol=1e-15)
