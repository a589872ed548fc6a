"""Damage in what plans share, and folders that are removed while others adopt from them."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from growth_cases import (
    N_FRAMES,
    SYMBOLS,
    bench,
    finished,
    job_in,
    new_file,
    pristine,
    small_tasks,
)
from pipeline_cases import (
    Outcome,
    arrays_of,
    assert_same_bits,
    chunks_of,
    crystals,
    run,
    store,
)

from dlpr.engine.events import Event
from dlpr.engine.executors import WorkExecutor
from dlpr.engine.output import clean
from dlpr.engine.pipeline import Pipeline
from dlpr.engine.verify import damaged_tasks
from dlpr.engine.workspace import Workspace
from dlpr.errors import CorruptPartError
from dlpr.job import Job
from dlpr.store.files import members
from dlpr.store.folder import StageFolder, folders

__all__ = ["bench", "pristine", "small_tasks"]


def mended(job: Job) -> tuple[Outcome, list[str]]:
    """A run that has damaged parts done again, and what it said of them."""
    events: list[Event] = []
    workspace = Workspace(job.path(job.output), WorkExecutor(0), events.append)
    steps = Pipeline(job, workspace)
    steps.mended(steps.result)
    found = Outcome(workspace.output, arrays_of(workspace.output), events, workspace.used)
    return found, [event.text for event in events if event.kind == "note"]


def flip(path: Path) -> None:
    """One bit in the file itself, whatever its names: in the middle of the largest array that a run
    reads again (projections are for audits)."""
    start, size = 0, path.stat().st_size
    if path.suffix == ".npz":
        inside = [place for name, place in members(path).items() if "projection" not in name]
        start, size = max(inside, key=lambda place: place[1])
    with path.open("r+b") as file:
        file.seek(start + size // 2)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))


def test_many_rotten_parts_are_mended_and_one_that_rots_again_ends_the_run(tmp_path: Path) -> None:
    steps = Pipeline(job_in(tmp_path, "out"), Workspace(tmp_path / "out", WorkExecutor(0)))
    rotten = [CorruptPartError(f"part {task}", str(tmp_path / "stage"), task) for task in range(20)]

    def each_once() -> str:
        if rotten:
            raise rotten.pop()
        return "done"

    def always() -> str:
        raise CorruptPartError("part 3", str(tmp_path / "stage"), 3)

    assert steps.mended(each_once) == "done"
    with pytest.raises(CorruptPartError, match="part 3"):
        steps.mended(always)


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
