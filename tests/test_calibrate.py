"""Uncertainties of a published result: errors and rigidities are those of the model's rows."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import zarr
from ase import Atoms
from ase.build import bulk
from click.testing import CliRunner
from scipy.stats import spearmanr

from dlpr.api import work
from dlpr.cli.calibrate import METHODS as COMMAND_METHODS
from dlpr.cli.calibrate import calibrate as command
from dlpr.core.calibration import METHODS
from dlpr.engine.output import write_job
from dlpr.errors import InputError, JobError, StoreError
from dlpr.handles import Result
from dlpr.job import Job
from dlpr.plots import plot_reliability
from dlpr.uncertainty import SetCalibration, calibrate

Array = np.ndarray[Any, Any]
SOAP = {
    "cutoff": {"radius": 3.5, "smoothing": {"type": "ShiftedCosine", "width": 0.5}},
    "density": {"type": "Gaussian", "width": 0.5},
    "basis": {
        "type": "TensorProduct",
        "max_angular": 1,
        "radial": {"type": "Gto", "max_radial": 1},
    },
}
UNLABELLED = 3


def crystals(n: int, seed: int) -> list[Atoms]:
    """Rattled silicon of 2 to 8 atoms with energies that no SOAP of this size fits."""
    rng = np.random.default_rng(seed)
    frames = []
    for k in range(n):
        atoms = bulk("Si", cubic=k % 3 == 1).repeat((1 + k % 2, 1, 1))
        atoms.positions += rng.normal(scale=0.05 * (1 + k % 4), size=(len(atoms), 3))
        near = atoms.get_all_distances(mic=True)
        atoms.info["energy"] = float(np.exp(-near[near > 0]).sum() - 100.0 * len(atoms))
        frames.append(atoms)
    return frames


def _sets(folder: Path) -> dict[str, Any]:
    held = crystals(60, 1)
    for atoms in held[:UNLABELLED]:
        del atoms.info["energy"]
    bare = crystals(5, 2)
    for atoms in bare:
        del atoms.info["energy"]
    repeated = [crystals(1, 3)[0] for _ in range(6)]
    for name, frames in {"held": held, "bare": bare, "same": repeated, "few": held[:6]}.items():
        ase.io.write(folder / f"{name}.extxyz", frames)
    return {name: {"files": f"{name}.extxyz"} for name in ("held", "bare", "same", "few")}


def _run(
    folder: Path, output: str, test: dict[str, Any], train: str, rows: str, **settings: Any
) -> Path:
    job = Job.from_dict(
        {
            "output": output,
            "train": {"files": train},
            "test": test,
            "descriptor": {"soap": SOAP},
            "model": {"linear": {"regularizer": 1e-4, "rows": rows}},
            **settings,
        },
        base=folder,
    )
    write_job(folder / output, job)
    work(folder / output, rank=0)
    return folder / output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrate")
    ase.io.write(folder / "train.extxyz", crystals(30, 0))
    return folder


@pytest.fixture(scope="module")
def output(folder: Path) -> Path:
    return _run(folder, "mean", {"train": "train", **_sets(folder)}, "train.extxyz", "mean")


def of_result(output: Path, power: float) -> tuple[Array, Array]:
    """Errors over N to a power, and rigidities, of labelled structures off the store."""
    group: Any = zarr.open_group(str(output / "rigidity.zarr"), mode="r")["held"]
    n = np.diff(group["structure_offset"][:])
    error = (group["structure_energy"][:] - group["structure_energy_label"][:]) / n**power
    known = np.isfinite(error)
    return error[known], group["structure_pr"][:][known]


@pytest.mark.parametrize(("rows", "power"), [("mean", 1.0), ("sum", 0.0), ("sqrt", 0.5)])
def test_errors_are_those_of_rows(folder: Path, output: Path, rows: str, power: float) -> None:
    if rows != "mean":
        output = _run(folder, rows, _sets(folder), "train.extxyz", rows)
    found = calibrate(output, "held", ["likelihood", "squared"])
    error, pr = of_result(output, power)
    assert len(error) == 60 - UNLABELLED
    assert found.n_unlabelled == UNLABELLED
    np.testing.assert_allclose(found.errors, error, rtol=1e-12)
    np.testing.assert_allclose(found.unit_variance, 1.0 / pr, rtol=1e-12)
    scales = {fit.method: fit.scale for fit in found.fits}
    assert scales["likelihood"] == pytest.approx(np.sqrt(np.mean(error**2 * pr)), rel=1e-12)
    assert scales["squared"] == pytest.approx(np.sqrt(np.mean(error**2) / np.mean(1 / pr)))
    sigma = scales["squared"] / np.sqrt(pr)
    expected = [np.mean(np.abs(error) <= k * sigma) for k in (1, 2, 3)]
    np.testing.assert_allclose(found.coverage[1], expected)
    assert 0.0 < found.coverage[1][0] < 1.0
    assert found.rank_correlation == pytest.approx(spearmanr(np.abs(error), 1 / pr).statistic)
    assert found.rmse == pytest.approx(np.sqrt(np.mean(error**2)))
    assert found.unit == {"mean": "eV/atom", "sum": "eV", "sqrt": "eV/√atom"}[rows]


def test_predictions_of_the_result_are_total_energies(output: Path) -> None:
    """Errors are small beside the energies only if both are of whole structures."""
    found = calibrate(output, "held")
    assert 0.0 < found.rmse < 1.0  # of some 100 eV per atom
    assert [fit.method for fit in found.fits] == ["likelihood", "squared", "absolute", "crps"]
    assert {fit.method for fit in found.fits} == set(METHODS)
    assert found.fits[0].rmse_z == pytest.approx(1.0)
    assert min(found.fits, key=lambda fit: fit.nll).method == "likelihood"
    assert min(found.fits, key=lambda fit: fit.crps).method == "crps"


def test_json_says_what_it_was_made_of(output: Path) -> None:
    found = calibrate(Result(output), "held", "likelihood")
    record = json.loads(json.dumps(found.to_json(), allow_nan=False))
    (method,) = record["methods"].values()
    assert method["scale"] == found.fits[0].scale
    assert method["sigma_w"] == pytest.approx(method["scale"] / np.sqrt(record["factor"]["mu"]))
    assert record["conventions"]["rows"] == "mean"
    assert "a^2 (1/LPR) of an environment" in record["conventions"]["variance"]
    kernel = replace(found, record={**found.record, "map": {"kind": "kernel"}})
    assert "environment_residual/mu" in kernel.to_json()["conventions"]["variance"]
    assert "environment_residual/mu" in kernel.notes()[-1]
    assert record["n_unlabelled"] == UNLABELLED
    (source,) = record["sources"]
    assert source["path"].endswith("held.extxyz")
    assert source["fingerprint"]["size"] == (output.parent / "held.extxyz").stat().st_size
    assert {"structures", "factor"} <= record["inputs"].keys()
    bins = record["reliability"]
    assert sum(bins["count"]) == 60 - UNLABELLED
    assert np.mean(found.errors**2) == pytest.approx(
        np.average(bins["squared_error"], weights=bins["count"])
    )
    assert not record["is_training_set"]


def test_the_training_set_is_no_validation_set(output: Path) -> None:
    found = calibrate(output, "train")
    assert found.trained
    assert any("is the training set" in line for line in found.notes())
    assert not any("is the training set" in line for line in calibrate(output, "held").notes())


@pytest.mark.parametrize("kind", ["posterior", "subsample"])
def test_a_committee_is_held_against_the_same_errors(folder: Path, output: Path, kind: str) -> None:
    assert calibrate(output, "held").committee is None
    committee = {kind: {"members": 400} if kind == "posterior" else {}}
    held = {"held": _sets(folder)["held"]}
    found = calibrate(_run(folder, kind, held, "train.extxyz", "sqrt", committee=committee), "held")
    check = found.committee
    assert check is not None
    group: Any = zarr.open_group(str(folder / kind / "rigidity.zarr"), mode="r")["held"]
    error, pr = of_result(folder / kind, 0.5)
    n = np.diff(group["structure_offset"][:])
    variance = (group["structure_committee_variance"][:] / n)[UNLABELLED:]
    assert check.fit.scale == pytest.approx(np.sqrt(np.mean(error**2 / variance)))
    assert check.rank_correlation == pytest.approx(spearmanr(np.abs(error), variance).statistic)
    assert check.with_rigidity == pytest.approx(spearmanr(pr, variance).statistic)
    if kind == "posterior":  # 1/PR itself, up to the scatter of 400 members
        assert check.fit.scale == pytest.approx(found.fits[0].scale, rel=0.1)
        assert check.with_rigidity < -0.95
    assert f"committee of {check.about['members']} ({kind})" in found.notes()[-1]
    record = json.loads(json.dumps(found.to_json(), allow_nan=False))["committee"]
    assert record["fit"]["scale"] == check.fit.scale


def drawn(path: Path, found: SetCalibration) -> bytes:
    return plot_reliability(path, found).read_bytes()


def test_equal_calibrations_draw_equal_pictures(output: Path, tmp_path: Path) -> None:
    one, other = calibrate(output, "held"), calibrate(output, "held", "crps")
    first = drawn(tmp_path / "a.svg", one)
    assert first.startswith(b"<?xml")
    assert drawn(tmp_path / "b.svg", one) == first
    assert drawn(tmp_path / "c.svg", other) != first
    assert drawn(tmp_path / "a.png", one).startswith(b"\x89PNG")
    assert drawn(tmp_path / "a.pdf", one).startswith(b"%PDF")
    with pytest.raises(JobError, match=r"a\.jpg.*\.svg, \.png, \.pdf"):
        plot_reliability(tmp_path / "a.jpg", one)


def test_command(output: Path, tmp_path: Path) -> None:
    picture, file = tmp_path / "r.svg", tmp_path / "c.json"
    line = [str(output), "--set", "held"]
    done = CliRunner().invoke(command, [*line, "--plot", str(picture), "--to", str(file)])
    assert done.exit_code == 0, done.output
    assert picture.stat().st_size > 0
    record = json.loads(file.read_text())
    assert list(record["methods"]) == ["likelihood", "squared", "absolute", "crps"]
    for method, figures in record["methods"].items():
        assert f"{figures['scale']:.4g}" in done.output, method
    assert f"{UNLABELLED} structures have no energy" in done.output
    one = CliRunner().invoke(command, [*line, "--method", "crps"])
    assert "crps" in one.output
    assert "squared" not in one.output
    assert "dlpr calibrate results" in CliRunner().invoke(command, ["--help"]).output
    wrong = CliRunner().invoke(command, [*line, "--plot", str(tmp_path / "r.jpg")])
    assert isinstance(wrong.exception, JobError)
    methods = (*[fit.method for fit in calibrate(output, "held").fits], "all")
    assert methods == COMMAND_METHODS


def test_damage_is_named(output: Path, tmp_path: Path) -> None:
    shutil.copytree(output / "rigidity.zarr", tmp_path / "rigidity.zarr")
    (chunk,) = (tmp_path / "rigidity.zarr/held/structure_energy").glob("c*")
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"x")
    with pytest.raises(StoreError, match=r"held/structure_energy cannot be read.*dlpr work"):
        calibrate(tmp_path, "held")


def test_sets_that_tell_nothing(folder: Path, output: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"0 of 5 structures of bare.*test\.bare\.keys.*train"):
        calibrate(output, "bare")
    with pytest.raises(InputError, match=r"all 6 structures of same have the same rigidity"):
        calibrate(output, "same")
    with pytest.raises(InputError, match=r"3 structures of few.*; 4 are needed"):
        calibrate(output, "few")
    with pytest.raises(StoreError, match="no set 'hled'"):
        calibrate(output, "hled")
    with pytest.raises(StoreError, match="holds no result"):
        calibrate(tmp_path, "held")
    for wrong in ("crsp", ["likelihood", "all"], []):
        with pytest.raises(JobError, match="choose from squared, absolute, likelihood, crps, or"):
            calibrate(output, "held", wrong)
    unfitted = _run(folder, "unfitted", {"held": {"files": "held.extxyz"}}, "bare.extxyz", "mean")
    with pytest.raises(InputError, match=r"rigidities of held but no energies.*train\.keys"):
        calibrate(unfitted, "held")
