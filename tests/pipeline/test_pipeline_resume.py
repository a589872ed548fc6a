"""A run that is run again does what is missing, and nothing else, to the same bytes."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from pipeline_cases import (
    SPECIES,
    Outcome,
    assert_same_bits,
    crystals,
    load,
    make_job,
    run,
    shapes,
    store,
)

from dlpr.api import worker
from dlpr.engine.events import Event
from dlpr.engine.executors import WorkExecutor
from dlpr.engine.output import read_job, write_job
from dlpr.engine.pipeline import Pipeline
from dlpr.engine.workspace import Workspace
from dlpr.job import Job
from dlpr.stages.tasks import run_task
from dlpr.store.folder import Receipt, StageFolder, folders

SYMBOLS = SPECIES[2]
SETS = {"train": "train", "test": {"files": "test.xyz"}}
INPUTS = ("train.xyz", "test.xyz")
NUMERICS = {"block_environments": 16, "task_environments": 32}
FACTOR_ON = {"factor of the hessian", "rigidity of train", "rigidity of test", "result"}


class Killed(Exception):
    """Raised in the middle of a run."""


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with input files and a finished run, stored test features and all."""
    folder = tmp_path_factory.mktemp("resume")
    store(folder / "train.xyz", crystals(SYMBOLS, 12))
    store(folder / "test.xyz", crystals(SYMBOLS, 4, seed=3, big=4) + shapes(SYMBOLS))
    run(job_in(folder, "out"))
    return folder


@pytest.fixture
def bench(pristine: Path) -> Iterator[Path]:
    """The same folder, to be disturbed: jobs write to a copy of the finished run."""
    shutil.copytree(pristine / "out", pristine / "bench", symlinks=True)
    for name in INPUTS:
        shutil.copy2(pristine / name, pristine / f"{name}.kept")
    yield pristine
    for name in ("bench", "fresh"):
        shutil.rmtree(pristine / name, ignore_errors=True)
    for name in INPUTS:
        (pristine / f"{name}.kept").replace(pristine / name)


def job_in(folder: Path, output: str = "bench", **given: object) -> Job:
    plan = {"store_test_features": True, "numerics": NUMERICS, "solver": "cholesky"}
    return make_job(folder, test=SETS, **{"output": output, **plan, **given})


def receipts_of(output: Path) -> set[tuple[str, int]]:
    return {
        (folder.name, task)
        for folder in folders(output / "work")
        for task in range(folder.n_tasks)
        if folder.receipt(task) is not None
    }


def done_in(found: Outcome) -> list[tuple[str, int]]:
    """Stage folder and task of every task event."""
    return [
        (found.used[event.stage].name, event.receipt.task)
        for event in found.events
        if event.kind == "task" and event.receipt is not None
    ]


def renew(path: Path) -> None:
    """The same content and a new time."""
    path.write_bytes(path.read_bytes())
    stamp = path.stat().st_mtime_ns + 5_000_000_000
    os.utime(path, ns=(stamp, stamp))


def reason(found: Outcome, role: str) -> str:
    return next(e.text for e in found.events if e.kind == "stage" and e.stage == role)


def test_a_finished_run_does_nothing(pristine: Path) -> None:
    found = run(job_in(pristine, "out"))
    assert found.tasks == {}
    assert {e.text for e in found.events if e.kind == "stage"} == {"reused"}


def test_a_finished_run_writes_nothing_and_looks_at_a_receipt_once(
    pristine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = run(job_in(pristine, "out")).output
    before = {path: path.stat() for path in output.rglob("*") if path.is_file()}
    looks: Counter[tuple[str, int]] = Counter()
    receipt = StageFolder.receipt

    def look(folder: StageFolder, task: int) -> Receipt | None:
        looks[folder.name, task] += 1
        return receipt(folder, task)

    monkeypatch.setattr(StageFolder, "receipt", look)
    found = run(job_in(pristine, "out"))
    for path, state in before.items():
        now = path.stat()
        same = (now.st_ino, now.st_mtime_ns) == (state.st_ino, state.st_mtime_ns)
        assert same or path.name == "events.jsonl", path
    for role in ("features of train", "rows", "rigidity of test", "result"):
        stage = found.used[role]
        assert [looks[stage.name, task] for task in range(stage.n_tasks)] == [1] * stage.n_tasks


def test_the_result_looks_at_a_receipt_a_few_times_however_many_there_are(
    bench: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run(job_in(bench))
    rigidity, result = before.used["rigidity of train"], before.used["result"]
    task = result.settings["tasks"].index(["train", None])
    StageFolder(result.path).withdraw(task)
    looks: Counter[tuple[str, int]] = Counter()
    receipt = StageFolder.receipt

    def look(folder: StageFolder, number: int) -> Receipt | None:
        looks[folder.name, number] += 1
        return receipt(folder, number)

    monkeypatch.setattr(StageFolder, "receipt", look)
    run_task(str(result.path), task)
    found = [looks[rigidity.name, number] for number in range(rigidity.n_tasks)]
    assert rigidity.n_tasks >= 3
    assert max(found) <= 5


@pytest.mark.parametrize("place", ["zarr.json", "test/zarr.json", "test/environment_lpr/c.0"])
def test_a_damaged_result_is_found_where_nothing_has_changed(pristine: Path, place: str) -> None:
    output = pristine / f"rotten-{place.replace('/', '-')}"
    shutil.copytree(pristine / "out", output, symlinks=True)
    job = job_in(pristine, output.name)
    run(job)
    path = output / "rigidity.zarr" / place
    content = bytearray(path.read_bytes())
    whole = bytes(content)
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    steps = Pipeline(job, Workspace(output, WorkExecutor(0)))
    steps.mended(steps.result)
    assert (output / "rigidity.zarr" / place).read_bytes() == whole


def test_without_some_receipts_those_tasks_alone_are_done(pristine: Path) -> None:
    before = run(job_in(pristine, "out"))
    chosen = {
        ("index of train", 0),
        ("structures of test", 0),
        ("features of train", 1),
        ("features of test", 0),
        ("rows", 2),
        ("hessian", 0),
        ("factor of the hessian", 0),
        ("rigidity of test", 1),
        ("rigidity of train", 0),
        ("result", 1),
    }
    output = pristine / "less"
    shutil.copytree(pristine / "out", output, symlinks=True)
    for role, task in chosen:
        (output / "work" / before.used[role].name / f"receipts/{task:06d}.json").unlink()
    found = run(job_in(pristine, output="less"))
    assert set(done_in(found)) == {(before.used[role].name, task) for role, task in chosen}
    assert len(done_in(found)) == len(chosen)
    assert reason(found, "rows") == "continued"
    assert_same_bits(pristine / "out", output)


def test_a_task_with_a_receipt_is_not_done_again(pristine: Path) -> None:
    for folder in run(job_in(pristine, "out")).used.values():
        parts = {path: path.stat().st_mtime_ns for path in folder.path.rglob("*") if path.is_file()}
        assert run_task(str(folder.path), 0) == folder.receipt(0)
        assert {path: path.stat().st_mtime_ns for path in parts} == parts


def test_a_part_that_vanished_is_done_again(pristine: Path) -> None:
    before = run(job_in(pristine, "out"))
    output = pristine / "vanished"
    shutil.copytree(pristine / "out", output, symlinks=True)
    gone = ("rows", "rigidity of test")
    for role in gone:
        (output / "work" / before.used[role].name / "parts/000001.npz").unlink()
    feature = output / "work" / before.used["features of train"].name
    (feature / "parts/000001.zarr/environment_feature/c.1.0").unlink()
    found = run(job_in(pristine, output="vanished"))
    assert found.tasks == {"features of train": 1, "rows": 1, "rigidity of test": 1}
    assert_same_bits(pristine / "out", output)


@pytest.mark.parametrize("deaths", [(1,), (6, 1, 7), (2, 3, 5, 4)])
def test_kills_in_the_middle_cost_no_finished_task(pristine: Path, deaths: tuple[int, ...]) -> None:
    name = "killed" + "".join(map(str, deaths))
    job, output = job_in(pristine, output=name), pristine / name
    done: list[tuple[str, int]] = []
    for death in deaths:
        left = [death]

        def die(event: Event, left: list[int] = left) -> None:
            left[0] -= event.kind == "task"
            if not left[0]:
                raise Killed

        before = receipts_of(output)
        with pytest.raises(Killed):
            run(job, die)
        new = receipts_of(output) - before
        assert len(new) == death
        done += new
    before = receipts_of(output)
    found = run(job)
    assert not before & set(done_in(found))
    done += done_in(found)
    assert len(done) == len(set(done))
    assert set(done) == receipts_of(output)
    assert_same_bits(pristine / "out", output)


def test_another_regularizer_starts_from_the_hessian(bench: Path) -> None:
    linear = {"regularizer": 1e-3}
    found = run(job_in(bench, linear=linear))
    assert set(found.tasks) == FACTOR_ON
    assert "regularizer: 0.0001 -> 0.001" in reason(found, "factor of the hessian")
    run(job_in(bench, linear=linear, output="fresh"))
    assert_same_bits(bench / "fresh", bench / "bench")


@pytest.mark.parametrize("regularizer", [1e-3, 0.0])
def test_where_rows_are_few_no_hessian_is_made(bench: Path, regularizer: float) -> None:
    """The rows are what a factor is made of; another regularizer starts from them."""
    linear = {"regularizer": regularizer}
    (factor,) = FACTOR_ON - {"factor of the hessian"} ^ FACTOR_ON
    on = FACTOR_ON - {factor} | {"factor of the rows"}
    assert set(run(job_in(bench, solver="auto")).tasks) == on
    assert set(run(job_in(bench, solver="auto", linear=linear)).tasks) == on
    run(job_in(bench, solver="auto", linear=linear, output="fresh"))
    assert_same_bits(bench / "fresh", bench / "bench")


def test_back_to_former_settings_is_free(pristine: Path, bench: Path) -> None:
    run(job_in(bench, linear={"regularizer": 1e-3}))
    found = run(job_in(bench))
    assert found.tasks == {}
    assert_same_bits(pristine / "out", bench / "bench")


@pytest.mark.parametrize(
    ("linear", "more"),
    [
        ({"rows": "sum"}, {"hessian"}),
        ({"centre_species": "shared"}, {"hessian"}),
        ({"scale": "none"}, set()),
    ],
)
def test_another_convention_reuses_features_and_rows(
    bench: Path, linear: dict[str, str], more: set[str]
) -> None:
    found = run(job_in(bench, linear=linear))
    assert set(found.tasks) == FACTOR_ON | more
    run(job_in(bench, linear=linear, output="fresh"))
    assert_same_bits(bench / "fresh", bench / "bench")


def test_another_solver_starts_from_the_rows(bench: Path) -> None:
    found = run(job_in(bench, solver="qr"))
    assert set(found.tasks) == {"triangle", "factor of the triangle"} | FACTOR_ON - {
        "factor of the hessian"
    }


def test_a_touched_file_is_read_again_and_nothing_else_happens(pristine: Path, bench: Path) -> None:
    renew(bench / "train.xyz")
    found = run(job_in(bench))
    assert found.tasks == {"index of train": 1, "structures of train": 1}
    assert re.match(r"changed: \w", reason(found, "structures of train"))
    assert_same_bits(pristine / "out", bench / "bench")


def test_a_full_fingerprint_sees_that_a_touched_file_is_the_same(bench: Path) -> None:
    train = {"files": "train.xyz", "fingerprint": "full"}
    renew(bench / "train.xyz")
    run(make_job(bench, train, SETS, output="fresh"))
    renew(bench / "train.xyz")
    assert run(make_job(bench, train, SETS, output="fresh")).tasks == {}


def test_a_moved_atom_of_a_test_set_concerns_that_set_alone(bench: Path) -> None:
    frames = load(bench / "test.xyz")
    frames[0].positions[0, 0] += 0.001
    store(bench / "test.xyz", frames)
    found = run(job_in(bench))
    assert set(found.tasks) == {
        f"{step} of test" for step in ("index", "structures", "features", "rigidity")
    } | {"result"}
    run(job_in(bench, output="fresh"))
    assert_same_bits(bench / "fresh", bench / "bench")


def test_a_moved_atom_of_the_training_set_concerns_all(pristine: Path, bench: Path) -> None:
    frames = load(bench / "train.xyz")
    frames[-1].positions[0, 0] += 0.001
    store(bench / "train.xyz", frames)
    found = run(job_in(bench))
    steps = ("index", "structures", "features", "rigidity")
    assert set(found.tasks) == {
        *(f"{step} of train" for step in steps),
        *("rows", "hessian", "factor of the hessian", "rigidity of test", "result"),
    }
    run(job_in(bench, output="fresh"))
    assert_same_bits(bench / "fresh", bench / "bench")
    with pytest.raises(AssertionError):
        assert_same_bits(pristine / "out", bench / "bench")


def test_frames_in_another_order_are_another_input(bench: Path) -> None:
    frames = load(bench / "train.xyz")
    store(bench / "train.xyz", frames[::-1])
    found = run(job_in(bench))
    assert {"rows", "hessian", "rigidity of test"} <= set(found.tasks)
    run(job_in(bench, output="fresh"))
    assert_same_bits(bench / "fresh", bench / "bench")


def test_the_job_that_a_folder_keeps_is_the_same_job(bench: Path) -> None:
    """`dlpr work` finds everything done, whatever order the job has its sets and keys in."""
    output = bench / "bench"
    write_job(output, job_in(bench, "bench"))
    tasks: list[Event] = []
    worker(output, listeners=(tasks.append,)).result()
    assert [event.stage for event in tasks if event.kind == "task"] == []
    assert list(read_job(output).test) == list(SETS)
