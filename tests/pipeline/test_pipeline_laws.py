"""Laws of rigidities (rigidity.md sec. 6, nos. 1 to 3), through whole runs."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, make_supercell
from ase.io import write
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pipeline_cases import SPECIES, crystals, make_job, run, shapes, store
from scipy.spatial.transform import Rotation

REGULARIZER = {"mean": 1e-3, "sqrt": 1e-2, "sum": 1e-1}
FEW = settings(
    max_examples=4,
    derandomize=True,
    phases=[Phase.generate],
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.mark.parametrize("rows", ["mean", "sum", "sqrt"])
@pytest.mark.parametrize("centre_species", ["separate", "shared"])
def test_a_new_structure_raises_the_rigidity_of_its_row_by_1(
    tmp_path: Path, rows: str, centre_species: str
) -> None:
    linear = {"rows": rows, "scale": "none", "centre_species": centre_species}
    linear["regularizer"] = REGULARIZER[rows]
    train, new = crystals(SPECIES[2], 8), crystals(SPECIES[2], 2, seed=5)[1]
    store(tmp_path / "train.xyz", train)
    store(tmp_path / "more.xyz", [*train, new])
    store(tmp_path / "test.xyz", [new, *shapes(SPECIES[2])])
    sets = {"test": {"files": "test.xyz"}}
    before, after = (
        run(make_job(tmp_path, name, sets, linear)).sets["test"]
        for name in ("train.xyz", "more.xyz")
    )
    gain = after["structure_pr"] - before["structure_pr"]
    np.testing.assert_allclose(gain[0], 1.0, rtol=1e-8)
    rounding = 1e-9 * before["structure_pr"]
    assert (gain >= -rounding).all()
    lpr_gain = after["environment_lpr"] - before["environment_lpr"]
    assert (lpr_gain >= -1e-9 * before["environment_lpr"]).all()
    assert (lpr_gain[: len(new)] > 0.0).all()


@pytest.mark.parametrize("scale", ["rms", "none"])
@pytest.mark.parametrize(("rows", "power"), [("mean", 0), ("sqrt", 1), ("sum", 2)])
def test_structures_of_one_environment_pin_it(
    tmp_path: Path, rows: str, power: int, scale: str
) -> None:
    linear = {"rows": rows, "regularizer": REGULARIZER[rows], "scale": scale}
    pure = [
        bulk("Si", "diamond", a=5.3),
        bulk("Si", "fcc", a=4.1),
        bulk("Si", "hcp", a=2.9, c=4.9),
        bulk("Si", "diamond", a=5.6, cubic=True),
        Atoms("Si2", [[0, 0, 0], [0, 0, 2.3]]),
        bulk("Si", "sc", a=2.7).repeat(2),
    ]
    for atoms in pure:
        atoms.info["energy"] = 1.0
    mixed = crystals(("Si",), 5)
    store(tmp_path / "train.xyz", [*mixed, *pure])
    found = run(make_job(tmp_path, linear=linear)).sets["train"]
    offset = found["structure_offset"][len(mixed) :]
    for atoms, (a, b) in zip(pure, pairwise(offset), strict=True):
        lpr = found["environment_lpr"][a:b]
        np.testing.assert_allclose(lpr, lpr[0], rtol=1e-6)
        assert (lpr >= len(atoms) ** power * (1.0 - 1e-9)).all()
        assert (lpr < len(atoms) ** power * 100.0).any()  # the bound is not idle


@FEW
@given(seed=st.integers(0, 2**31))
def test_symmetries_leave_rigidities_alone(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("symmetry")
    rng = np.random.default_rng(seed)
    store(folder / "train.xyz", crystals(SPECIES[2], 10))
    one = crystals(SPECIES[2], 5, seed=seed, big=2)[4]
    one.info.clear()
    turned, moved, wrapped = one.copy(), one.copy(), one.copy()
    rotation = Rotation.random(rng=rng).as_matrix()
    turned.set_cell(one.cell.array @ rotation.T)
    turned.positions = one.positions @ rotation.T
    moved.positions += rng.uniform(-9.0, 9.0, 3)
    wrapped.positions += rng.integers(-2, 3, (len(one), 3)) @ one.cell.array
    order = rng.permutation(len(one))
    shear = np.array([[1, 0, 0], [rng.integers(-1, 2), 1, 0], [0, rng.integers(-1, 2), 1]])
    other_cell = one.copy()
    other_cell.set_cell(shear @ one.cell.array)
    large = make_supercell(one, [[2, 0, 0], [1, 1, 0], [0, 0, 1]])
    write(folder / "test.traj", [one, turned, moved, wrapped, one[order], other_cell, large])
    sets = {"test": {"files": "test.traj"}}
    found = run(make_job(folder, test=sets, linear={"regularizer": 1e-3})).sets["test"]
    of = np.split(found["environment_lpr"], found["structure_offset"][1:-1])
    for same in (of[1], of[2], of[3], of[5]):
        np.testing.assert_allclose(same, of[0], rtol=1e-9)
    np.testing.assert_allclose(of[4], of[0][order], rtol=1e-9)
    np.testing.assert_allclose(np.sort(of[6]), np.repeat(np.sort(of[0]), 2), rtol=1e-9)
    np.testing.assert_allclose(found["structure_pr"], found["structure_pr"][0], rtol=1e-9)
    assert np.ptp(of[0]) > 1e-3 * of[0].max()
