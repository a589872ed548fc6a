"""A job that leaves its regularizer to the run: it is as if the number picked had stood there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
import zarr
from ase.io import read, write
from click.testing import CliRunner
from pipeline_cases import TINY, Outcome, assert_same_bits, crystals, make_job, run
from test_pipeline_scan import FORCES, RANDOM, labelled

from dlpr.cli import cli
from dlpr.clusters.local import LocalStarter
from dlpr.engine import regularizer_choice
from dlpr.engine.executors import ClusterExecutor, Executor
from dlpr.errors import InputError, JobError, NumericsError, ResourceError
from dlpr.job import Job
from dlpr.scanning import scan

SCAN: dict[str, Any] = {"scan": [1e-8, 1e4], "on": "test", "points": 7}
COMPOSITION = {"baseline": {"composition": {"regularizer": 1e-2}}}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "auto": ("linear", {}, {}),
    "composition": ("linear", COMPOSITION, {"solver": "qr"}),
    "forces": ("linear", {"rows": "sum", "scale": "none"}, {"loss": FORCES}),
    "dual": ("linear", COMPOSITION, {"solver": "dual"}),
    "tiles": (
        "linear",
        COMPOSITION,
        {"solver": "cholesky", "numerics": {"tile_columns": 20}},
    ),
    "kernel": ("kernel", {"references": RANDOM}, {}),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chosen")
    write(folder / "train.xyz", labelled(24, 0), format="extxyz")
    write(folder / "test.xyz", labelled(7, 1), format="extxyz")
    return folder


def job_of(data: Path, output: str, regularizer: Any, case: str = "auto", **settings: Any) -> Job:
    kind, spec, more = CASES[case]
    sets = {"train": "train", "test": {"files": "test.xyz"}}
    train = {"files": "train.xyz", "group_by": "config_type"}
    model = {kind: {"regularizer": regularizer, **spec}}
    more = {"hypers": TINY, "model": model, **more, **settings}
    return make_job(data, train, sets, output=output, **more)


def finished(
    data: Path,
    output: str,
    regularizer: Any,
    case: str = "auto",
    executor: Executor | None = None,
    **settings: Any,
) -> Outcome:
    return run(job_of(data, output, regularizer, case, **settings), executor=executor)


def picked_of(output: Path) -> float:
    root = zarr.open_group(str(output / "rigidity.zarr"), mode="r")
    found: Any = root.attrs["regularizer"]
    model: Any = root["test"].attrs["model"]
    assert model["regularizer"] == found["picked"]
    return float(found["picked"])


@pytest.mark.parametrize("case", CASES)
def test_it_is_as_if_the_number_had_stood_there(data: Path, case: str) -> None:
    chosen = finished(data, f"{case}-chosen", SCAN, case)
    picked = picked_of(chosen.output)
    plain = finished(data, f"{case}-plain", picked, case)
    assert_same_bits(chosen.output, plain.output)
    factors = [{k: f.name for k, f in one.used.items() if "factor" in k} for one in (chosen, plain)]
    assert factors[0] == factors[1] != {}
    # another way to the same choice: the command, on a run with some number
    numbers = job_of(data, "x", SCAN, case).model.spec.scan.regularizers
    found = scan(plain.output, "test", numbers)
    assert numbers[found.best] == picked
    assert 0 < found.best < len(numbers) - 1 or case == "kernel"
    root = zarr.open_group(str(chosen.output / "rigidity.zarr"), mode="r")
    job: Any = root.attrs["job"]
    assert job["model"][CASES[case][0]]["regularizer"] == SCAN
    assert "regularizer" not in zarr.open_group(str(plain.output / "rigidity.zarr")).attrs


def test_any_workers_pick_the_same(data: Path) -> None:
    few = {"numerics": {"task_environments": 32}}
    executor = ClusterExecutor(LocalStarter(2, 1, 1 << 30))
    try:
        first = finished(data, "dask", SCAN, "forces", executor, **few)
    finally:
        executor.close()
    assert first.tasks["regularizers tried on test"] == 5  # three kinds, rigidities, the choice
    second = finished(data, "serial", SCAN, "forces", **few)
    assert_same_bits(first.output, second.output)
    role = "regularizers tried on test"
    assert first.used[role].output_digest() == second.used[role].output_digest()


def test_a_run_continues(data: Path) -> None:
    first = finished(data, "again", SCAN)
    assert first.tasks["regularizers tried on test"] == 3
    assert finished(data, "again", SCAN).tasks == {}
    other = finished(data, "again", {**SCAN, "points": 4})
    assert other.tasks.keys() <= {
        "regularizers tried on test",
        "factor of the hessian",
        "factor of the triangle",
        "triangle",
        "rigidity of test",
        "rigidity of train",
        "result",
    }


def test_tiles_need_the_memory_of_a_decomposition(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dlpr.engine.memory.DECOMPOSED_COPIES", 1 << 30)
    executor = ClusterExecutor(LocalStarter(1, 1, 1 << 30))
    with pytest.raises(ResourceError, match=r"memory_per_worker is 1\.0 GiB"):
        finished(data, "large", SCAN, "tiles", executor)
    assert not list((data / "large" / "work").glob("rows-*/receipts/*"))


# what cannot be picked ---------------------------------------------------------------------------


def refused(data: Path, regularizer: Any) -> str:
    with pytest.raises(JobError) as caught:
        job_of(data, "refused", regularizer)
    return str(caught.value)


def test_what_a_job_cannot_say(data: Path) -> None:
    known = r"needs a test set that takes no part in the fit. This job has: test"
    assert f"regularizer.on: 'tset' is no set of this job; {known}" in refused(
        data, {**SCAN, "on": "tset"}
    )
    assert (
        f"'train' is the training set, whose errors always want the smallest regularizer; {known}"
        in (refused(data, {**SCAN, "on": "train"}))
    )
    assert "found [1.0, 0.1]; needs two numbers > 0, the smaller one first" in refused(
        data, {**SCAN, "scan": [1.0, 0.1]}
    )
    assert "model.linear.regularizer.scan" in refused(data, {**SCAN, "scan": [0.0, 0.1]})
    assert "did you mean `points`?" in refused(data, {"scan": [1, 2], "on": "test", "point": 3})
    assert "model.linear.regularizer.on: missing" in refused(data, {"scan": [1, 2]})
    assert "points: found 1; needs a whole number >= 2" in refused(data, {**SCAN, "points": 1})
    assert "a number >= 0, such as 1.0e-8, or {scan:" in refused(data, "small")
    same = {"train": "train", "test": {"files": "train.xyz"}}
    with pytest.raises(JobError, match="is the training set"):
        make_job(data, test=same, linear={"regularizer": SCAN})


def test_the_default_points() -> None:
    spec = job_of(Path("/"), "x", {"scan": [1e-10, 1e-2], "on": "test"}).model.spec
    assert len(spec.scan.regularizers) == 25
    np.testing.assert_allclose(spec.scan.regularizers, np.geomspace(1e-10, 1e-2, 25), rtol=1e-5)
    assert spec.least_regularizer == 1e-10


def test_labels_are_looked_for_first(data: Path) -> None:
    bare = crystals(("Ga", "As"), 4, 5)
    for atoms in bare:
        atoms.info.pop("energy")
    write(data / "bare.xyz", bare, format="extxyz")
    settings = {"hypers": TINY, "linear": {"regularizer": SCAN}}
    job = make_job(data, test={"test": {"files": "bare.xyz"}}, output="bare", **settings)
    with pytest.raises(InputError, match=r"0 structures of test have energy.*test\.test\.keys"):
        run(job)
    assert not list((data / "bare" / "work").glob("[!is]*"))
    job = make_job(data, "bare.xyz", {"test": {"files": "test.xyz"}}, output="bare-2", **settings)
    with pytest.raises(InputError, match=r"nothing to fit.*train\.keys"):
        run(job)


def test_errors_that_are_no_numbers(data: Path) -> None:
    frames = list(read(data / "test.xyz", ":"))
    for atoms in frames:
        atoms.calc = None
        atoms.info["energy"] = 1e200
    write(data / "huge.xyz", frames, format="extxyz")
    sets = {"test": {"files": "huge.xyz"}}
    job = make_job(data, test=sets, hypers=TINY, output="huge", linear={"regularizer": SCAN})
    with pytest.raises(NumericsError, match=r"to 10000 could be picked on test: none of 7"):
        run(job)


# the commands ------------------------------------------------------------------------------------


def command(data: Path, name: str, regularizer: Any) -> tuple[str, str, Path]:
    """What `dlpr plan` and `dlpr run` say of a job file."""
    job = job_of(data, name, regularizer, numerics={"tile_columns": 4096})
    file = data / f"{name}.yaml"
    cluster = {"local": {"workers": 1, "memory_per_worker": "1GiB"}}
    file.write_text(yaml.safe_dump({**job.resolved(), "cluster": cluster}))
    said = []
    for verb in ("plan", "run"):
        done = CliRunner().invoke(cli, [verb, str(file)])
        assert done.exit_code == 0, done.output
        said.append(done.output)
    return said[0], said[1], data / name


def test_commands_say_what_was_picked(data: Path) -> None:
    planned, ran, output = command(data, "command", SCAN)
    for stage in ("decomposition", "rows of test", "regularizers tried on test"):
        assert stage in planned
        assert stage in ran
    picked = picked_of(output)
    assert f"regularizer {picked:.6g}: the best of 7 from 1e-08 to 1e+04" in ran
    assert "warning" not in ran
    record = json.loads((output / "regularizers.json").read_text())
    assert record["best"] == picked
    assert len(record["validation_rmse"]) == len(record["lpr"]) == 7
    assert b"<svg" in (output / "regularizers.svg").read_bytes()
    assert "dlpr scan" not in ran
    cleaned = CliRunner().invoke(cli, ["clean", str(output)])
    assert cleaned.exit_code == 0, cleaned.output
    assert finished(data, "command", SCAN, numerics={"tile_columns": 4096}).tasks == {}


def test_the_edge_of_a_scan_is_a_warning(data: Path) -> None:
    _, ran, output = command(data, "edge", {**SCAN, "scan": [10.0, 1e4]})
    assert picked_of(output) == 10.0
    assert "warning: it lies at the lower edge of the scan, which went from 10 to 1e+04" in ran
    assert "the job file may have scan: [1.0e-03, 1.0e+04]" in ran


def test_a_record_only_where_something_was_picked(data: Path) -> None:
    class Steps:
        job = job_of(data, "x", 1.0)

    assert regularizer_choice.record(Steps()) == {}  # type: ignore[arg-type]
