"""Rigidities of the components of forces, and the fitted forces, through whole runs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from click.testing import CliRunner
from descriptors_cases import RADIAL
from models_cases import (
    FAR,
    KERNEL,
    LINEAR,
    MU,
    NEAR,
    PARTS,
    SPECIES,
    Plain,
    chosen,
    data,
    done,
    load,
    lode,
    near,
    parts,
    radial,
    tiny_soap,
)
from pipeline_cases import TINY, assert_same_bits, gas, make_job, run
from scipy.linalg import qr, solve_triangular

from dlpr.cli import cli
from dlpr.descriptors import descriptor
from dlpr.descriptors.gradients import derivative_rows
from dlpr.engine import memory
from dlpr.engine.check import check_job
from dlpr.engine.executors import Note, WorkExecutor
from dlpr.engine.promise import task_nbytes
from dlpr.errors import JobError
from dlpr.exports import export
from dlpr.stages import force_tasks
from dlpr.stages import forces as forces_stage
from dlpr.stages.factor import open_factors
from dlpr.stages.naming import task_words
from dlpr.stages.structures import open_structures
from dlpr.store.folder import Receipt, StageFolder
from dlpr.structures import ingest as frames_module

__all__ = ["data"]
LOSS = {"energy": 1.0, "forces": 0.3}
COMPOSITION = {"composition": {"regularizer": MU / 0.25}}
STRESS = {**LOSS, "stress": 0.5}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "linear": ({"linear": LINEAR}, {"loss": LOSS}),
    "energies": ({"linear": LINEAR}, {}),
    "composition": ({"linear": {**LINEAR, "baseline": COMPOSITION}}, {"loss": LOSS}),
    "tiles": (
        {"linear": {**LINEAR, "baseline": COMPOSITION}},
        {"loss": LOSS, "solver": "cholesky", "numerics": {"tile_columns": 12}},
    ),
    "dual": ({"linear": LINEAR}, {"solver": "dual"}),
    "kernel": ({"kernel": KERNEL}, {"loss": LOSS}),
    "radial": ({"linear": LINEAR}, {"loss": STRESS, "descriptor": {"radial": RADIAL}}),
    "near": ({"kernel": KERNEL}, {"loss": STRESS, "descriptor": {"parts": NEAR}}),
    "lode": ({"kernel": KERNEL}, {"loss": LOSS, "descriptor": {"lode": FAR}}),
    "parts": ({"linear": LINEAR}, {"loss": LOSS, "descriptor": {"parts": PARTS}}),
}
FEATURES = {"radial": radial, "near": near, "lode": lode, "parts": parts}
"""featomic's own, for the cases without SOAP alone."""


@pytest.mark.parametrize("case", CASES)
def test_rigidities_and_forces_are_those_of_plain_numpy(data: Path, case: str) -> None:
    model, settings = CASES[case]
    found = done(data, f"forces-{case}", model=model, test_forces=True, **settings)
    constant = 0.5 if case in ("composition", "tiles") else 0.0
    features = FEATURES.get(case, tiny_soap)
    references = chosen(found, data, features) if "kernel" in model else None
    plain = Plain(references, constant, features)
    rows, targets = plain.loss_rows(load(data, "train"), settings.get("loss", {}))
    stacked = np.vstack([rows, np.sqrt(MU) * np.eye(rows.shape[1])])
    q, triangle = qr(stacked, mode="economic")
    weights = solve_triangular(triangle, q[: len(rows)].T @ targets)
    for name in ("train", "test"):
        own = np.concatenate([plain.forces(atoms) for atoms in load(data, name)])
        rigidity = 1 / np.square(solve_triangular(triangle, own.T, trans="T")).sum(axis=0)
        arrays = found.sets[name]
        assert arrays["environment_pr_forces"].shape == (len(own) // 3, 3)
        np.testing.assert_allclose(arrays["environment_pr_forces"].ravel(), rigidity, rtol=2e-5)
        force = own @ weights
        close = {"rtol": 0, "atol": 2e-5 * np.abs(force).max()}
        np.testing.assert_allclose(arrays["environment_forces"].ravel(), force, **close)
    rest = done(data, f"forces-{case}-none", model=model, **settings)
    assert "environment_pr_forces" not in rest.sets["test"]
    assert rest.used["rigidity of test"].name == found.used["rigidity of test"].name


def test_a_structure_of_any_size_is_cut(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of a frame that is stored by space have the forces of the whole frame."""
    frames = [*load(data, "test"), gas(4300, ("Ga", "As"), 3, (True, False, True))]
    for atoms in frames:
        atoms.calc = None
    write(data / "large.xyz", frames, format="extxyz")
    sets = {"large": {"files": "large.xyz"}}
    settings = {"hypers": TINY, "linear": LINEAR, "loss": LOSS, "test_forces": True}
    monkeypatch.setattr(force_tasks, "TASK_ATOMS", 1500)
    found = run(make_job(data, "train.xyz", sets, output="large", **settings))
    folder = found.used["forces of large"]
    sizes = np.diff(folder.settings["edges"])
    assert sizes.tolist() == [sum(map(len, frames[:-1])), 1500, 1500, 1300]
    store = open_structures(folder.input("structures"))
    soap = descriptor({"soap": TINY}, SPECIES)
    whole = store.whole(len(frames) - 1)
    fit = open_factors(folder.input("factor")).fit
    rows = derivative_rows(soap, whole, fit.model.map, forces=True, stress=False).forces
    assert rows is not None
    order = np.argsort(store.read("source_atom", sizes[0], sizes.sum()))
    for name, values in zip(
        ("environment_pr_forces", "environment_forces"), fit.derivatives(rows), strict=True
    ):
        expected = values.reshape(-1, 3)[order]
        close = {"rtol": 1e-8, "atol": 1e-10 * np.median(np.abs(expected))}
        np.testing.assert_allclose(found.sets["large"][name][sizes[0] :], expected, **close)


@pytest.mark.parametrize("section", [{"soap": TINY}, {"parts": PARTS}], ids=["soap", "parts"])
def test_a_training_frame_of_any_size_is_cut(
    data: Path, monkeypatch: pytest.MonkeyPatch, section: dict[str, Any]
) -> None:
    """Its forces are rows of several tasks, its stress of the first; the fit is that of the whole.

    Nothing that is to be read at once grows with the frame.
    """
    large = gas(70, ("Ga", "As"), 3)
    rng = np.random.default_rng(0)
    labels = {"forces": rng.normal(size=(70, 3)), "stress": rng.normal(size=6)}
    large.calc = SinglePointCalculator(large, energy=large.info.pop("energy"), **labels)
    large.info["config_type"] = "odd"
    small = load(data, "train")
    write(data / "cut.xyz", [*small[:5], large, *small[5:]], format="extxyz")
    train = {"files": "cut.xyz", "group_by": "config_type"}
    loss = {"energy": 1.0, "forces": 0.3}
    if "soap" in section:
        loss |= {"stress": 0.5, "virial": 0.01}
    settings = {"descriptor": section, "model": {"kernel": KERNEL}, "loss": loss}
    output = f"cut-{min(section)}"
    whole = run(make_job(data, train, output=f"{output}-whole", **settings))
    monkeypatch.setattr(frames_module, "SORTED_FRAME_ATOMS", 50)
    monkeypatch.setattr(force_tasks, "TASK_ATOMS", 30)
    found = run(make_job(data, train, output=output, **settings))
    folder = next(folder for role, folder in found.used.items() if role.startswith("rows of"))
    before = sum(map(len, small[:5]))
    edges = [0, before, before + 30, before + 60, before + 70]
    assert folder.settings["edges"] == [*edges, sum(map(len, small)) + 70]
    groups = [receipt.facts["groups"] for receipt in folder.receipts()]
    assert [one["forces"]["odd"] for one in groups[1:4]] == [90, 90, 30]
    assert [len(one.get("stress", {})) for one in groups[1:4]] == [len(loss) // 4, 0, 0]
    assert found.facts["n_rows"] == whole.facts["n_rows"]
    for name in ("environment_lpr", "environment_energy", "structure_pr"):
        one, other = (outcome.sets["train"][name] for outcome in (found, whole))
        np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-9 * np.abs(other).max())
    monkeypatch.setattr(memory, "ROWS_NBYTES", 0)
    sizes = [task_nbytes(outcome.used["hessian"]) for outcome in (found, whole)]
    assert sizes[1] - sizes[0] >= 3 * 8 * 3 * (70 - 30) * 10  # three parts of so many columns
    words = task_words(folder, 2)
    assert f"environments {before + 30} to {before + 59}: frames 5 to 5 of" in words


class Backwards(WorkExecutor):
    """Does tasks in the other order."""

    def run(
        self, folder: StageFolder, tasks: Sequence[int], nbytes: int, note: Note = print
    ) -> Iterator[Receipt]:
        return super().run(folder, list(reversed(tasks)), nbytes, note)


def test_bits_do_not_depend_on_the_order_and_tasks_are_adopted(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forces_stage, "TASK_ATOMS", 8)
    for name in ("train", "test"):
        shutil.copy(data / f"{name}.xyz", tmp_path)
    settings = {"hypers": TINY, "model": {"kernel": KERNEL}, "loss": LOSS, "test_forces": True}
    sets = {"test": {"files": "*est.xyz"}}
    first = run(make_job(tmp_path, test=sets, output="first", **settings))
    second = run(make_job(tmp_path, test=sets, output="second", **settings), executor=Backwards(0))
    assert first.tasks["forces of test"] > 2
    assert_same_bits(first.output, second.output)
    assert run(make_job(tmp_path, test=sets, output="first", **settings)).tasks == {}
    more = load(data, "train")[:1]
    write(tmp_path / "zest.xyz", more, format="extxyz")  # one more file, behind the other
    grown = run(make_job(tmp_path, test=sets, output="first", **settings))
    assert grown.tasks["forces of test"] == 1
    both = grown.sets["test"]["environment_pr_forces"]
    np.testing.assert_array_equal(
        both[: -len(more[0])], first.sets["test"]["environment_pr_forces"]
    )


def test_what_nothing_moves_is_infinitely_rigid(data: Path) -> None:
    write(data / "lone.xyz", [Atoms("Ga", pbc=False)], format="extxyz")
    settings = {"hypers": TINY, "linear": LINEAR, "test_forces": True}
    lone = {"lone": {"files": "lone.xyz"}}
    found = run(make_job(data, test=lone, output="lone", **settings)).sets["lone"]
    np.testing.assert_array_equal(found["environment_pr_forces"], np.full((1, 3), np.inf))
    np.testing.assert_array_equal(found["environment_forces"], np.zeros((1, 3)))
    assert np.isfinite(found["environment_lpr"]).all()


def test_without_labels_there_are_rigidities_alone(data: Path) -> None:
    frames = load(data, "train")
    for atoms in frames:
        atoms.calc = None
    write(data / "bare.xyz", frames, format="extxyz")
    settings = {"hypers": TINY, "linear": LINEAR, "test_forces": True}
    found = run(make_job(data, "bare.xyz", output="bare", **settings)).sets["train"]
    assert np.isfinite(found["environment_pr_forces"]).all()
    assert "environment_forces" not in found


def test_exported_and_planned(data: Path) -> None:
    settings = {"hypers": TINY, "linear": LINEAR, "loss": LOSS, "test_forces": True}
    sets = {"test": {"files": "test.xyz"}}
    job = make_job(data, test=sets, output="exported", **settings)
    file = data / "exported.yaml"
    file.write_text(yaml.safe_dump(job.resolved()))
    planned = CliRunner().invoke(cli, ["plan", str(file)])
    assert planned.exit_code == 0, planned.output
    assert "forces of test" in planned.output
    found = run(job).sets["test"]
    frames: Any = read(export(data / "exported", data / "exported.extxyz"), ":")
    for name, array in (
        ("pr_forces", "environment_pr_forces"),
        ("predicted_forces", "environment_forces"),
    ):
        rows = np.concatenate([atoms.arrays[name] for atoms in frames])
        np.testing.assert_array_equal(rows, found[array])
    assert "forces" in frames[1].calc.results  # the labels keep their name


@pytest.mark.parametrize(
    ("section", "settings", "message"),
    [
        ({"lode": FAR}, {"loss": {"stress": 1.0}}, r"loss.stress .* strain, .*\(descriptor.lode: "),
        (
            {"parts": PARTS},
            {"loss": {"virial": 1.0}},
            r"\(descriptor.parts.far.lode: .*; soap and radial have .* leave loss.virial out",
        ),
        (
            {"features": {"train": "train.npy"}},
            {"test_forces": True},
            r"test_forces .* positions .*descriptor.features: .*; soap, radial and lode have them",
        ),
        ({"python": {"call": "math:sin"}}, {"loss": {"forces": 1.0}}, r"\(descriptor.python: "),
    ],
    ids=["lode", "parts", "features", "python"],
)
def test_what_a_descriptor_lacks_is_refused_beforehand(
    data: Path, section: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    np.save(data / "train.npy", np.ones((sum(map(len, load(data, "train"))), 3)))
    with pytest.raises(JobError, match=message):
        check_job(make_job(data, descriptor=section, **settings))
