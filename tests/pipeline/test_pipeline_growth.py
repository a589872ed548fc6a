"""Data that grow: the result of a run from nothing, at the cost of what is new."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipeline_cases import (
    HYPERS,
    SPECIES,
    Outcome,
    arrays_of,
    assert_same_bits,
    chunks_of,
    crystals,
    load,
    make_job,
    run,
    store,
)

from dlpr.engine.events import Event
from dlpr.engine.executors import WorkExecutor
from dlpr.engine.output import clean
from dlpr.engine.pipeline import Pipeline
from dlpr.engine.verify import damaged_tasks
from dlpr.engine.workspace import Workspace
from dlpr.job import Job
from dlpr.stages import fold as fold_stage
from dlpr.stages import ingest as ingest_stage
from dlpr.store.files import members
from dlpr.store.folder import StageFolder, folders

SYMBOLS = SPECIES[2]
NAMES = [f"train_{k:02d}.xyz" for k in range(0, 60, 10)]
FEWEST = {
    **HYPERS,
    "basis": {
        "type": "TensorProduct",
        "max_angular": 1,
        "radial": {"type": "Gto", "max_radial": 0},
    },
}
"""12 columns, so that some sixty structures make several partials."""
N_FRAMES, N_GROUPS = 6, 2
NUMERICS = {"block_environments": 5, "task_environments": 15, "fold_block_rows": 3}
"""Structures are cut by tasks and blocks."""


@pytest.fixture(scope="module", autouse=True)
def small_tasks() -> Iterator[None]:
    """A file makes a part or two, and six rows a partial."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest_stage, "TASK_ATOMS", 60)
        patch.setattr(ingest_stage, "FEWEST_ATOMS", 20)
        patch.setattr(fold_stage, "FEWEST_ROWS", 0)
        patch.setattr(fold_stage, "TASK_FLOPS", 6.0 * 12**2)
        yield


FORMS: dict[str, dict[str, Any]] = {
    "cholesky": {"solver": "cholesky"},
    "qr": {"solver": "qr"},
    "tiles": {"solver": "cholesky", "numerics": {**NUMERICS, "tile_columns": 6}},
    "dual": {"solver": "dual", "hypers": HYPERS},
}
FOLD = {"cholesky": "hessian", "qr": "triangle", "tiles": "hessian", "dual": "rows"}


def job_in(folder: Path, output: str, form: str = "cholesky") -> Job:
    return make_job(
        folder,
        {"files": "train_*.xyz", "group_by": "config_type"},
        {"train": "train", "test": {"files": "test_*.xyz"}},
        {"regularizer": 1e-3},
        output=output,
        **{"hypers": FEWEST, "numerics": NUMERICS, "store_test_features": True, **FORMS[form]},
    )


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with input files, and finished runs by the solvers that were asked for."""
    folder = tmp_path_factory.mktemp("growth")
    for number, name in enumerate(NAMES):
        store(folder / name, crystals(SYMBOLS, N_FRAMES, seed=number))
    for number in (0, 2):
        store(folder / f"test_{number}.xyz", crystals(SYMBOLS, N_FRAMES, seed=50 + number))
    return folder


@pytest.fixture
def bench(pristine: Path, tmp_path: Path) -> Iterator[Path]:
    """The same folder, to be disturbed: jobs write to a copy of a finished run."""
    for path in pristine.glob("*.xyz"):
        shutil.copy2(path, tmp_path)
    yield pristine
    for path in [*pristine.glob("bench-*"), *pristine.glob("fresh*")]:
        shutil.rmtree(path)
    for path in pristine.glob("*.xyz"):
        path.unlink()
    for path in tmp_path.glob("*.xyz"):
        shutil.copy2(path, pristine)


def finished(bench: Path, form: str = "cholesky") -> Path:
    """A copy of a finished run, to be continued."""
    if not (bench / f"out-{form}").exists():
        run(job_in(bench, f"out-{form}", form))
    output = bench / f"bench-{form}"
    shutil.copytree(bench / f"out-{form}", output, symlinks=True)
    return output


def contents(output: Path) -> dict[str, set[str]]:
    """What all finished tasks of an output folder have put out, by stage."""
    found: dict[str, set[str]] = {}
    for folder in folders(output / "work"):
        receipts = [folder.receipt(task) for task in range(folder.n_tasks)]
        here = {receipt.content for receipt in receipts if receipt is not None}
        found.setdefault(folder.stage, set()).update(here)
    return found


def computed(found: Outcome, role: str) -> set[str]:
    """What the tasks have put out that were done in this run."""
    return {
        event.receipt.content
        for event in found.events
        if event.kind == "task" and event.stage == role and event.receipt is not None
    }


def reason(found: Outcome, role: str) -> str:
    return next(e.text for e in found.events if e.kind == "stage" and e.stage == role)


# changes of the training set: each says how many files are to be looked at


def new_file(name: str) -> Callable[[Path], int]:
    def change(folder: Path) -> int:
        store(folder / name, crystals(SYMBOLS, N_FRAMES, seed=99))
        return 1

    return change


def grown(name: str, n_frames: int) -> Callable[[Path], int]:
    def change(folder: Path) -> int:
        store(folder / name, load(folder / name) + crystals(SYMBOLS, n_frames, seed=98))
        return 1

    return change


def moved_atom(folder: Path) -> int:
    frames = load(folder / NAMES[2])
    frames[3].positions[1, 1] += 0.01
    store(folder / NAMES[2], frames)
    return 1


def removed(folder: Path) -> int:
    (folder / NAMES[3]).unlink()
    return 0


def renamed(folder: Path) -> int:
    (folder / NAMES[1]).rename(folder / "train_15.xyz")
    return 1


CHANGES: dict[str, Callable[[Path], int]] = {
    "a file between": new_file("train_35.xyz"),
    "the last file grows": grown(NAMES[-1], 20),
    "a file less": removed,
    "an atom moved": moved_atom,
    "another name": renamed,
}


@pytest.mark.parametrize(
    ("change", "form"),
    [
        ("a file between", "cholesky"),
        ("the last file grows", "cholesky"),
        ("a file between", "tiles"),
        ("a file between", "dual"),
    ],
)
def test_a_changed_set_costs_what_is_new_and_gives_what_a_run_from_nothing_gives(
    bench: Path, change: str, form: str
) -> None:
    output = finished(bench, form)
    before = contents(output)
    n_files = CHANGES[change](bench)
    found = run(job_in(bench, output.name, form))
    assert found.tasks.get("index of train", 0) == n_files
    for role in dict.fromkeys(("features of train", "rows", FOLD[form])):
        stage = found.used[role]
        new, known = computed(found, role), before[stage.stage]
        # the last run of a group's rows may go on through parts that have none of them
        again = N_GROUPS if role == FOLD[form] != "rows" else 0
        assert len(new & known) <= again, f"{role}: what was there was computed again"
        adopted = {receipt.content for receipt in stage.receipts()} - new
        assert adopted <= known
        assert len(adopted) >= 2
        assert found.tasks.get(role, 0) == len(new)
        said = f"; {len(new)} of {stage.n_tasks} tasks are new"
        assert reason(found, role).endswith(said if new else (said, "reused"))
    assert found.tasks.get("features of train", 0) <= (0 if n_files == 0 else 12)
    assert {"index of test", "structures of test", "features of test"}.isdisjoint(found.tasks)
    fresh = run(job_in(bench, "fresh", form))
    assert all("tasks are new" not in event.text for event in fresh.events)
    assert_same_bits(fresh.output, output)
    for role, stage in found.used.items():
        assert stage.name == fresh.used[role].name
        assert stage.output_digest() == fresh.used[role].output_digest()
        assert damaged_tasks(stage) == []


def test_a_test_set_that_grows_costs_what_is_new(bench: Path) -> None:
    """The factor stays: rigidities are adopted as well."""
    output = finished(bench)
    before = contents(output)
    store(bench / "test_5.xyz", crystals(SYMBOLS, N_FRAMES, seed=97))
    found = run(job_in(bench, output.name))
    roles = {f"{step} of test" for step in ("index", "structures", "features", "rigidity")}
    assert set(found.tasks) == roles | {"result"}
    for role in ("features of test", "rigidity of test"):
        new = computed(found, role)
        assert not new & before[found.used[role].stage]
        assert 0 < found.tasks[role] < found.used[role].n_tasks / 2
    fresh = run(job_in(bench, "fresh"))
    assert_same_bits(fresh.output, output)


def test_sets_that_share_frames_share_features(bench: Path) -> None:
    """What is known of the training set is known where a test set has the same frames."""
    output = finished(bench)
    shutil.copy2(bench / NAMES[-1], bench / "test_9.xyz")
    found = run(job_in(bench, output.name))
    new = computed(found, "features of test")
    known = {r.content for r in found.used["features of train"].receipts()}
    assert not new & known
    run(job_in(bench, "fresh"))
    assert_same_bits(bench / "fresh", output)


class Killed(Exception):
    """Raised in the middle of a run."""


def test_a_set_that_grows_again_and_again(bench: Path) -> None:
    """Folders of many plans side by side, some of them unfinished: the bits are those of one."""
    output = finished(bench)
    for number, change in enumerate(CHANGES.values()):
        change(bench)
        left = [4 * number + 2]

        def die(event: Event, left: list[int] = left) -> None:
            left[0] -= event.kind == "task"
            if not left[0]:
                raise Killed

        with suppress(Killed):
            run(job_in(bench, output.name), die)
    found = run(job_in(bench, output.name))
    run(job_in(bench, "fresh"))
    assert_same_bits(bench / "fresh", output)
    assert found.tasks.get("features of train", 0) < found.used["features of train"].n_tasks / 2


def test_data_that_shrink_back_cost_nothing_but_the_reading(bench: Path, pristine: Path) -> None:
    output = finished(bench)
    new_file("train_35.xyz")(bench)
    run(job_in(bench, output.name))
    (bench / "train_35.xyz").unlink()
    assert run(job_in(bench, output.name)).tasks == {}
    assert_same_bits(pristine / "out-cholesky", output)


# damage, and folders that are removed -------------------------------------------------------------


def mended(job: Job) -> tuple[Outcome, list[str]]:
    """A run that has damaged parts done again, and what it said of them."""
    events: list[Event] = []
    workspace = Workspace(job.path(job.output), WorkExecutor(0), events.append)
    steps = Pipeline(job, workspace)
    steps.mended(steps.result)
    found = Outcome(workspace.output, arrays_of(workspace.output), events, workspace.used)
    return found, [event.text for event in events if event.kind == "note"]


def flip(path: Path) -> None:
    """One bit in the file itself, whatever its names: in the middle of its largest array."""
    start, size = 0, path.stat().st_size
    if path.suffix == ".npz":
        start, size = max(members(path).values(), key=lambda place: place[1])
    with path.open("r+b") as file:
        file.seek(start + size // 2)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))


READERS = {
    "structures of train": ["features", "rows", "rigidity", "result"],
    "rows": ["hessian"],
    "rigidity of test": ["result"],
}
"""A stage, and those that have to be computed anew so that it is read."""


def shared_file(old: Outcome, new: Outcome, role: str) -> tuple[int, int, Path]:
    """A task of both plans, its number in each, and the largest of its files."""
    of = {receipt.content: receipt.task for receipt in old.used[role].receipts()}
    for receipt in new.used[role].receipts():
        if receipt.content in of:
            name = max(receipt.files, key=lambda name: int(receipt.files[name][0]))
            path = new.used[role].path / name
            if path.stat().st_nlink > 1:
                return of[receipt.content], receipt.task, path
    raise AssertionError(f"{role}: the plans share no file")


@pytest.mark.parametrize("role", READERS)
def test_damage_in_what_plans_share_is_repaired_for_both(bench: Path, role: str) -> None:
    job = job_in(bench, finished(bench).name)
    old = run(job)
    expected = old.sets["test"]
    if role == "rigidity of test":
        store(bench / "test_9.xyz", crystals(SYMBOLS, N_FRAMES, seed=97))
    else:
        new_file("train_35.xyz")(bench)
    new = run(job)
    bits = chunks_of(new.output)
    old_task, new_task, path = shared_file(old, new, role)
    for stage in READERS[role]:
        for folder in new.output.glob(f"work/{stage}-*"):
            shutil.rmtree(folder)
    flip(path)
    assert damaged_tasks(new.used[role]) == [new_task]
    assert damaged_tasks(old.used[role]) == [old_task]
    _, notes = mended(job)
    assert len(notes) == 1
    assert re.search(rf"task {new_task} of {new.used[role].stage}\) is damaged", notes[0])
    assert chunks_of(new.output) == bits
    assert damaged_tasks(new.used[role]) == []
    assert StageFolder(new.used[role].path).missing() == []
    assert StageFolder(old.used[role].path).missing() == [old_task]
    assert damaged_tasks(old.used[role]) == []
    # the former data: nothing is left of the damage
    for extra in ("train_35.xyz", "test_9.xyz"):
        (bench / extra).unlink(missing_ok=True)
    again, notes = mended(job)
    assert notes == []
    assert role not in again.tasks, "the repaired task was adopted back"
    for name, values in expected.items():
        np.testing.assert_array_equal(again.sets["test"][name], values)


def test_cleaning_leaves_what_was_adopted_whole(bench: Path) -> None:
    output = finished(bench)
    new_file("train_35.xyz")(bench)
    found = run(job_in(bench, output.name))
    removed, _ = clean(found.output)
    assert {name.partition("-")[0] for name in removed} >= {"features", "rows", "hessian"}
    assert {folder.name for folder in folders(found.output / "work")} == {
        stage.name for stage in found.used.values()
    }
    for stage in found.used.values():
        assert StageFolder(stage.path).missing() == []
        assert damaged_tasks(stage) == []
    assert run(job_in(bench, output.name)).tasks == {}
    run(job_in(bench, "fresh"))
    assert_same_bits(bench / "fresh", found.output)


@pytest.mark.parametrize("before", [1, 7])
def test_a_folder_that_is_removed_while_it_is_adopted_from_is_no_error(
    bench: Path, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    output = finished(bench)
    new_file("train_35.xyz")(bench)
    link, left = os.link, {"features": before, "rows": before, "hessian": before}

    def vanish(source: Path, target: Path) -> None:
        folder = next(path for path in Path(source).parents if path.parent.name == "work")
        stage = folder.name.partition("-")[0]
        if stage in left and "parts" in Path(source).parts:  # a claim is a link as well
            if not left[stage]:
                shutil.rmtree(folder)
            left[stage] -= 1
        link(source, target)

    monkeypatch.setattr(os, "link", vanish)
    found = run(job_in(bench, output.name))
    assert min(left.values()) < 0
    run(job_in(bench, "fresh"))
    assert_same_bits(bench / "fresh", found.output)
