"""Records equal what ASE reads; labels, units and types are as the job says."""

import bz2
import gzip
import lzma

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import voigt_6_to_full_3x3_stress

from dlpr.errors import InputError, JobError
from dlpr.structures import parse
from dlpr.structures.files import Source
from dlpr.structures.index import index_file
from dlpr.structures.labels import Reading, reading
from dlpr.structures.parse import read_frames
from dlpr.units import ENERGY_UNITS, LENGTH_UNITS


def labelled(n_frames=4, seed=0):
    rng = np.random.default_rng(seed)
    frames = []
    for i in range(n_frames):
        atoms = bulk("NaCl", "rocksalt", a=5.6) * (1, 1, i + 1)
        atoms.rattle(0.1, seed=i)
        atoms.info["config_type"] = "ab"[i % 2]
        atoms.calc = SinglePointCalculator(
            atoms, energy=rng.normal(), forces=rng.normal(size=(len(atoms), 3)),
            stress=rng.normal(size=6),
        )  # fmt: skip
        frames.append(atoms)
    return frames


def read(path, how=None, index=":"):
    found = index_file(Source(path, index), path.with_name("scratch"))
    return list(read_frames(found, found.selected, how or Reading()))


def assert_same(records, frames, exact=True):
    tolerance = 0.0 if exact else 1e-7
    assert len(records) == len(frames)
    for record, atoms in zip(records, frames, strict=True):
        results = atoms.calc.results
        stress = voigt_6_to_full_3x3_stress(results["stress"])
        for mine, theirs in [
            (record.position, atoms.positions),
            (record.cell, atoms.cell.array),
            (record.force, results["forces"]),
            (record.stress, stress),
            (record.energy, results["energy"]),
        ]:
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=tolerance)
        assert record.number.tolist() == atoms.numbers.tolist()
        assert record.pbc.tolist() == atoms.pbc.tolist()


@pytest.mark.parametrize(
    "name", ["a.extxyz", "a.xyz", "a.traj", "a.xyz.gz", "a.xyz.bz2", "a.traj.xz"]
)
def test_records_are_what_ase_reads(tmp_path, name):
    frames = labelled()
    plain = tmp_path / name.removesuffix(".gz").removesuffix(".bz2").removesuffix(".xz")
    ase.io.write(plain, frames)
    path = tmp_path / name
    if path != plain:
        pack = {".gz": gzip, ".bz2": bz2, ".xz": lzma}[path.suffix]
        path.write_bytes(pack.compress(plain.read_bytes()))
    records = read(path)
    assert_same(records, ase.io.read(plain, ":"))
    assert_same(records, frames, exact=False)
    assert [r.frame for r in records] == [0, 1, 2, 3]
    assert {r.file for r in records} == {str(path)}
    assert [r.info["energy"] for r in records] == [r.energy for r in records]
    if "xyz" in name:
        assert [r.info["config_type"] for r in records] == ["a", "b", "a", "b"]


@pytest.mark.parametrize("name", ["a.xyz", "a.traj"])
@pytest.mark.parametrize("order", [[2], [3, 1, 0], [0, 2, 3, 1, 1], [0, 3]])
def test_any_order_of_frames(tmp_path, name, order):
    path = tmp_path / name
    ase.io.write(path, labelled())
    index = index_file(Source(path), tmp_path / "scratch")
    records = list(read_frames(index, order, Reading()))
    assert [r.frame for r in records] == order
    assert [len(r.number) for r in records] == [2 * (i + 1) for i in order]


@pytest.mark.parametrize(("name", "kind"), [("POSCAR", "vasp"), ("a.cif", "cif")])
def test_formats_of_one_frame(tmp_path, name, kind):
    atoms = bulk("Si", cubic=True)
    ase.io.write(tmp_path / name, atoms, format=kind)
    (record,) = read(tmp_path / name, index="0")
    np.testing.assert_allclose(record.cell, atoms.cell.array, atol=1e-6)
    assert record.number.tolist() == [14] * 8
    assert np.isnan(record.energy)
    assert record.force is record.stress is None


@pytest.mark.parametrize("n_atoms", [9, 10, 11, 25])
def test_a_large_frame_in_blocks_equals_the_whole(tmp_path, monkeypatch, n_atoms):
    rng = np.random.default_rng(n_atoms)
    atoms = Atoms(rng.choice([6, 14], n_atoms), rng.random((n_atoms, 3)) * 9, cell=[9] * 3, pbc=1)
    atoms.new_array("type", np.arange(n_atoms) % 3 + 1)
    atoms.calc = SinglePointCalculator(
        atoms, energy=1.5, forces=rng.normal(size=(n_atoms, 3)), stress=rng.normal(size=6)
    )
    path = tmp_path / "a.xyz"
    ase.io.write(path, [bulk("Si"), atoms, bulk("Si")])
    how = reading(type_map={1: "C", 2: "Si", 3: "O", 14: "Si"})
    (_, whole, _), expected = read(path, how), ase.io.read(path, 1)
    sizes = []
    monkeypatch.setattr(parse, "BLOCK_ROWS", 10)
    original = parse._parse

    def spy(text, first, place):
        sizes.append(int(text.split()[0]))
        return original(text, first, place)

    monkeypatch.setattr(parse, "_parse", spy)
    (_, record, _) = read(path, how)
    assert sizes == [2, *[10] * (n_atoms // 10), *([n_atoms % 10] if n_atoms % 10 else []), 2]
    for mine, theirs in [(record.position, expected.positions), (record.force, whole.force)]:
        assert mine.tobytes() == np.ascontiguousarray(theirs).tobytes()
    np.testing.assert_array_equal(whole.force, expected.calc.results["forces"])
    assert record.number.tolist() == [[6, 14, 8][i % 3] for i in range(n_atoms)]
    assert record.energy == 1.5
    np.testing.assert_array_equal(record.stress, whole.stress)
    assert record.info.keys() == whole.info.keys()
    assert record.keys == whole.keys


def test_cell_vectors_as_adf_writes_them_also_in_blocks(tmp_path, monkeypatch):
    path = tmp_path / "a.xyz"
    rows = "".join(f"Si {i} 0 0\n" for i in range(7))
    path.write_text(f"7\nsome text\n{rows}VEC1 8 0 0\nVEC2 0 5 0\n1\n\nSi 0 0 0\n")
    whole = read(path)
    monkeypatch.setattr(parse, "BLOCK_ROWS", 3)
    for records in (whole, read(path)):
        assert [len(r.number) for r in records] == [7, 1]
        assert records[0].cell.tolist() == [[8, 0, 0], [0, 5, 0], [0, 0, 0]]
        assert records[0].pbc.tolist() == [True, True, False]
        assert records[0].position[:, 0].tolist() == list(range(7))


def test_keys_name_the_labels_and_absence_is_no_label(tmp_path):
    atoms = bulk("Si", cubic=True)
    rng = np.random.default_rng(0)
    virial = rng.normal(size=(3, 3))
    atoms.info |= {"REF_energy": -3.0, "REF_stress": np.arange(6.0)}
    atoms.info["virials"] = (virial + virial.T).ravel()
    atoms.arrays["REF_forces"] = rng.normal(size=(8, 3))
    plain = bulk("Si")
    plain.calc = SinglePointCalculator(plain, energy=1.0, stress=np.arange(6.0))
    ase.io.write(tmp_path / "a.xyz", [atoms, plain])
    keys = {"energy": "REF_energy", "forces": "REF_forces", "virial": "virials"}
    named, other = read(tmp_path / "a.xyz", reading(keys))
    assert named.energy == -3.0
    np.testing.assert_allclose(named.force, atoms.arrays["REF_forces"], atol=1e-8)
    np.testing.assert_allclose(named.stress, -(virial + virial.T) / atoms.get_volume())
    assert np.isnan(other.energy)
    assert other.force is other.stress is None
    assert [k in named.keys for k in keys.values()] == [True] * 3
    assert [k in other.keys for k in keys.values()] == [False] * 3
    voigt, _ = read(tmp_path / "a.xyz", reading({"stress": "REF_stress"}))
    assert voigt.stress.tolist() == [[0, 5, 4], [5, 1, 3], [4, 3, 2]]


def test_a_virial_without_volume_is_no_stress(tmp_path):
    (tmp_path / "a.xyz").write_text('1\nvirial="1 0 0 0 1 0 0 0 1"\nSi 0 0 0\n')
    (record,) = read(tmp_path / "a.xyz", reading({"virial": "virial"}))
    assert record.stress is None


def test_units_convert_everything_read(tmp_path):
    frames = labelled(1)
    ase.io.write(tmp_path / "a.xyz", frames)
    (plain,) = read(tmp_path / "a.xyz")
    (record,) = read(tmp_path / "a.xyz", reading(units={"length": "bohr", "energy": "kcal/mol"}))
    length, energy = LENGTH_UNITS["bohr"], ENERGY_UNITS["kcal/mol"]
    np.testing.assert_allclose(record.position, plain.position * length)
    np.testing.assert_allclose(record.cell, plain.cell * length)
    np.testing.assert_allclose(record.energy, plain.energy * energy)
    np.testing.assert_allclose(record.force, plain.force * energy / length)
    np.testing.assert_allclose(record.stress, plain.stress * energy / length**3)
    # a virial is an energy: its stress is that of the converted volume
    text = (tmp_path / "a.xyz").read_text().replace("stress=", "virial=")
    (tmp_path / "b.xyz").write_text(text)
    how = reading({"virial": "virial"}, {"length": "bohr", "energy": "kcal/mol"})
    (virial,) = read(tmp_path / "b.xyz", how)
    volume = abs(np.linalg.det(plain.cell)) * length**3
    np.testing.assert_allclose(virial.stress, -plain.stress * energy / volume)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"keys": {"enrgy": "E"}}, ["enrgy", "'energy'"]),
        ({"keys": {"stress": "a", "virial": "b"}}, ["both stress and virial"]),
        ({"units": {"lenght": "bohr"}}, ["lenght", "'length'"]),
        ({"units": {"length": "Bohr"}}, ["Bohr", "'bohr'"]),
        ({"units": {"length": "eV"}}, ["eV", "length"]),
        ({"units": {"energy": "kcal/mole"}}, ["kcal/mole"]),
        ({"type_map": {1: "Sj"}}, ["Sj", "type_map"]),
        ({"type_map": {1: "X"}}, ["'X'"]),
        ({"type_map": {"one": "Si"}}, ["'one'"]),
    ],
)
def test_settings_that_are_not_known_are_refused(settings, words):
    with pytest.raises(JobError) as caught:
        reading(**settings)
    for word in words:
        assert word in str(caught.value)


DUMP = """ITEM: TIMESTEP
{step}
ITEM: NUMBER OF ATOMS
3
ITEM: BOX BOUNDS pp pp ff
0 9
0 9
0 9
ITEM: ATOMS id type x y z fx fy fz
2 2 {step} 2 0 0 0 1
1 1 {step} 0 0 0 0 2
3 1 {step} 4 0 0 0 3
"""


def test_a_lammps_dump_needs_a_type_map_and_has_no_energy(tmp_path):
    path = tmp_path / "a.lammpstrj"
    path.write_text("".join(DUMP.format(step=i) for i in range(3)))
    first, last = read(path, reading(type_map={1: "Si", 2: "O"}), index="::2")
    assert first.number.tolist() == [14, 8, 14]
    assert last.position.tolist() == [[2, 0, 0], [2, 2, 0], [2, 4, 0]]
    assert last.pbc.tolist() == [True, True, False]
    assert last.force[:, 2].tolist() == [2, 1, 3]
    assert np.isnan(last.energy)  # ASE makes up 0
    assert "energy" not in last.keys
    with pytest.raises(InputError, match=r"frame 0: its atoms have type numbers \(1, 2\)"):
        read(path)
    with pytest.raises(InputError, match=r"frame 0, atom 1: type 2 is not in type_map"):
        read(path, reading(type_map={1: "Si"}))


def test_types_without_species_in_extended_xyz(tmp_path):
    path = tmp_path / "a.xyz"
    path.write_text("2\nProperties=type:I:1:pos:R:3\n1 0 0 0\n2 0 0 2\n")
    (record,) = read(path, reading(type_map={1: "Si", 2: "O"}))
    assert record.number.tolist() == [14, 8]


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        ("2\n\nSi 0 0 0\nSi 0 0\n", ["atom 1: 3 columns, 4 in the first row"]),
        ("2\n\nSi 0 0 0\nSi 0 0 x\n", ["ValueError", "'x'"]),
        ("1\n\nQq 0 0 0\n", ["Qq"]),
        ('1\nstress="1 2 3 4 5 6"\nSi 0 0 0\n', ["stress"]),
        ("1\nname=caf\xe9\nSi 0 0 0\n", ["UTF-8"]),
    ],
)
def test_a_frame_that_ase_cannot_parse_is_named(tmp_path, frame, words):
    path = tmp_path / "a.xyz"
    path.write_bytes(b"1\n\nSi 0 0 0\n" + frame.encode("latin-1"))
    with pytest.raises(InputError) as caught:
        read(path)
    for word in ("a.xyz, frame 1", *words):
        assert word in str(caught.value)


def test_an_uneven_row_in_a_later_block_is_named_by_its_atom(tmp_path, monkeypatch):
    monkeypatch.setattr(parse, "BLOCK_ROWS", 3)
    (tmp_path / "a.xyz").write_text("7\n\n" + "Si 0 0 0\n" * 4 + "Si 0 0\n" + "Si 0 0 0\n" * 2)
    with pytest.raises(InputError, match="atom 4: 3 columns"):
        read(tmp_path / "a.xyz")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"energy": "three"}, ["energy", "(3,)", "one number"]),
        ({"forces": "three"}, ["forces", "(3,)", "(2, 3)"]),
        ({"stress": "three"}, ["stress", "(3,)", "6 (Voigt) or 9"]),
        ({"energy": "word"}, ["energy", "'hello'"]),
    ],
)
def test_labels_of_a_wrong_shape_are_refused(tmp_path, keys, words):
    (tmp_path / "a.xyz").write_text('2\nthree="1 2 3" word=hello\nSi 0 0 0\nSi 0 0 2\n')
    with pytest.raises(InputError) as caught:
        read(tmp_path / "a.xyz", reading(keys))
    for word in ("a.xyz, frame 0", *words, *keys.values()):
        assert word in str(caught.value)


def test_a_file_that_changed_after_indexing_is_said(tmp_path):
    path = tmp_path / "a.traj"
    ase.io.write(path, labelled(4))
    index = index_file(Source(path), tmp_path / "scratch")
    ase.io.write(path, labelled(2))
    with pytest.raises(InputError, match=r"frame 1.*run again if the file has changed"):
        list(read_frames(index, [0, 1, 2], Reading()))
