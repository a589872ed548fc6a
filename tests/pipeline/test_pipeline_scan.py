"""Regularizers beside one another: every point of a scan is a run with that regularizer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from click.testing import CliRunner
from pipeline_cases import TINY, crystals, make_job, run

import dlpr.engine.memory as memory_module
import dlpr.stages.scan as scan_module
from dlpr.cli.scan import scan as command
from dlpr.errors import InputError, JobError, ResourceError, StoreError
from dlpr.plots import plot_scan
from dlpr.regularizer_scan import QUANTILES
from dlpr.scanning import scan

Array = np.ndarray[Any, Any]
ALPHA = np.array([1e-6, 1e-3, 1.0])
FORCES = {"energy": 1.0, "forces": 0.1, "stress": 0.01, "groups": {"odd": 3.0}}
RANDOM = {"count": 4, "method": "random"}


def labelled(n: int, seed: int) -> list[Atoms]:
    """Crystals whose energies depend on their atoms, with forces and stresses."""
    rng = np.random.default_rng(seed)
    frames = crystals(("Ga", "As"), n, seed)
    for atoms in frames:
        near = atoms.get_all_distances(mic=True)
        energy = np.exp(-near[near > 0]).sum() - 2.0 * np.sum(atoms.numbers == 31)
        energy += 0.05 * rng.normal()
        forces, stress = rng.normal(size=(len(atoms), 3)), rng.normal(size=6)
        atoms.info.pop("energy")
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces, stress=stress)
    return frames


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scan")
    write(folder / "train.xyz", labelled(24, 0), format="extxyz")
    write(folder / "test.xyz", labelled(7, 1), format="extxyz")
    return folder


def finished(data: Path, output: str, model: dict[str, Any], **settings: Any) -> Path:
    sets = {"train": "train", "test": {"files": "test.xyz"}}
    train = {"files": "train.xyz", "group_by": "config_type"}
    job = make_job(data, train, sets, hypers=TINY, output=output, model=model, **settings)
    return run(job).output


MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({"linear": {"regularizer": 1e-4}}, {}),
    "sums": ({"linear": {"regularizer": 1e-4, "rows": "sum", "scale": "none"}}, {}),
    "isolated": (
        {"linear": {"regularizer": 1e-4, "baseline": {"isolated": {"Ga": -2.0, "As": 0.5}}}},
        {"solver": "cholesky"},
    ),
    "composition": (
        {"linear": {"regularizer": 1e-4, "baseline": {"composition": {"regularizer": 1e-2}}}},
        {"solver": "qr"},
    ),
    "shared": (
        {
            "linear": {
                "regularizer": 1e-4,
                "centre_species": "shared",
                "baseline": {"composition": {"regularizer": 1e-2}},
            }
        },
        {"solver": "cholesky"},
    ),
    "dual": (
        {"linear": {"regularizer": 1e-4, "baseline": {"composition": {"regularizer": 1e-2}}}},
        {"solver": "dual"},
    ),
    "tiles": (
        {"linear": {"regularizer": 1e-4, "baseline": {"composition": {"regularizer": 1e-2}}}},
        {"solver": "cholesky", "numerics": {"tile_columns": 20}},
    ),
    "kernel": ({"kernel": {"regularizer": 1e-4, "references": RANDOM}}, {"solver": "qr"}),
}


def direct(output: Path, name: str, convention: str) -> tuple[float, Array]:
    """Error of a set, and quantiles of its LPR, off a published result."""
    group: Any = zarr.open_group(str(output / "rigidity.zarr"), mode="r")[name]
    n = np.diff(group["structure_offset"][:])
    factor = {"mean": 1.0 / n, "sum": np.ones(len(n))}[convention]
    error = factor * (group["structure_energy"][:] - group["structure_energy_label"][:])
    lpr = group["environment_lpr"][:]
    return float(np.sqrt(np.mean(error**2))), np.quantile(lpr, QUANTILES, method="inverted_cdf")


@pytest.mark.parametrize("case", MODELS)
def test_every_point_is_a_run(data: Path, case: str) -> None:
    model, settings = MODELS[case]
    ((kind, spec),) = model.items()
    output = finished(data, case, model, **settings)
    before = {path.name for path in (output / "work").iterdir()}
    found = scan(output, "test", ALPHA)
    made = {path.name for path in (output / "work").iterdir()} - before
    assert {name.partition("-")[0] for name in made} <= {
        "rows",
        "triangle",
        "decomposition",
        "scan",
    }
    errors = []
    for k, alpha in enumerate(ALPHA if case == "plain" else ALPHA[1:2]):
        place = k if case == "plain" else 1
        # in the same folder: all but the factor and what follows is there
        finished(data, case, {kind: {**spec, "regularizer": float(alpha)}}, **settings)
        error, lpr = direct(output, "test", found.convention)
        errors.append(error)
        assert found.rmse[place] == pytest.approx(error, rel=1e-6)
        np.testing.assert_allclose(found.lpr[place], lpr, rtol=1e-6)
        trained = direct(output, "train", found.convention)[0]
        assert found.train_rmse[place] == pytest.approx(trained, rel=1e-6)
    if case == "plain":
        assert found.best == int(np.argmin(errors))
    np.testing.assert_array_equal(found.errors["energy"], found.rmse)
    assert (np.diff(found.train_rmse) > 0).all()


def test_forces_count_as_the_loss_says(data: Path) -> None:
    model = {"linear": {"regularizer": 1e-4, "scale": "none"}}
    found = scan(finished(data, "forces", model, loss=FORCES), "test", ALPHA)
    assert list(found.errors) == ["energy", "forces", "stress"]
    n_atoms = sum(map(len, labelled(7, 1)))
    counts = {"energy": 7, "forces": 3 * n_atoms, "stress": 42}
    assert found.record["n_rows"] == {"train": found.record["n_rows"]["train"], **counts}
    squares = sum(FORCES[k] * counts[k] * found.errors[k] ** 2 for k in counts)  # type: ignore[operator]
    total = sum(FORCES[k] * counts[k] for k in counts)  # type: ignore[operator]
    np.testing.assert_allclose(found.rmse, np.sqrt(squares / total))
    other = finished(
        data, "forces-1", {"linear": {**model["linear"], "regularizer": 1e-3}}, loss=FORCES
    )
    assert found.errors["energy"][1] == pytest.approx(direct(other, "test", "mean")[0], rel=1e-6)


def test_groups_count_as_the_loss_says(data: Path) -> None:
    """A group of weight 0 is as if it were not in the set."""
    whole = {"files": "test.xyz", "group_by": "config_type"}
    sets = {"test": whole}
    sets |= {name: {**whole, "where": f"config_type == '{name}'"} for name in ("odd", "even")}
    train = {"files": "train.xyz", "group_by": "config_type"}

    def of_odd(weight: float) -> Path:
        settings = {"loss": {"groups": {"odd": weight}}, "output": f"odd-{weight}"}
        linear = {"regularizer": 1e-4}
        return run(make_job(data, train, sets, hypers=TINY, linear=linear, **settings)).output

    square = {name: scan(of_odd(3.0), name, ALPHA).rmse ** 2 for name in sets}
    expected = (3.0 * 3 * square["odd"] + 4 * square["even"]) / (3.0 * 3 + 4)
    np.testing.assert_allclose(square["test"], expected, rtol=1e-12)
    output = of_odd(0.0)
    with pytest.raises(InputError, match=r"every group of odd has the weight 0"):
        scan(output, "odd", ALPHA)
    rmse = [scan(output, name, ALPHA).rmse for name in ("test", "even")]
    np.testing.assert_array_equal(*rmse)


def test_small_regularizers_take_triangles(data: Path) -> None:
    """A Hessian of one piece lacks digits there; `solver: auto` folds its rows otherwise."""
    model = {"linear": {"regularizer": 1e-2}}
    automatic = finished(data, "auto", model)
    assert not list((automatic / "work").glob("triangle-*"))
    found = scan(automatic, "test", [1e-14, 1e-2])
    assert list((automatic / "work").glob("triangle-*"))
    assert found.resolved == 0.0
    assert not any("digits" in line for line in found.notes())
    asked = scan(finished(data, "asked", model, solver="cholesky"), "test", [1e-14, 1e-2])
    assert 1e-14 < asked.resolved < 1e-2
    assert any("solver: qr" in line for line in asked.notes())
    assert asked.rmse[1] == pytest.approx(found.rmse[1], rel=1e-6)


def test_a_sample_of_environments(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = finished(data, "sample", {"linear": {"regularizer": 1e-4}})
    whole = scan(output, "test", ALPHA)
    monkeypatch.setattr(scan_module, "BATCH", 5)
    np.testing.assert_allclose(scan(output, "test", ALPHA).lpr, whole.lpr, rtol=1e-9)
    some = scan(output, "test", ALPHA, sample=3)
    every: Any = zarr.open_array(str(output / "rigidity.zarr/test/environment_lpr"), mode="r")[:]
    assert (some.n_environments, whole.n_environments) == (3, sum(map(len, labelled(7, 1))))
    np.testing.assert_array_equal(some.errors["energy"], whole.errors["energy"])
    # the first, a middle and the last environment, as the run has them for its own regularizer
    own = scan(output, "test", [1e-4], sample=3)
    middle = (len(every) - 1) // 2
    candidates = [np.sort(np.take(every, [0, k, -1])) for k in (middle, middle + 1)]
    assert any(np.allclose(np.unique(own.lpr), one, rtol=1e-6) for one in candidates)


def test_notes_say_what_to_do(data: Path) -> None:
    output = finished(data, "notes", {"linear": {"regularizer": 1e-4}})
    found = scan(output, "test", np.geomspace(1e-8, 1e6, 29))
    best = found.regularizer[found.best]
    assert not found.scan.at_edge()
    assert any(f"model: {{linear: {{regularizer: {best:.2e}}}}}" in line for line in found.notes())
    assert sum("*" in row[0] for row in found.table().rows) == 1
    assert "*" in found.table().rows[found.best][0]
    for part, option in ((slice(found.best, None), "--from"), (slice(found.best + 1), "--up-to")):
        edge = scan(output, "test", found.regularizer[part])
        assert edge.regularizer[edge.best] == best
        assert any("edge" in line and option in line for line in edge.notes())


# the command -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def output(data: Path) -> Path:
    return finished(data, "command", {"linear": {"regularizer": 1e-4}})


def test_command(output: Path, tmp_path: Path) -> None:
    picture, file = tmp_path / "scan.svg", tmp_path / "scan.json"
    line = [str(output), "--on", "test", "--from", "1e-6", "--up-to", "1", "--points", "4"]
    done = CliRunner().invoke(command, [*line, "--plot", str(picture), "--to", str(file)])
    assert done.exit_code == 0, done.output
    assert "best regularizer" in done.output
    assert b"<svg" in picture.read_bytes()
    record = json.loads(file.read_text())
    np.testing.assert_allclose(record["regularizer"], [1e-6, 1e-4, 1e-2, 1.0])
    assert record["best"] == record["regularizer"][int(np.argmin(record["validation_rmse"]))]
    assert record["mu"][1] == pytest.approx(1e-4 * record["scale_square"])
    assert record["model"]["rows"] == "mean"
    assert record["sources"][0]["path"].endswith("test.xyz")
    again = CliRunner().invoke(command, [*line, "--to", str(file)])
    assert json.loads(file.read_text()) == record, again.output
    assert "dlpr scan results" in CliRunner().invoke(command, ["--help"]).output
    wrong = CliRunner().invoke(command, [str(output), "--on", "test", "--from", "2"])
    assert wrong.exit_code == 2
    assert "needs 0 < from < up-to" in wrong.output


def test_equal_scans_draw_equal_pictures(output: Path, tmp_path: Path) -> None:
    found = scan(output, "test", ALPHA)
    first, again, other = (
        plot_scan(tmp_path / f"{k}.svg", one).read_bytes()
        for k, one in enumerate([found, found, replace(found, lpr=2.0 * found.lpr)])
    )
    assert first == again != other


def test_what_cannot_be_scanned(
    data: Path, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(JobError, match=r"positive numbers.*-1\.0"):
        scan(output, "test", [1.0, -1.0])
    with pytest.raises(JobError, match=r"train is the training set.*train, test"):
        scan(output, "train", ALPHA)
    with pytest.raises(StoreError, match="no set 'tset'"):
        scan(output, "tset", ALPHA)
    with pytest.raises(StoreError, match="holds no result"):
        scan(tmp_path, "test", ALPHA)
    bare = crystals(("Ga", "As"), 4, 5)
    for atoms in bare:
        atoms.info.pop("energy")
    write(data / "bare.xyz", bare, format="extxyz")
    sets = {"test": {"files": "test.xyz"}, "bare": {"files": "bare.xyz"}}
    unlabelled = run(make_job(data, test=sets, hypers=TINY, output="unlabelled"))
    with pytest.raises(InputError, match=r"0 structures of bare have energy.*test\.bare\.keys"):
        scan(unlabelled.output, "bare", ALPHA)
    unfitted = run(
        make_job(data, "bare.xyz", {"test": {"files": "test.xyz"}}, hypers=TINY, output="unfitted")
    )
    with pytest.raises(InputError, match=r"nothing to fit.*train\.keys"):
        scan(unfitted.output, "test", ALPHA)
    monkeypatch.setattr(memory_module, "DECOMPOSED_COPIES", 1 << 60)
    with pytest.raises(ResourceError, match="larger machine"):
        scan(finished(data, "large", {"linear": {"regularizer": 1.0}}), "test", ALPHA)
