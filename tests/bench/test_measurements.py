"""Measurements at tiny sizes and in this process: their figures mean nothing, their sums must."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import ase.io
import numpy as np
import pytest
from click.testing import CliRunner

from dlpr.bench import fabricate, forces, frames, growth, memory, precision, proposal, tiles
from dlpr.bench.measure import QUICK, Bench, Row
from dlpr.bench.passes import fabricate_rows, rows_in_memory
from dlpr.bench.report import Report
from dlpr.bench.suite import run_bench
from dlpr.cli.bench import bench as bench_command
from dlpr.engine.events import Listener
from dlpr.engine.executors import WorkExecutor
from dlpr.engine.pipeline import Pipeline
from dlpr.engine.workspace import Workspace
from dlpr.errors import StoreError
from dlpr.job import Job
from dlpr.stages import ingest as ingest_stage

SMALLEST = {
    **frames.SOAP,
    "basis": {
        "type": "TensorProduct",
        "max_angular": 2,
        "radial": {"type": "Gto", "max_radial": 2},
    },
}


@contextmanager
def in_process(
    job: Job, *others: Listener, client: object = None, listeners: tuple[Listener, ...] = ()
) -> Iterator[Pipeline]:
    fabricate.register()
    told = (*others, *listeners)
    yield Pipeline(job, Workspace(job.path(job.output), WorkExecutor(0), *told))


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    from dlpr import descriptors

    monkeypatch.setattr(descriptors, "KINDS", dict(descriptors.KINDS))
    monkeypatch.setattr(frames, "SOAP", SMALLEST)
    for module in (memory, tiles):
        monkeypatch.setattr(module, "warm_pipeline", in_process)
    for module in (growth, precision):
        monkeypatch.setattr(module, "warm_client", nullcontext)
        monkeypatch.setattr(module, "pipeline", in_process)


def taken(module: ModuleType, folder: Path, data: Path = Path("nowhere")) -> dict[str, Row]:
    rows = module.measure(Bench(QUICK, folder, [], data))
    return {f"{row.name} {row.size.get('distribution', '')}".strip(): row for row in rows}


def test_growth_costs_what_is_new_and_changes_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_stage, "TASK_ATOMS", 3200)
    found = taken(growth, tmp_path)
    same = found["growth by 1 %, relative difference of LPR"]
    assert (same.value, same.note) == (0.0, "bitwise equal")
    cost = found["growth by 1 %, CPU of tasks"]
    assert cost.value is not None
    assert 0.0 < cost.value < 0.5  # of two parts of 50 frames and one of a single frame, the last


def test_tiles_agree_with_one_piece(tmp_path: Path) -> None:
    found = taken(tiles, tmp_path)
    difference = found["LPR from tiles, relative difference"]
    assert difference.is_reached
    assert difference.value != 0.0
    assert found["run in tiles"].size["environments"] == tiles.N_TEST


def test_rows_of_chance_are_folded_as_rows_of_forces(tmp_path: Path) -> None:
    fabricate.register()
    folder = tmp_path / "data"
    fabricate_rows(folder, 20, 1, 64)
    fabricate.write_atoms(folder / "train.xyz", 5, 64, seed=1, forces=True)
    job = fabricate.fabricated_job(folder, 20, loss={"energy": 0.0, "forces": 1.0})
    steps = Pipeline(job, Workspace(folder / "results", WorkExecutor(0)))
    forces.write_derivatives(steps)
    rows = rows_in_memory(steps)
    assert rows.shape == (5 * 64 * 3, 20)
    partials = steps.fold("hessian")
    found = sum(partials.read_part(task)["matrix"] for task in range(partials.n_tasks))
    upper = np.triu_indices(20)
    np.testing.assert_allclose(np.asarray(found)[:20, :20][upper], (rows.T @ rows)[upper])


def test_memory_is_measured_over_all_that_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_KINDS", {frames.LARGE: (1, 1), frames.SMALL: (2, 3)})
    assert memory._write(tmp_path, 1000) == 1000
    files = sorted(tmp_path.glob("test-200-*.xyz"))
    read = [atoms for file in files for atoms in ase.io.read(file, ":")]
    assert [len(atoms) for atoms in read] == [200] * 5
    np.testing.assert_array_equal(read[0].positions, read[2].positions)
    assert not np.array_equal(read[0].positions, read[1].positions)
    rows = taken(memory, tmp_path)
    assert rows["memory of a worker, largest / smallest"].value == pytest.approx(1.0, abs=0.5)


def test_real_data_that_are_absent_are_named(tmp_path: Path) -> None:
    (row,) = taken(precision, tmp_path).values()
    assert row.value is None
    assert precision.TRAIN in row.note


@pytest.mark.shared
def test_float32_on_real_carbon_stays_below_what_is_stated(tmp_path: Path, shared: Path) -> None:
    found = taken(precision, tmp_path, shared / "data")
    for distribution in ("in", "out of"):
        row = found[f"LPR from features of float32, real carbon {distribution}"]
        assert row.is_reached
        assert row.value is not None
        assert row.value > 1e-9


@pytest.mark.skipif(platform.machine() != "x86_64", reason="Nehalem is a kernel of x86-64")
def test_a_kernel_that_the_environment_asks_for_is_named() -> None:
    code = "from dlpr.bench.measure import held_back; print(held_back())"

    def said(**environment: str) -> str:
        plain = {key: value for key, value in os.environ.items() if key != "OPENBLAS_CORETYPE"}
        command = [sys.executable, "-c", code]
        environment = {**plain, **environment}
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        ).stdout

    assert said() == "None\n"
    assert "OPENBLAS_CORETYPE=Nehalem" in said(OPENBLAS_CORETYPE="Nehalem")


@pytest.mark.parametrize(
    ("option", "value", "least"),
    [("--columns", "0", "32"), ("--columns", "-5", "32"), ("--environments", "10", "200")],
)
def test_sizes_that_are_too_small_are_refused(option: str, value: str, least: str) -> None:
    done = CliRunner().invoke(bench_command, ["--quick", option, value])
    assert done.exit_code == 2
    assert option in done.output
    assert f"x>={least}" in done.output


def test_a_folder_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, *args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StoreError, match=r"cannot write .*there.*--output"):
        run_bench(tmp_path / "there", QUICK, ["limits"])


def test_quick_figures_are_no_constants_of_a_model(tmp_path: Path) -> None:
    report = Report.load(tmp_path)
    report.add("limits", QUICK, iter([Row("dsyrk", 1.0)]), lambda row: None)
    report.add("fold", replace(QUICK, is_quick=False), iter([Row("a", 1.0)]), lambda row: None)
    assert report.alike(QUICK) == ["limits"]
    assert report.alike(replace(QUICK, is_quick=False)) == ["fold"]


def test_refits_pick_what_is_picked(tmp_path: Path) -> None:
    seconds, speed = proposal.measure(Bench(QUICK, tmp_path, []))
    assert (seconds.reach, speed.reach) == (proposal.PICK_SECONDS, proposal.SPEED)
    assert seconds.value is not None
    assert speed.value is not None
    assert speed.note == "the same pick"
