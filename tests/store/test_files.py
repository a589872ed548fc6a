"""Files that are whole or absent, whatever the system answers."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlpr.errors import ResourceError, StoreError
from dlpr.store import files
from dlpr.store.files import (
    atomic_file,
    atomic_folder,
    canonical_json,
    fsync_tree,
    link_file,
    partial_path,
    read_json,
    replace_tree,
    write_arrays,
    write_json,
)

ARRAYS: dict[str, Any] = {
    "matrix": np.arange(6.0).reshape(2, 3),
    "count": np.arange(10, dtype=np.int64),
    "nothing": np.empty((0, 3)),
}


def everything(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


class Failing:
    """A file one of whose calls fails, as on a full disk or over the quota on NFS."""

    def __init__(self, file: Any, call: str, number: int) -> None:
        self._file, self._call, self._number = file, call, number

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Failing:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _do(self, call: str, *args: Any) -> Any:
        found = getattr(self._file, call)(*args)
        if call == self._call:
            raise OSError(self._number, os.strerror(self._number))
        return found

    def write(self, data: bytes) -> Any:
        return self._do("write", data)

    def flush(self) -> Any:
        return self._do("flush")

    def close(self) -> Any:
        return self._do("close")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["write", "flush", "close", "fsync", "rename"])
@pytest.mark.parametrize("before", [None, b"the old content"])
def test_full_disk_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, before: bytes | None
) -> None:
    path = tmp_path / "part.npz"
    if before is not None:
        path.write_bytes(before)
    opened = Path.open

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    def failing(self: Path, mode: str = "r", *args: Any) -> Any:
        file = opened(self, mode, *args)
        return Failing(file, call, number) if mode == "wb" else file

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", failing)
        if call == "fsync":
            patch.setattr(os, "fsync", refuse)
        if call == "rename":
            patch.setattr(Path, "replace", refuse)
        with pytest.raises(ResourceError, match=r"part\.npz.*(disk is full|quota is used up)"):
            write_arrays(path, ARRAYS)
    assert everything(tmp_path) == (set() if before is None else {"part.npz"})
    assert before is None or path.read_bytes() == before


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EIO, errno.ESTALE])
def test_other_refusals_are_told_to_users(number: int, tmp_path: Path) -> None:
    said = f"{tmp_path}.*{os.strerror(number)}"
    with pytest.raises(StoreError, match=said), files.explained(tmp_path):
        raise OSError(number, os.strerror(number))


def test_a_file_in_the_place_of_a_folder_is_told_to_users(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="Choose another folder"):
        write_json(tmp_path / "file" / "x.json", {})


def test_data_are_durable_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def recorded(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any) -> Any:
            on_folder = name == "fsync" and stat.S_ISDIR(os.fstat(args[0]).st_mode)
            calls.append("fsync folder" if on_folder else name)
            return call(*args)

        return wrapper

    monkeypatch.setattr(os, "fsync", recorded("fsync", os.fsync))
    monkeypatch.setattr(Path, "replace", recorded("rename", Path.replace))
    with atomic_file(tmp_path / "x") as file:
        file.write(b"content")
        assert everything(tmp_path) != {"x"}
    assert calls == ["fsync", "rename", "fsync folder"]


def test_an_error_in_the_block_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_file(tmp_path / "x"):
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "y") as folder:
        (folder / "a").write_text(str(1 / 0))
    assert everything(tmp_path) == set()


def test_folder_appears_whole_and_replaces(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with atomic_folder(tmp_path / "a" / "parts") as partial:
            (partial / "x").write_text(content)
            assert not (tmp_path / "a" / "parts" / "x").exists() or content == "new"
    assert everything(tmp_path) == {"a", "a/parts", "a/parts/x"}
    assert (tmp_path / "a" / "parts" / "x").read_text() == "new"


def test_replacing_goes_on_when_another_is_quicker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, partial = tmp_path / "target", partial_path(tmp_path / "target")
    for folder in (target, partial):
        folder.mkdir()
        (folder / "x").write_text(folder.name)
    rename = Path.rename

    def with_another(self: Path, to: Path) -> Path:
        found = rename(self, to)
        if self == target and not target.exists():
            target.mkdir()
            (target / "x").write_text("another's")
            monkeypatch.undo()
        return found

    monkeypatch.setattr(Path, "rename", with_another)
    replace_tree(partial, target)
    assert everything(tmp_path) == {"target", "target/x"}
    assert (target / "x").read_text() == partial.name


def test_errors_of_a_rename_are_not_hidden(tmp_path: Path) -> None:
    partial = tmp_path / "partial"
    partial.mkdir()
    (tmp_path / "target").touch()
    with pytest.raises(NotADirectoryError):
        replace_tree(partial, tmp_path / "target")
    fsync_tree(tmp_path)


@pytest.mark.parametrize("text", ['{"a": 1', "", "[1]", "\x00" * 20, "\udcff"])
def test_torn_json_is_no_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_bytes(text.encode(errors="surrogateescape"))
    assert read_json(tmp_path / "x.json") is None


def test_json_of_nothing_and_of_a_folder(tmp_path: Path) -> None:
    assert read_json(tmp_path / "absent" / "x.json") is None
    with pytest.raises(StoreError, match="cannot read"):
        read_json(tmp_path)


@pytest.mark.parametrize("number", [None, errno.EXDEV, errno.EPERM])
def test_a_link_or_a_copy_stays_when_its_source_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, "no links here")

    if number is not None:
        monkeypatch.setattr(os, "link", refuse)
    source, target = tmp_path / "a" / "x", tmp_path / "b" / "c" / "x"
    with atomic_file(source) as file:
        file.write(b"content")
    with atomic_file(target) as file:
        file.write(b"stale")
    link_file(source, target)
    assert (source.stat().st_ino == target.stat().st_ino) == (number is None)
    source.unlink()
    assert target.read_bytes() == b"content"
    assert everything(tmp_path) == {"a", "b", "b/c", "b/c/x"}
    with pytest.raises(FileNotFoundError):
        link_file(source, tmp_path / "y")
    assert everything(tmp_path) == {"a", "b", "b/c", "b/c/x"}


def test_a_link_on_a_full_disk_is_told_to_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "x").touch()
    monkeypatch.setattr(os, "link", full)
    with pytest.raises(ResourceError, match="disk is full"):
        link_file(tmp_path / "x", tmp_path / "y")


def test_a_file_that_another_host_replaces_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(tmp_path / "x.json", {"a": 1})
    read = Path.read_bytes

    def stale_once(self: Path) -> bytes:
        monkeypatch.setattr(Path, "read_bytes", read)
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(Path, "read_bytes", stale_once)
    assert read_json(tmp_path / "x.json") == {"a": 1}


def test_canonical_json_refuses_what_json_has_not() -> None:
    assert canonical_json({"b": (1, 2), "a": "é"}) == b'{"a":"\\u00e9","b":[1,2]}'
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"a": float("nan")})


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660)])
def test_umask_and_setgid_are_obeyed(tmp_path: Path, umask: int, mode: int) -> None:
    tmp_path.chmod(0o2770)
    before = os.umask(umask)
    try:
        write_json(tmp_path / "a" / "x.json", {})
        with atomic_folder(tmp_path / "b"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a" / "x.json").stat().st_mode) == mode
    for name in ("a", "b"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o2777 & ~umask
