"""Every byte of finished tasks against their receipts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import google_crc32c

from dlpr.store.arrays import CHECKSUM_NBYTES, METADATA, checksums
from dlpr.store.files import DAMAGE, members, read_json
from dlpr.store.folder import StageFolder

_READ_NBYTES = 1 << 20


def damaged_tasks(folder: StageFolder) -> list[int]:
    """Tasks that have a receipt and whose data do not match it, every byte read.

    Parameters
    ----------
    folder : StageFolder

    Returns
    -------
    list of int
        Ascending. A task without a readable receipt is not damaged but missing; a task whose data
        are gone or of another size is both.

    Notes
    -----
    Holds 1 MiB of data at a time. `StageFolder.receipt` compares sizes alone.
    """
    return [task for task in range(folder.n_tasks) if _damaged_files(folder.path, task)]


def check_whole(folder: StageFolder) -> None:
    """Read every byte of a finished stage.

    Raises
    ------
    CorruptPartError
        For the first task whose data do not match its receipt.
    """
    for task in range(folder.n_tasks):
        for name in _damaged_files(folder.path, task):
            raise folder.corrupt(task, name, "its bytes are not those that were written")


def _damaged_files(path: Path, task: int) -> list[str]:
    receipt = read_json(path / "receipts" / f"{task:06d}.json")
    if receipt is None or not isinstance(receipt.get("files"), dict):
        return []
    files = receipt["files"].items()
    return [name for name, (size, check) in files if not is_whole(path / name, size, check)]


def is_whole(path: Path, size: int, check: Any) -> bool:
    """Compare a file with what a receipt says of it: a checksum, or one per array of a part."""
    try:
        if path.stat().st_size != size:
            return False
        if isinstance(check, dict):
            found: Any = _member_checksums(path)
        elif path.name == METADATA:
            found = checksums([path], path.parent)[METADATA]
        else:
            found = _chunk_checksum(path, size)
    except DAMAGE:
        return False
    return bool(found == check)


def _member_checksums(path: Path) -> dict[str, int]:
    """CRC-32C of every array of an ``.npz``, computed from the bytes that are there."""
    found: dict[str, int] = {}
    with path.open("rb") as file:
        for name, (offset, left) in members(path).items():
            file.seek(offset)
            found[name] = 0
            while left and (block := file.read(min(left, _READ_NBYTES))):
                found[name] = google_crc32c.extend(found[name], block)
                left -= len(block)
    return found


def _chunk_checksum(path: Path, size: int) -> int:
    """CRC-32C at the end of a chunk's file.

    Raises
    ------
    ValueError
        If the chunk's content has another one.
    """
    left, check = size - CHECKSUM_NBYTES, 0
    with path.open("rb") as file:
        while left > 0 and (block := file.read(min(left, _READ_NBYTES))):
            check = google_crc32c.extend(check, block)
            left -= len(block)
        if left or file.read() != check.to_bytes(CHECKSUM_NBYTES, "little"):
            raise ValueError("the content does not match its checksum")
    return int(check)
