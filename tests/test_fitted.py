"""What a saved model predicts: what its run said, and derivatives of it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from fitted_cases import CASES, FAR, HYPERS, KERNEL, LINEAR, SOAP, Done
from small_run import SmallRun, small_run

from dlpr.ase import RigidityCalculator, annotate
from dlpr.core.kernel import Kernel
from dlpr.descriptors import gradients
from dlpr.engine.executors import WorkExecutor
from dlpr.engine.output import write_job
from dlpr.engine.pipeline import Pipeline
from dlpr.engine.workspace import Workspace
from dlpr.errors import InputError, JobError
from dlpr.exports.predictions import predict
from dlpr.fitted import FittedModel, Prediction, load_model, write_model
from dlpr.handles import Result
from dlpr.job import Job
from dlpr.saving import fitted_model, save_model
from dlpr.structures.frames import Piece

__all__ = ["small_run"]
STEP = 1e-4
_done: dict[str, Done] = {}


@pytest.fixture(params=CASES)
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A run of each case, made once."""
    if request.param not in _done:
        model, descriptor, settings = CASES[request.param]
        folder = tmp_path_factory.mktemp(request.param)
        _done[request.param] = Done(folder, model, descriptor, **settings)
    return _done[request.param]


def test_a_model_says_what_its_run_said(done: Done, tmp_path: Path) -> None:
    model = load_model(write_model(done.model, tmp_path / "model"))
    names = {
        "energies": "environment_energy",
        "lpr": "environment_lpr",
        "prior_ratio": "environment_prior_ratio",
        "unseen": "environment_unseen",
        "energy": "structure_energy",
        "structure_pr": "structure_pr",
    }
    if isinstance(model.fit.model.map, Kernel):
        names["residual"] = "environment_residual"
    if model.fit.whole is None:
        del names["structure_pr"]
    expected = {name: done.expected(array) for name, array in names.items()}
    for k, atoms in enumerate(done.frames):
        found = model.predict(atoms)
        for name, of_frames in expected.items():
            np.testing.assert_allclose(
                getattr(found, name), of_frames[k], rtol=1e-10, atol=1e-10, err_msg=name
            )


WIDE = {"soap": {**HYPERS, "density": {"type": "Gaussian", "width": 0.9}}}
PARTS = {"parts": {"block": SOAP, "whole.x": WIDE}}
"""With names that factors might have in a store."""


@pytest.mark.parametrize(
    "settings",
    [
        {"solver": "qr", "committee": {"subsample": {"members": 3, "fraction": 0.6}}},
        {"solver": "eigh", "committee": {"posterior": {"members": 3}}},
        {
            "solver": "cholesky",
            "committee": {"posterior": {"members": 3}},
            "numerics": {"tile_columns": 13},
        },
    ],
    ids=["triangle", "basis", "tiles"],
)
def test_a_model_has_the_parts_and_the_committee_of_its_run(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    done = Done(tmp_path, LINEAR, PARTS, **settings)
    model = load_model(write_model(done.model, tmp_path / "model"))
    assert model.record["committee"]["members"] == 3
    names = ("structure_committee_variance", "structure_pr_block", "structure_pr_whole.x")
    of_structure = names[:1] if "numerics" in settings else names  # of tiles there is no whole
    for k, atoms in enumerate(done.frames):
        found = model.predict(atoms)
        assert tuple(found.of_atoms) == model.of_atoms
        assert tuple(found.of_structure) == model.of_structure
        expected = {
            "committee_variance": "environment_committee_variance",
            **{f"lpr_{name}": f"environment_lpr_{name}" for name in PARTS["parts"]},
        }
        for name, array in expected.items():
            of_run = done.expected(array)[k]
            np.testing.assert_allclose(found.of_atoms[name], of_run, rtol=1e-7, err_msg=name)
        for name in of_structure:
            of_run = done.expected(name)[k]
            assert found.of_structure[name] == pytest.approx(of_run, rel=1e-7)
    calculated, to = done.frames[0].copy(), tmp_path / "predicted.extxyz"
    calculated.calc = RigidityCalculator(model)
    annotate(calculated)
    predict(model, str(tmp_path / "test.xyz@0"), to)
    (written,) = read(to, ":")
    found = model.predict(done.frames[0])
    for name in model.of_atoms:
        np.testing.assert_array_equal(calculated.arrays[name], found.of_atoms[name])
        np.testing.assert_array_equal(written.arrays[name], found.of_atoms[name])
    for name in model.of_structure:
        value = found.of_structure[name]
        np.testing.assert_array_equal([calculated.info[name], written.info[name]], value)


def test_uncertainty_is_the_scale_times_the_root_of_the_variance(done: Done) -> None:
    model = FittedModel(done.model.descriptor, done.model.fit, done.model.seen, 0.5, {})
    found = model.predict(done.frames[0])
    left = 0.0 if found.residual is None else found.residual / model.fit.mu
    np.testing.assert_allclose(found.uncertainty, 0.5 * np.sqrt(1 / found.lpr + left), rtol=1e-12)
    n = len(done.frames[0])
    factor = {"mean": 1 / n, "sum": 1.0, "sqrt": n**-0.5}[model.fit.model.rows]
    unseen = 0.0
    if found.residual is not None:
        unseen = np.sqrt(found.residual).sum() ** 2 / model.fit.mu
    if model.fit.whole is not None:
        np.testing.assert_allclose(
            found.energy_uncertainty,
            0.5 * np.sqrt(1 / (found.structure_pr * factor**2) + unseen),
            rtol=1e-12,
        )


def check_forces(model: FittedModel, atoms: Atoms, forces: np.ndarray[Any, Any]) -> None:
    """Some forces beside differences of the energy."""
    scale = np.abs(forces).max()
    for atom, axis in ((0, 0), (1, 2), (3, 1)):
        energy = []
        for step in (STEP, -STEP):
            moved = atoms.copy()
            moved.positions[atom, axis] += step
            energy.append(model.predict(moved).energy)
        slope = (energy[0] - energy[1]) / (2 * STEP)
        np.testing.assert_allclose(forces[atom, axis], -slope, atol=1e-6 * scale)
    np.testing.assert_allclose(forces.sum(axis=0), 0.0, atol=1e-9 * scale)


def test_forces_and_stresses_are_derivatives_of_the_energy(done: Done) -> None:
    for atoms in done.frames[:2]:
        periodic = bool(atoms.pbc.all())
        found = done.model.predict(atoms, forces=True, stress=periodic)
        assert found.forces is not None
        check_forces(done.model, atoms, found.forces)
        if periodic:
            assert found.stress is not None
            for k, (a, b) in enumerate(((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))):
                energy = []
                for step in (STEP, -STEP):
                    strain = np.eye(3)
                    strain[a, b] += step / 2
                    strain[b, a] += step / 2
                    moved = atoms.copy()
                    moved.set_cell(atoms.cell.array @ strain, scale_atoms=True)
                    energy.append(done.model.predict(moved).energy)
                slope = (energy[0] - energy[1]) / (2 * STEP * atoms.get_volume())
                scale = np.abs(found.stress).max()
                np.testing.assert_allclose(found.stress[k], slope, atol=1e-6 * scale)


def test_derivatives_are_those_of_any_strips(done: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = done.model.derivatives(done.frames[0], forces=True, stress=True)
    monkeypatch.setattr(gradients, "STRIP_NBYTES", 1 << 14)  # of a few neighbours each
    strips = done.model.derivatives(done.frames[0], forces=True, stress=True)
    for one, other in zip(whole, strips, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-10)


def test_uncertainties_of_derivatives_are_those_of_differences(done: Done) -> None:
    fit, soap = done.model.fit, done.model.descriptor
    atoms = done.frames[0]
    if fit.whole is None:
        with pytest.raises(JobError, match="in tiles"):
            done.model.predict(atoms, forces=True, uncertainty=True)
        return
    found = done.model.predict(atoms, forces=True, stress=True, uncertainty=True)
    species = np.searchsorted(soap.species, atoms.numbers)
    count = np.bincount(species, minlength=2)[None]

    def row(frame: Atoms) -> np.ndarray[Any, Any]:
        """The row of the total energy."""
        piece = Piece(frame.positions, frame.numbers.astype(np.uint8), frame.cell.array, frame.pbc)
        sums = np.zeros((1, fit.model.stored.n_columns))
        mapped = fit.model.mapped(soap.compute([piece]), species)
        fit.model.add_sums(sums, mapped, np.zeros(len(frame), int))
        rows, factor = fit.model.structures(sums, count)
        return rows / factor

    def moved(step: float) -> Atoms:
        frame = atoms.copy()
        frame.positions[2, 1] += step
        return frame

    def strained(step: float) -> Atoms:
        frame = atoms.copy()
        strain = np.eye(3)
        strain[1, 2] += step / 2
        strain[2, 1] += step / 2
        frame.set_cell(atoms.cell.array @ strain, scale_atoms=True)
        return frame

    assert found.forces_uncertainty is not None
    assert found.stress_uncertainty is not None
    for change, sigma, unit in (
        (moved, found.forces_uncertainty[2, 1], 1.0),
        (strained, found.stress_uncertainty[3], atoms.get_volume()),
    ):
        slope = (row(change(STEP)) - row(change(-STEP))) / (2 * STEP * unit)
        np.testing.assert_allclose(sigma, fit.whole.rigidity(slope)[0] ** -0.5, rtol=1e-5)


def test_a_saved_model_predicts_the_same_bits(done: Done, tmp_path: Path) -> None:
    path = write_model(done.model, tmp_path / "model")
    assert sorted(file.name for file in path.iterdir()) == ["arrays.npz", "model.json"]
    again = load_model(path)
    for atoms in done.frames:
        stress = bool(atoms.pbc.all())
        one = done.model.predict(atoms, forces=True, stress=stress)
        other = again.predict(atoms, forces=True, stress=stress)
        for field in fields(Prediction):
            np.testing.assert_equal(
                getattr(one, field.name), getattr(other, field.name), field.name
            )
    second = write_model(again, tmp_path / "second")
    for name in ("arrays.npz", "model.json"):
        assert (second / name).read_bytes() == (path / name).read_bytes()


# other descriptors, large and foreign structures --------------------------------------------------


def test_a_large_frame_is_predicted_in_cuts(small_run: SmallRun) -> None:
    model = fitted_model(small_run.output)
    group: Any = Result(small_run.output).open("film")
    offset = group["structure_offset"][:]
    large, alone, bare = (small_run.sources["film"][k] for k in (1, 2, 3))
    for k, atoms in ((1, large), (2, alone), (3, bare)):
        found = model.predict(atoms)
        own = slice(offset[k], offset[k + 1])
        for name, array in (("energies", "energy"), ("lpr", "lpr"), ("prior_ratio",) * 2):
            values = group[f"environment_{array}"][own]
            np.testing.assert_allclose(getattr(found, name), values, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(found.structure_pr, group["structure_pr"][k], rtol=1e-9)
    # an atom without features: nothing is predicted, and that for sure
    assert model.predict(alone).lpr[0] == np.inf
    assert model.predict(alone).uncertainty[0] == 0.0


@pytest.mark.parametrize("kind", [LINEAR, KERNEL], ids=["linear", "kernel"])
def test_lode_has_forces_and_no_stress(tmp_path: Path, kind: dict[str, Any]) -> None:
    done = Done(tmp_path, kind, FAR, film=False, solver="cholesky", loss={"forces": 0.1})
    model = load_model(save_model(done.output, tmp_path / "model"))
    expected, atoms = done.expected("environment_energy"), done.frames[0]
    found = model.predict(atoms, forces=True)
    np.testing.assert_allclose(found.energies, expected[0], rtol=1e-10, atol=1e-10)
    assert found.forces is not None
    check_forces(model, atoms, found.forces)
    atoms.calc = RigidityCalculator(model)
    np.testing.assert_array_equal(atoms.get_forces(), found.forces)
    message = r"stress.* by strain, .*parts.far.lode: .*; soap and radial have them"
    with pytest.raises(PropertyNotImplementedError, match=message):
        atoms.get_stress()
    with pytest.raises(InputError, match=message):
        model.predict(atoms, stress=True)
    with pytest.raises(InputError, match=f"^to predict {message}"):  # before a file is looked for
        predict(model, "gone.xyz", tmp_path / "to.xyz", stress=True)


def test_what_the_model_does_not_know(small_run: SmallRun) -> None:
    model = fitted_model(small_run.output)
    with pytest.raises(InputError, match=r"atom 1 is O, as 1 of 2 .* knows Si Ge"):
        model.predict(Atoms("SiO", [[0, 0, 0], [0, 0, 2]]))
    with pytest.raises(InputError, match="no atoms"):
        model.predict(Atoms())
    with pytest.raises(InputError, match="periodic"):
        model.predict(Atoms("Si2", [[0, 0, 0], [0, 0, 2]]), stress=True)


def test_species_of_no_training_structure_are_marked(tmp_path: Path) -> None:
    write(tmp_path / "train.xyz", [bulk("Si")], format="extxyz")
    mixed = Atoms("SiSiGe", [[0, 0, 0], [0, 0, 9], [0, 0, 11]])
    frame = bulk("Si")
    frame.calc = SinglePointCalculator(frame, energy=-1.0)
    write(tmp_path / "train.xyz", [frame], format="extxyz")
    write(tmp_path / "test.xyz", [mixed], format="extxyz")
    data = {
        "output": "out",
        "train": {"files": "train.xyz"},
        "test": {"test": {"files": "test.xyz"}},
        "descriptor": SOAP,
        "model": LINEAR,
    }
    job = Job.from_dict(data, base=tmp_path)
    workspace = Workspace(job.path(job.output), WorkExecutor(0))
    write_job(workspace.output, job)
    Pipeline(job, workspace).result()
    model = load_model(save_model(workspace.output, tmp_path / "model"))
    np.testing.assert_array_equal(model.predict(mixed).unseen, [0, 2, 3])


def test_an_environment_unlike_all_references_is_unknown(tmp_path: Path) -> None:
    """k_M = 0: LPR 0, and the whole standard deviation of the prior."""
    density = {**HYPERS["density"], "center_atom_weight": 0.0}  # of an atom alone there is nothing
    done = Done(tmp_path, KERNEL, {"soap": {**HYPERS, "density": density}}, solver="cholesky")
    found = done.model.predict(Atoms("Si", [[0.0, 0.0, 0.0]]), forces=True)
    assert found.unseen[0] == 4
    assert found.lpr[0] == 0.0
    assert found.prior_ratio[0] == 1.0
    assert found.structure_pr == 0.0
    assert found.energy == 0.0
    np.testing.assert_array_equal(found.forces, np.zeros((1, 3)))
    prior = done.model.fit.mu**-0.5
    np.testing.assert_allclose([found.uncertainty[0], found.energy_uncertainty], prior)
