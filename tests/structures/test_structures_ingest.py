"""Files to Frames."""

import dataclasses

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from dlpr.errors import InputError, JobError
from dlpr.structures import ingest
from dlpr.structures.files import expand
from dlpr.structures.index import index_file
from dlpr.structures.ingest import build_frames, collect
from dlpr.structures.labels import Reading, reading
from dlpr.structures.selection import Where, absent_names


def make(tmp_path):
    """Two files: 4 frames of 2, 4, 6, 8 Si atoms, of which some have labels; 1 frame of C."""
    frames = []
    for i in range(4):
        atoms = bulk("Si") * (1, 1, i + 1)
        atoms.rattle(0.05, seed=i)
        if i != 2:
            atoms.info["config_type"] = ["bulk", "x", "", "bulk"][i]
        forces = np.arange(3.0 * len(atoms)).reshape(-1, 3)
        if i % 2 == 0:
            atoms.calc = SinglePointCalculator(atoms, energy=float(i), forces=forces)
        else:
            atoms.calc = SinglePointCalculator(atoms, stress=np.arange(6.0) + i)
        frames.append(atoms)
    ase.io.write(tmp_path / "a.xyz", frames)
    ase.io.write(tmp_path / "b.traj", [Atoms("C", pbc=False)])
    sources = expand(["a.xyz", "b.traj"], tmp_path)
    indexes = [index_file(s, tmp_path / "scratch") for s in sources]
    return frames, [(index, index.selected) for index in indexes]


def test_frames_hold_everything(tmp_path):
    source, runs = make(tmp_path)
    frames, counts = collect(runs, Reading(), group_by="config_type")
    assert frames.structure_offset.tolist() == [0, 2, 6, 12, 20, 21]
    assert frames.group_names == ("bulk", "x", "none")
    assert frames.group.tolist() == [0, 1, 2, 0, 2]
    assert frames.source_files == (str(tmp_path / "a.xyz"), str(tmp_path / "b.traj"))
    assert frames.source_file.tolist() == [0, 0, 0, 0, 1]
    assert frames.source_frame.tolist() == [0, 1, 2, 3, 0]
    np.testing.assert_array_equal(frames.energy, [0, np.nan, 2, np.nan, np.nan])
    assert frames.species.tolist() == [14] * 20 + [6]
    assert frames.pbc.tolist() == [[True] * 3] * 4 + [[False] * 3]
    for s, atoms in enumerate(source):
        rows = slice(*frames.structure_offset[s : s + 2])
        np.testing.assert_allclose(frames.position[rows], atoms.positions, atol=1e-7)
        np.testing.assert_allclose(frames.cell[s], atoms.cell.array, atol=1e-7)
        assert frames.source_atom[rows].tolist() == list(range(len(atoms)))
        if s % 2 == 0:
            np.testing.assert_array_equal(frames.force[rows], atoms.calc.results["forces"])
            assert np.isnan(frames.stress[s]).all()
        else:
            assert np.isnan(frames.force[rows]).all()
            assert frames.stress[s, 0].tolist() == [s, 5 + s, 4 + s]
    assert np.isnan(frames.force[-1]).all()
    assert not frames.bin_shape.any()
    assert frames.bin_offset.tolist() == [0] * 6
    assert frames.bin_range.shape == (0, 2)
    assert (counts.n_read, counts.n_kept) == (5, 5)
    assert counts.keys["config_type"] == 3
    assert counts.keys["energy"] == 2


def test_types_are_those_of_frames(tmp_path):
    _, runs = make(tmp_path)
    for found in (collect(runs, Reading())[0], build_frames([])):
        for field in dataclasses.fields(found):
            array = getattr(found, field.name)
            if isinstance(array, np.ndarray):
                assert f"np.{array.dtype.name}]".replace("bool]", "bool_]") in str(field.type)


def test_where_takes_frames_and_counts_keys_of_all(tmp_path):
    _, runs = make(tmp_path)
    where = Where("config_type != 'x' and n_atoms > 1")
    frames, counts = collect(runs, Reading(), where)
    assert frames.source_frame.tolist() == [0, 3]
    assert frames.group_names == ("all",)
    assert (counts.n_read, counts.n_kept) == (5, 2)
    assert absent_names(where.names, counts.keys) == []
    wrong = Where("config_tpye == 'x'")
    none, counts = collect(runs, Reading(), wrong)
    assert none.structure_offset.tolist() == [0]
    assert none.cell.shape == (0, 3, 3)
    assert none.pbc.shape == (0, 3)
    assert counts.digest.shape == (0, 16)
    assert absent_names(wrong.names, counts.keys) == [
        "no frame has the key 'config_tpye'; nearest: 'config_type'"
    ]


def test_frames_that_where_leaves_out_are_not_checked(tmp_path):
    text = "1\ngood=F\nSi nan 0 0\n1\ngood=T\nSi 0 0 0\n"
    (tmp_path / "a.xyz").write_text(text)
    index = index_file(expand(["a.xyz"], tmp_path)[0], tmp_path / "scratch")
    frames, _ = collect([(index, index.selected)], Reading(), Where("good"))
    assert frames.source_frame.tolist() == [1]
    with pytest.raises(InputError, match="frame 0, atom 0: position"):
        collect([(index, index.selected)], Reading())


def test_a_where_that_cannot_be_evaluated_names_the_frame(tmp_path):
    _, runs = make(tmp_path)
    with pytest.raises(JobError, match=r"a.xyz, frame 0: where: .*no order"):
        collect(runs, Reading(), Where("config_type > 3"))


def test_named_keys_are_counted(tmp_path):
    _, runs = make(tmp_path)
    how = reading({"energy": "REF_energy"})
    frames, counts = collect(runs, how)
    assert np.isnan(frames.energy).all()
    (said,) = absent_names(how.keys.values(), counts.keys)
    assert said == "no frame has the key 'REF_energy'; nearest: 'energy'"


def test_digests_count_repeats(tmp_path):
    _, runs = make(tmp_path)
    _, counts = collect([*runs, *runs[:1]], Reading())
    assert counts.digest.shape == (9, 16)
    assert len(np.unique(counts.digest, axis=0)) == 5
    assert (counts.digest[:4] == counts.digest[5:]).all()


def test_large_frames_are_sorted_and_the_rest_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(ingest, "SORTED_FRAME_ATOMS", 100)
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(6) * 3.0] * 3), -1).reshape(-1, 3)
    large = Atoms(rng.choice([6, 14], 216), grid + rng.random((216, 3)), cell=[18] * 3, pbc=True)
    large.calc = SinglePointCalculator(large, forces=rng.random((216, 3)))
    ase.io.write(tmp_path / "a.xyz", [bulk("Si"), large, bulk("Si"), large])
    index = index_file(expand(["a.xyz"], tmp_path)[0], tmp_path / "scratch")
    frames, _ = collect([(index, index.selected)], Reading())
    as_read = ase.io.read(tmp_path / "a.xyz", 1)
    assert frames.bin_shape.tolist() == [[0] * 3, [3] * 3, [0] * 3, [3] * 3]
    assert frames.bin_offset.tolist() == [0, 0, 27, 27, 54]
    np.testing.assert_array_equal(frames.bin_range[:27], frames.bin_range[27:])
    np.testing.assert_array_equal(frames.bin_box[1], large.cell.array)
    rows = slice(2, 218)
    order = frames.source_atom[rows]
    assert order.tolist() != list(range(216))
    np.testing.assert_array_equal(frames.position[rows], as_read.positions[order])
    np.testing.assert_array_equal(frames.species[rows], as_read.numbers[order])
    np.testing.assert_array_equal(frames.force[rows], as_read.calc.results["forces"][order])
    assert frames.source_atom[218:220].tolist() == [0, 1]


@pytest.mark.parametrize("value", ["1.5", "T", "some words"])
def test_group_names_are_text(tmp_path, value):
    (tmp_path / "a.xyz").write_text(f'1\ng="{value}"\nSi 0 0 0\n')
    index = index_file(expand(["a.xyz"], tmp_path)[0], tmp_path / "scratch")
    frames, _ = collect([(index, index.selected)], Reading(), group_by="g")
    assert frames.group_names == ("True" if value == "T" else value,)
