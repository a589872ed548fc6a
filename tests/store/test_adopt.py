"""What one plan's tasks have put out is adopted by those of another, and withdrawn with them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from dlpr.errors import CorruptPartError, StoreError
from dlpr.store import folder as module
from dlpr.store.arrays import checksums, create_array, create_group, store_files
from dlpr.store.files import atomic_folder
from dlpr.store.folder import FORMAT_VERSION, KEYS, StageFolder


def make(work: Path, tasks: Sequence[Any], stage: str = "fake", finish: bool = True) -> StageFolder:
    """A stage whose tasks are told by their keys."""
    folder = StageFolder.create(work, stage, {}, {}, tasks)
    if finish:
        for number in range(len(tasks)):
            do(folder, number, tasks[number])
    return folder


def do(folder: StageFolder, number: int, task: Any, seconds: float = 1.0) -> None:
    """Write what follows from a key alone: an array, and a store of two arrays."""
    value = sum(map(ord, str(task)))
    files = folder.write_part(number, {"x": np.full(5, value)})
    target = folder.path / "parts" / f"{number:06d}.zarr"
    with atomic_folder(target) as partial:
        group = create_group(partial, {"value": value})
        for name in ("a", "b"):
            create_array(group, name, (4,), "int64", ("row",), 2)[:] = np.full(4, value)
    files |= checksums(store_files(target), folder.path)
    folder.write_receipt(number, files, {"value": value}, {"seconds": seconds})


def values(folder: StageFolder) -> list[int]:
    """What the parts of a finished stage say."""
    found = []
    for number in range(folder.n_tasks):
        part = int(folder.read_part(number)["x"][0])
        group = zarr.open_group(str(folder.path / f"parts/{number:06d}.zarr"), mode="r")
        assert {part} == {*np.asarray(group["a"][:]), *np.asarray(group["b"][:])}  # type: ignore[index]
        found.append(part)
    return found


def inodes(folder: StageFolder, number: int) -> set[int]:
    receipt = folder.receipt(number)
    assert receipt is not None
    return {(folder.path / name).stat().st_ino for name in receipt.files}


def flip(folder: StageFolder, number: int) -> None:
    """One bit, in the file itself: everybody who has a link to it sees it."""
    path = folder.path / "parts" / f"{number:06d}.npz"
    at = path.read_bytes().index(folder.read_part(number)["x"].tobytes())
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))


@settings(deadline=None, max_examples=10)
@given(
    plans=st.lists(st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=5), max_size=4),
    seed=st.integers(0, 99),
)
def test_whatever_was_planned_before_the_output_is_that_of_a_folder_alone(
    tmp_path_factory: pytest.TempPathFactory, plans: list[list[str]], seed: int
) -> None:
    """Tasks of other plans are adopted where the keys are equal, and nothing else is."""
    folder = tmp_path_factory.mktemp("adopt")
    rng = np.random.default_rng(seed)
    known: set[str] = set()
    for tasks in plans:
        stage = StageFolder.create(folder / "work", "fake", {}, {}, tasks)
        missing = stage.missing()
        count = stage.adopt(missing)
        assert len(stage.missing()) == len(missing) - count
        assert {tasks[number] for number in stage.missing()}.isdisjoint(
            known - {key for key in tasks if tasks.count(key) > 1}
        )
        assert {tasks[number] for number in set(missing) - set(stage.missing())} <= known
        for number in stage.missing():
            if rng.integers(2):  # a run that ended early
                do(stage, number, tasks[number])
                known.add(tasks[number])
        if not stage.missing():
            alone = make(folder / "alone", tasks)
            assert (stage.name, values(stage)) == (alone.name, values(alone))
            assert stage.output_digest() == alone.output_digest()
            shutil.rmtree(folder / "alone")


def test_files_are_linked_under_the_number_of_the_task(tmp_path: Path) -> None:
    old = make(tmp_path, "abc")
    new = make(tmp_path, "xcab", finish=False)
    assert new.adopt(new.missing()) == 3
    assert new.missing() == [0]
    assert new.adopt(new.missing()) == 0
    assert [inodes(new, k + 1) for k in range(3)] == [inodes(old, k) for k in (2, 0, 1)]
    assert new.receipt(1).nbytes == old.receipt(2).nbytes  # type: ignore[union-attr]
    assert new.receipt(1).content == old.receipt(2).content  # type: ignore[union-attr]
    assert new.receipt(1).cost == old.receipt(2).cost  # type: ignore[union-attr]
    do(new, 0, "x")
    expected = values(make(tmp_path / "alone", "xcab"))
    assert values(StageFolder(new.path)) == expected
    shutil.rmtree(old.path)
    assert StageFolder(new.path).missing() == []
    assert values(StageFolder(new.path)) == expected


def test_tasks_that_only_count_are_never_adopted(tmp_path: Path) -> None:
    old = StageFolder.create(tmp_path, "fake", {}, {}, 2)
    for number in range(2):
        do(old, number, "a")
    new = StageFolder.create(tmp_path, "fake", {"other": 1}, {}, 2)
    assert new.adopt(new.missing()) == 0
    assert new.missing() == [0, 1]
    new.withdraw(0)
    assert old.missing() == []


def test_other_stages_formats_and_longer_names_are_not_adopted_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "a")
    other = make(tmp_path, "ab", stage="fak", finish=False)
    assert other.adopt(other.missing()) == 0
    monkeypatch.setattr(module, "FORMAT_VERSION", FORMAT_VERSION + 1)
    newer = make(tmp_path, "ab", finish=False)
    assert newer.adopt(newer.missing()) == 0


def test_tasks_of_one_plan_may_have_equal_keys(tmp_path: Path) -> None:
    old = make(tmp_path, "ab")
    new = make(tmp_path, "aba", finish=False)
    assert new.adopt(new.missing()) == 2
    (left,) = new.missing()
    do(new, left, "a")
    assert values(new) == values(make(tmp_path / "alone", "aba"))
    assert old.missing() == []


def test_what_is_not_whole_is_not_adopted(tmp_path: Path) -> None:
    old = make(tmp_path, "abc")
    old.withdraw(0)
    (old.path / "parts" / "000001.npz").unlink()
    new = make(tmp_path, "abcd", finish=False)
    assert new.adopt(new.missing()) == 1
    assert new.missing() == [0, 1, 3]


def test_a_folder_that_vanishes_while_it_is_adopted_from_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`dlpr clean` of the other folder, before any one of the links."""
    for before in range(17):
        work = tmp_path / str(before)
        old, new = make(work, "ab"), make(work, "abc", finish=False)
        n_files = len(inodes(old, 0))
        link, left = os.link, [before]

        def vanish(
            *args: Any, old: StageFolder = old, left: list[int] = left, link: Any = link
        ) -> None:
            if not left[0]:
                shutil.rmtree(old.path)
            left[0] -= 1
            link(*args)

        with monkeypatch.context() as patch:
            patch.setattr(os, "link", vanish)
            count = new.adopt(new.missing())
        assert (before < 2 * n_files) == (not old.path.exists())
        assert count == before // n_files
        assert len(new.missing()) == 3 - count
        for number in new.missing():
            do(new, number, "abc"[number])
        assert values(new) == values(make(work / "alone", "abc"))
        assert list(work.rglob("*.partial")) == []


def test_damage_withdraws_every_plan_that_shares_the_file(tmp_path: Path) -> None:
    first = make(tmp_path, "abc")
    second, third = (make(tmp_path, tasks, finish=False) for tasks in ("xab", "ca"))
    for folder in (second, third):
        folder.adopt(folder.missing())
    do(second, 0, "x")
    whole = [values(folder) for folder in (first, second, third)]
    flip(third, 1)
    for folder, number in ((first, 0), (second, 1), (third, 1)):
        with pytest.raises(CorruptPartError, match="damaged"):
            folder.read_part(number)
    second.withdraw(1)
    assert [folder.missing() for folder in (first, second, third)] == [[0], [1], [1]]
    assert second.adopt(second.missing()) == 0, "damage is not adopted back"
    do(second, 1, "a")
    for folder in (first, third):
        assert folder.adopt(folder.missing()) == 1
    assert [values(StageFolder(folder.path)) for folder in (first, second, third)] == whole


@pytest.mark.parametrize("harm", [b"", b'{"keys": ["', b"{}", b"[]"])
def test_without_readable_keys_tasks_are_done_and_not_adopted(tmp_path: Path, harm: bytes) -> None:
    old = make(tmp_path, "ab")
    (old.path / KEYS).write_bytes(harm)
    new = make(tmp_path, "abc", finish=False)
    assert new.adopt(new.missing()) == 0
    old.withdraw(0)
    assert old.missing() == [0]
    assert new.missing() == [0, 1, 2]


def test_keys_that_were_damaged_are_written_anew_with_the_plan(tmp_path: Path) -> None:
    old = make(tmp_path, "ab")
    good = (old.path / KEYS).read_bytes()
    (old.path / KEYS).write_bytes(good[:-9])
    make(tmp_path, "ab", finish=False)
    assert (old.path / KEYS).read_bytes() == good


def test_keys_belong_to_the_plan(tmp_path: Path) -> None:
    """Other keys, another folder: what a task puts out is what its own folder's keys say."""
    names = {make(tmp_path, tasks, finish=False).name for tasks in ("ab", "ba", "aa", [["a"], "b"])}
    assert len(names) == 4
    with pytest.raises(StoreError, match="2 of 2 tasks"):
        make(tmp_path, "ab", finish=False).output_digest()
