"""Plans, receipts and what makes them invalid."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlpr.errors import CorruptPartError, ResourceError, StoreError
from dlpr.store import folder as module
from dlpr.store.folder import FORMAT_VERSION, StageFolder, check_format, folders

SETTINGS: dict[str, Any] = {"a": 1, "b": {"c": [1.5, None]}}


def make(work: Path, n_tasks: int = 2, finish: bool = True, **changes: Any) -> StageFolder:
    folder = StageFolder.create(work, "fake", SETTINGS | changes, {}, n_tasks)
    if finish:
        for task in range(n_tasks):
            do(folder, task)
    return folder


def do(folder: StageFolder, task: int, value: float = 1.0, seconds: float = 0.1) -> None:
    files = folder.write_part(task, {"x": np.full(5, value + task)})
    folder.write_receipt(task, files, {"n": 5, "by": {2: 0.1, 10: 0.2}}, {"seconds": seconds})


def receipt_path(folder: StageFolder, task: int) -> Path:
    return folder.path / "receipts" / f"{task:06d}.json"


def test_receipts_are_read_back(tmp_path: Path) -> None:
    folder = make(tmp_path, finish=False)
    assert folder.missing() == [0, 1]
    with pytest.raises(StoreError, match=r"2 of 2 tasks .*first is 0.*dlpr run"):
        folder.receipts()
    do(folder, 1)
    assert folder.missing() == [0]
    do(folder, 0)
    again = StageFolder(folder.path)
    assert again.receipts() == folder.receipts()
    receipt = again.receipts()[1]
    assert (receipt.task, receipt.facts) == (1, {"n": 5, "by": {"2": 0.1, "10": 0.2}})
    assert receipt.nbytes == (folder.path / "parts" / "000001.npz").stat().st_size
    assert again.read_part(1, ["x"])["x"].tolist() == [2.0] * 5
    assert (again.stage, again.n_tasks, again.settings) == ("fake", 2, SETTINGS)


@pytest.mark.parametrize("harm", ["vanished", "grown", "shrunk", "folder vanished"])
def test_a_receipt_counts_only_while_sizes_match(tmp_path: Path, harm: str) -> None:
    folder = make(tmp_path)
    assert folder.missing() == []
    part = folder.path / "parts" / "000001.npz"
    if harm == "vanished":
        part.unlink()
    elif harm == "folder vanished":
        part.parent.rename(folder.path / "elsewhere")
    else:
        os.truncate(part, part.stat().st_size + (1 if harm == "grown" else -1))
    for view in (folder, StageFolder(folder.path)):
        assert view.missing() == ([0, 1] if harm == "folder vanished" else [1])
        with pytest.raises(CorruptPartError) as caught:
            view.read_part(1)
        assert (caught.value.folder, caught.value.task) == (str(folder.path), 1)


def test_flipped_data_are_noticed_by_reading(tmp_path: Path) -> None:
    folder = make(tmp_path)
    part = folder.path / "parts" / "000000.npz"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    with pytest.raises(CorruptPartError, match=r"000000\.npz \(task 0 of fake\).*only this task"):
        folder.read_part(0)
    folder.withdraw(0)
    folder.withdraw(0)
    assert folder.missing() == [0]
    do(folder, 0)
    assert folder.read_part(0)["x"].tolist() == [1.0] * 5


def test_another_file_of_the_same_size_is_noticed_by_reading(tmp_path: Path) -> None:
    folder = make(tmp_path)
    folder.write_part(0, {"x": np.full(5, 7.0)})
    assert folder.missing() == []
    with pytest.raises(CorruptPartError, match="content of x does not match"):
        folder.read_part(0)


def test_every_torn_or_flipped_receipt_is_none(tmp_path: Path) -> None:
    folder = make(tmp_path, n_tasks=1)
    path = receipt_path(folder, 0)
    good = path.read_bytes()
    whole = folder.receipts()
    for length in range(len(good) - 1):
        path.write_bytes(good[:length])
        found = StageFolder(folder.path).receipt(0)
        assert found is None or [found] == whole
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1
        path.write_bytes(bad)
        found = StageFolder(folder.path).receipt(0)
        assert found is None or [found] == whole, bad


def test_a_receipt_withdrawn_elsewhere_is_withdrawn_here(tmp_path: Path) -> None:
    folder = make(tmp_path)
    assert folder.missing() == []
    StageFolder(folder.path).withdraw(1)
    assert folder.missing() == [1]
    do(StageFolder(folder.path), 1, value=3.0)
    assert folder.missing() == []
    assert folder.read_part(1)["x"][0] == 4.0


@pytest.mark.parametrize(
    "changes",
    [{"a": 2}, {"a": 1.5}, {"b": {"c": [1.5]}}, {"b": {"c": [1.5, 0]}}, {"d": None}],
)
def test_other_settings_are_another_folder(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert make(tmp_path, finish=False).name != make(tmp_path, finish=False, **changes).name


def test_other_tasks_stage_version_or_inputs_are_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    one, other = make(tmp_path / "one"), make(tmp_path / "other", n_tasks=1)
    names = [
        StageFolder.create(work, stage, SETTINGS, inputs, n).name
        for stage, inputs, n in [
            ("fake", {}, 2),
            ("fake", {}, 3),
            ("false", {}, 2),
            ("fake", {"x": one}, 2),
            ("fake", {"y": one}, 2),
            ("fake", {"x": other}, 2),
        ]
    ]
    monkeypatch.setattr(module, "FORMAT_VERSION", FORMAT_VERSION + 1)
    names.append(StageFolder.create(work, "fake", SETTINGS, {}, 2).name)
    assert len({name.partition("-")[2] for name in names}) == len(names)
    assert len(folders(work)) == len(names)


def test_the_same_output_from_another_plan_is_reused(tmp_path: Path) -> None:
    first, second = make(tmp_path), make(tmp_path, note="changes nothing")
    assert first.name != second.name
    reader = StageFolder.create(tmp_path, "reader", {}, {"x": first}, 1)
    again = StageFolder.create(tmp_path, "reader", {}, {"x": second}, 1)
    assert again.path == reader.path
    assert StageFolder(again.path).input("x").name == second.name


def test_output_digest_is_of_the_data_alone(tmp_path: Path) -> None:
    folder = make(tmp_path)
    digest = folder.output_digest()
    do(folder, 0, seconds=99.0)
    assert StageFolder(folder.path).output_digest() == folder.output_digest() == digest
    do(folder, 0, value=1.0 + 1e-15)
    assert folder.output_digest() != digest


def test_unfinished_inputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="2 of 2 tasks"):
        StageFolder.create(tmp_path, "x", {}, {"in": make(tmp_path, finish=False)}, 1)


@pytest.mark.parametrize("found", [FORMAT_VERSION + 1, None, "1"])
def test_newer_formats_are_refused(tmp_path: Path, found: object) -> None:
    folder = make(tmp_path)
    path = folder.path / "plan.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": found}))
    with pytest.raises(StoreError, match=f"format {found!r}.*up to {FORMAT_VERSION}"):
        StageFolder(folder.path).missing()
    check_format(FORMAT_VERSION, path)


def test_a_damaged_plan_is_written_anew(tmp_path: Path) -> None:
    folder = make(tmp_path)
    path = folder.path / "plan.json"
    good = path.read_bytes()
    for bad in (good[:20], good.replace(b'"a": 1', b'"a": 3')):
        path.write_bytes(bad)
        assert make(tmp_path, finish=False).missing() == []
        assert path.read_bytes() == good
    before = path.stat().st_ino
    make(tmp_path, finish=False)
    assert path.stat().st_ino == before, "a good plan is left alone"
    path.unlink()
    with pytest.raises(StoreError, match="no readable plan"):
        StageFolder(folder.path).missing()


def test_dry_creation_writes_nothing(tmp_path: Path) -> None:
    dry = StageFolder.create(tmp_path / "work", "fake", SETTINGS, {}, 2, dry=True)
    assert list(tmp_path.iterdir()) == []
    assert dry.path == make(tmp_path / "work").path


def test_full_disk_leaves_the_task_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path, finish=False)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ResourceError, match="disk is full"):
            do(folder, 0)
    assert folder.missing() == [0, 1]
    assert list((folder.path / "receipts").iterdir()) == []


@pytest.mark.parametrize("umask", [0o002, 0o027])
def test_umask_and_setgid_are_obeyed(tmp_path: Path, umask: int) -> None:
    tmp_path.chmod(0o2777)
    before = os.umask(umask)
    try:
        folder = make(tmp_path / "work")
    finally:
        os.umask(before)
    for path in (tmp_path / "work").rglob("*"):
        mode = (0o2777 if path.is_dir() else 0o666) & ~umask
        assert stat.S_IMODE(path.stat().st_mode) == mode, path
    assert folder.missing() == []


def test_a_folder_that_is_not_there_has_no_stages() -> None:
    assert folders(Path("/nonexistent")) == []


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)


@settings(deadline=None, max_examples=25)
@given(values=st.dictionaries(st.text(), JSON, max_size=3))
def test_any_settings_come_back_and_name_one_folder(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]
) -> None:
    work = tmp_path_factory.mktemp("work")
    folder = StageFolder.create(work, "fake", values, {}, 1)
    assert StageFolder(folder.path).settings == values
    turned = dict(reversed(values.items()))
    assert StageFolder.create(work, "fake", turned, {}, 1).path == folder.path
