"""Frames that are refused, and those that are not."""

import dataclasses

import numpy as np
import pytest
from ase.build import bulk
from ase.geometry import get_distances

from dlpr.errors import InputError
from dlpr.structures import checks
from dlpr.structures.checks import check_record, frame_fingerprint
from dlpr.structures.parse import Record

RNG = np.random.default_rng(0)


def record(position=None, number=None, cell=None, pbc=(True, True, True), **labels):
    atoms = bulk("Si", cubic=True)
    position = np.asarray(atoms.positions if position is None else position, float)
    number = np.full(len(position), 14) if number is None else np.asarray(number)
    cell = np.asarray(atoms.cell.array if cell is None else cell, float)
    blank = {"energy": np.nan, "force": None, "stress": None, "info": {}, "keys": frozenset()}
    return Record(
        position=position, number=number, cell=cell, pbc=np.array(pbc), file="dir/a.xyz", frame=7,
        **{**blank, **labels},
    )  # fmt: skip


def refused(found, *words, **options):
    with pytest.raises(InputError) as caught:
        check_record(found, **options)
    for word in ("dir/a.xyz, frame 7", *words):
        assert word in str(caught.value)


def test_good_frames_pass():
    check_record(record())
    check_record(record([[0, 0, 0]], cell=np.zeros((3, 3)), pbc=(False,) * 3))
    check_record(record(cell=np.diag([5.43, 5.43, 0]), pbc=(True, True, False)))
    check_record(record(cell=[[0, 0, 0], [0, 0, 0], [3.0, 3.0, 6.0]], pbc=(False, False, True)))
    check_record(record(energy=1.0, force=np.zeros((8, 3)), stress=np.full((3, 3), np.nan)))


def test_an_empty_frame_is_refused():
    refused(record(np.empty((0, 3))), "no atoms")


@pytest.mark.parametrize("number", [0, 119, -1])
def test_unknown_species_are_refused(number):
    refused(
        record(number=[14] * 5 + [number] + [14] * 2), "atom 5", f"number {number} ", "type_map"
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(value):
    position, force, cell = record().position.copy(), np.zeros((8, 3)), np.eye(3) * 9
    position[3, 1] = force[6, 2] = cell[1, 1] = value
    refused(record(position), "atom 3", str(value))
    refused(record(force=force), "atom 6", "forces")
    refused(record(cell=cell), "cell vector 1")
    stress = np.zeros((3, 3))
    stress[0, 0] = value
    refused(record(stress=stress), "stress")
    if value == np.inf:
        refused(record(energy=value), "energy")


@pytest.mark.parametrize(
    ("cell", "pbc", "words"),
    [
        (np.zeros((3, 3)), (1, 1, 1), ["cell vector 0", "(0, 0, 0)"]),
        (np.diag([9, 9, 0]), (1, 1, 1), ["cell vector 2"]),
        (np.diag([9, 0, 9]), (0, 1, 0), ["cell vector 1"]),
        ([[9, 0, 0], [0, 9, 0], [3, 3, 0]], (1, 1, 1), ["no volume", "0 Å^3"]),
        ([[9, 0, 0], [9, 1e-6, 0], [0, 0, 9]], (1, 1, 0), ["no area", "9e-06 Å^2"]),
        (np.diag([9, 9, 0.05]), (1, 1, 1), ["0.05 Å thick", "cell vector 2", "0.1 Å"]),
    ],
)
def test_cells_that_span_no_space_are_refused(cell, pbc, words):
    refused(record([[0, 0, 0]], cell=cell, pbc=[bool(x) for x in pbc]), *words)


def test_two_atoms_at_one_place_are_named():
    position = RNG.random((8, 3)) * 0.1 + np.arange(8)[:, None]
    position[6] = position[2] + [0.03, 0, 0.04]
    refused(record(position, np.arange(1, 9), np.eye(3) * 20), "atoms 2 (Li) and 6 (N)", "0.05 Å")
    check_record(record(position, cell=np.eye(3) * 20), min_distance=0.049)
    check_record(record(position, cell=np.eye(3) * 20), min_distance=0)


TRICLINIC = np.array([[7.0, 0, 0], [3, 6, 0], [-2, 1, 8]])


@pytest.mark.parametrize("shift", [(1, 0, 0), (0, -1, 0), (1, -1, 1), (0, 0, 2)])
@pytest.mark.parametrize("side", [0.0, 1e-3, 1 - 1e-3])
def test_atoms_at_one_place_across_the_boundary(shift, side):
    fraction = RNG.random((6, 3)) * 0.2 + 0.4
    fraction[:4] = np.array([[0.1, 0.1, 0.1], [0.1, 0.8, 0.1], [0.8, 0.1, 0.1], [0.1, 0.1, 0.8]])
    fraction[4] = side
    position = fraction @ TRICLINIC
    position[5] = position[4] + np.array(shift) @ TRICLINIC + [-0.03, 0.02, 0.01]
    refused(record(position, cell=TRICLINIC), "atoms 4", "and 5")
    pbc = np.array(shift) == 0
    check_record(record(position, cell=TRICLINIC, pbc=pbc))


@pytest.mark.parametrize("corner", [(1, 0, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)])
def test_atoms_across_opposite_corners(corner):
    low = np.where(corner, 0.002, 0.998)  # crossing up along some axes and down along others
    refused(record([low, 1 - low] @ TRICLINIC, cell=TRICLINIC), "atoms 0", "and 1")


def test_an_atom_near_its_own_image_is_a_cell_too_thin():
    cell = [[0.3, 0, 0], [4, 9, 0], [0, 0, 9]]
    refused(record([[1, 1, 1]], cell=cell), "thick", "0.301 Å between them", min_distance=0.301)
    check_record(record([[1, 1, 1]], cell=cell), min_distance=0.27)


@pytest.mark.parametrize("pbc", [(1, 1, 1), (0, 1, 0), (0, 0, 0)])
def test_the_closest_pair_is_that_of_all_distances(monkeypatch, pbc):
    monkeypatch.setattr(checks, "_FIRST_QUERY", 3)
    monkeypatch.setattr(checks, "_LAST_QUERY", 11)
    pbc = np.array(pbc, bool)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        position = (rng.random((60, 3)) * 3 - 1) @ TRICLINIC
        _, distance = get_distances(position, cell=TRICLINIC, pbc=pbc)
        np.fill_diagonal(distance, np.inf)
        a, b = sorted(int(i) for i in np.unravel_index(distance.argmin(), distance.shape))
        found = record(position, cell=TRICLINIC, pbc=pbc)
        refused(found, f"atoms {a} ", f"and {b} ", min_distance=distance.min() + 1e-9)
        check_record(found, min_distance=distance.min() - 1e-9)


def test_many_atoms_at_one_place_end_soon():
    refused(record(np.zeros((20_000, 3)), pbc=(False,) * 3), "are 0 Å apart")


def test_fingerprints_are_equal_for_repeats_alone():
    one = record(energy=1.0)
    assert len(frame_fingerprint(one)) == 16
    assert frame_fingerprint(one) == frame_fingerprint(
        dataclasses.replace(one, energy=2.0, frame=8)
    )
    moved = one.position.copy()
    moved[0, 0] = np.nextafter(moved[0, 0], 1)
    others = [
        dataclasses.replace(one, position=moved),
        dataclasses.replace(one, number=np.arange(1, 9)),
        dataclasses.replace(one, cell=one.cell * 2),
        dataclasses.replace(one, pbc=np.array([True, True, False])),
    ]
    assert len({frame_fingerprint(r) for r in [one, *others]}) == 5
