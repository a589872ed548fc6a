"""The calculator: dynamics that conserve the energy, relaxations, and files with LPR in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.emt import EMT
from ase.io import read, write
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS

from dlpr.ase import RigidityCalculator, annotate
from dlpr.engine.executors import WorkExecutor
from dlpr.engine.output import write_job
from dlpr.engine.pipeline import Pipeline
from dlpr.engine.workspace import Workspace
from dlpr.errors import InputError, JobError
from dlpr.fitted import FittedModel, load_model
from dlpr.job import Job
from dlpr.saving import save_model

SOAP = {
    "cutoff": {"radius": 4.0, "smoothing": {"type": "ShiftedCosine", "width": 1.0}},
    "density": {"type": "Gaussian", "width": 0.5},
    "basis": {
        "type": "TensorProduct",
        "max_angular": 1,
        "radial": {"type": "Gto", "max_radial": 2},
    },
}


def copper(seed: int, spread: float = 0.1) -> Atoms:
    atoms = bulk("Cu", cubic=True)
    rng = np.random.default_rng(seed)
    atoms.set_cell(atoms.cell.array * (1 + rng.uniform(-0.04, 0.04)), scale_atoms=True)
    atoms.positions += rng.normal(scale=spread, size=atoms.positions.shape)
    return atoms


@pytest.fixture(scope="module", params=["linear", "kernel"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of copper after EMT."""
    base = tmp_path_factory.mktemp(request.param)
    frames = [copper(seed, 0.3) for seed in range(20)]
    for atoms in frames:
        atoms.calc = EMT()
        atoms.get_forces()
    write(base / "train.xyz", frames, format="extxyz")
    models: dict[str, dict[str, Any]] = {
        "linear": {"regularizer": 1e-6},
        "kernel": {"regularizer": 1e-6, "references": {"count": 12}},
    }
    data = {
        "output": "out",
        "train": {"files": "train.xyz"},
        "test": {"train": "train"},
        "descriptor": {"soap": SOAP},
        "model": {request.param: models[request.param]},
        "loss": {"energy": 1.0, "forces": 0.1},
    }
    job = Job.from_dict(data, base=base)
    workspace = Workspace(job.path(job.output), WorkExecutor(0))
    write_job(workspace.output, job)
    Pipeline(job, workspace).result()
    return save_model(workspace.output, base / "model", scale=0.1)


def test_dynamics_conserve_the_energy(folder: Path) -> None:
    atoms = copper(3)
    atoms.calc = RigidityCalculator(folder)
    rng = np.random.default_rng(0)
    spread = np.sqrt(atoms.get_masses() * units.kB * 600)
    atoms.set_momenta(spread[:, None] * rng.normal(size=(len(atoms), 3)))

    def drift(step: float, n_steps: int) -> float:
        own = atoms.copy()
        own.calc = atoms.calc
        total = []
        dynamics = VelocityVerlet(own, step * units.fs)
        dynamics.attach(lambda: total.append(own.get_total_energy()))
        dynamics.run(n_steps)
        assert np.ptp(own.positions - atoms.positions) > 0.05
        return float(np.ptp(total))

    # Verlet's error is of the second order: what is left over is no derivative of the energy
    coarse, fine = drift(2.0, 8), drift(1.0, 16)
    assert fine < 1e-2
    assert 3.0 < coarse / fine < 5.0


def test_a_relaxation_goes_downhill(folder: Path) -> None:
    atoms = copper(4)
    atoms.calc = RigidityCalculator(folder)
    before = atoms.get_potential_energy()
    BFGS(atoms, logfile=None).run(fmax=0.0, steps=5)
    assert atoms.get_potential_energy() < before - 0.05
    strained, pull = atoms.get_potential_energy(), atoms.get_stress()[:3].sum()
    atoms.set_cell(atoms.cell.array * (1 - 1e-3 * np.sign(pull)), scale_atoms=True)
    assert atoms.get_potential_energy() < strained


def test_results_are_the_models(folder: Path) -> None:
    model = load_model(folder)
    atoms = copper(5)
    atoms.calc = RigidityCalculator(model)
    found = model.predict(atoms, forces=True, stress=True)
    assert atoms.get_potential_energy() == found.energy
    assert atoms.get_potential_energy(force_consistent=True) == found.energy
    np.testing.assert_array_equal(atoms.get_forces(), found.forces)
    np.testing.assert_array_equal(atoms.get_stress(), found.stress)
    np.testing.assert_array_equal(atoms.get_potential_energies(), found.energies)
    for name in ("lpr", "prior_ratio", "uncertainty"):
        np.testing.assert_array_equal(atoms.calc.results[name], getattr(found, name))
    assert atoms.calc.results["energy_uncertainty"] == found.energy_uncertainty


def counted(real: Any, calls: list[str]) -> Any:
    def called(*args: Any, **options: Any) -> Any:
        calls.append(real.__name__)
        return real(*args, **options)

    return called


def test_what_is_known_is_not_computed_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("predict", "derivatives"):
        monkeypatch.setattr(FittedModel, name, counted(getattr(FittedModel, name), calls))
    atoms = copper(6)
    atoms.calc = RigidityCalculator(folder)
    atoms.get_potential_energy()
    assert calls == ["predict"]
    atoms.get_forces()
    atoms.get_potential_energy()
    assert calls == ["predict", "derivatives"]
    atoms.rattle(0.01)
    atoms.get_stress()
    atoms.get_forces()
    assert calls == ["predict", "derivatives"] * 2
    atoms.calc.calculate(copper(8))  # without a look at what has changed
    assert atoms.calc.results["energy"] == load_model(folder).predict(copper(8)).energy


def test_files_have_the_rigidities_of_annotated_atoms(folder: Path, tmp_path: Path) -> None:
    atoms = copper(7)
    atoms.calc = RigidityCalculator(folder)
    atoms.get_forces()
    annotate(atoms)
    write(tmp_path / "a.extxyz", atoms)
    again = read(tmp_path / "a.extxyz")
    for name in ("lpr", "prior_ratio", "uncertainty", "forces"):  # ASE writes 8 decimals
        own = again.get_forces() if name == "forces" else again.arrays[name]
        np.testing.assert_allclose(own, atoms.calc.results[name], rtol=0, atol=5.1e-9)
    assert again.get_potential_energy() == pytest.approx(atoms.get_potential_energy())
    assert again.info["energy_uncertainty"] == atoms.calc.results["energy_uncertainty"]
    atoms.rattle(0.05)
    annotate(atoms)  # what moved is computed anew
    np.testing.assert_array_equal(atoms.arrays["lpr"], load_model(folder).predict(atoms).lpr)


def test_what_cannot_be_said_is_refused(folder: Path) -> None:
    foreign = bulk("Ag")
    foreign.calc = RigidityCalculator(folder)
    with pytest.raises(InputError, match=r"atom 0 is Ag.* it knows Cu"):
        foreign.get_potential_energy()
    cluster = Atoms("Cu2", [[0, 0, 0], [0, 0, 2.4]])
    cluster.calc = RigidityCalculator(folder)
    assert np.isfinite(cluster.get_forces()).all()
    with pytest.raises(PropertyNotImplementedError, match="3 periodic directions"):
        cluster.get_stress()
    cluster.calc = EMT()
    with pytest.raises(JobError, match="EMT"):
        annotate(cluster)
