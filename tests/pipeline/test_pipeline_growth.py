"""Data that grow: the result of a run from nothing, at the cost of what is new."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from growth_cases import (
    FOLD,
    N_FRAMES,
    N_GROUPS,
    NAMES,
    SYMBOLS,
    bench,
    computed,
    contents,
    finished,
    job_in,
    new_file,
    pristine,
    reason,
    small_tasks,
)
from pipeline_cases import (
    assert_same_bits,
    crystals,
    load,
    run,
    store,
)

from dlpr.engine.events import Event
from dlpr.engine.verify import damaged_tasks

__all__ = ["bench", "pristine", "small_tasks"]

# changes of the training set: each says how many files are to be looked at


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
    assert 0 < found.tasks["result"] < found.used["result"].n_tasks / 2
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
