"""Files that are whole or absent: data, fsync, rename, fsync of the directory."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dlpr.errors import ResourceError, StoreError

Json = dict[str, Any]


def canonical_json(value: object) -> bytes:
    """JSON with one spelling per value: what digests are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write below ``path`` into a message for users."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            what = "the disk is full" if error.errno == errno.ENOSPC else "the quota is used up"
            raise ResourceError(
                f"cannot write {path}: {what}. Nothing finished is lost. Free some space "
                f"(`dlpr clean` removes what no result refers to) and run the same command again."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise StoreError(
                f"cannot write {path}: {os.strerror(error.errno)}. Choose another folder with "
                f"--output, or have its owner grant write permission."
            ) from error
        raise


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Make a file's content durable. A full NFS quota shows itself here."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def fsync_tree(path: Path) -> None:
    """Make every file and name below ``path`` durable."""
    for folder, _, names in os.walk(path):
        for name in names:
            fsync_file(Path(folder) / name)
        fsync_directory(Path(folder))


def partial_path(path: Path) -> Path:
    """A name beside ``path`` that nobody else uses and that nobody takes for the finished thing."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that appears under ``path`` when the block ends without an error."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_path(path)
        try:
            with partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        fsync_directory(path.parent)


def replace_tree(partial: Path, target: Path) -> None:
    """Put a finished folder in place by a rename; what was there before is removed."""
    try:
        partial.rename(target)
    except OSError:
        aside = partial_path(target)
        target.rename(aside)
        partial.rename(target)
        shutil.rmtree(aside)
    fsync_directory(target.parent)


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically."""
    with atomic_file(path) as file:
        file.write(json.dumps(value, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n")


def read_json(path: Path) -> Json | None:
    """JSON of a file; None where there is none or where it is not whole."""
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return value if isinstance(value, dict) else None


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """Write arrays as one uncompressed ``.npz`` whose bytes depend on the arrays alone.

    Returns
    -------
    dict
        The CRC-32 of every member, which reading verifies.
    """
    with atomic_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            with archive.open(info, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
        return {name: archive.NameToInfo[f"{name}.npy"].CRC for name in arrays}


def read_arrays(path: Path, names: tuple[str, ...] | None = None) -> dict[str, NDArray[Any]]:
    """Arrays of a file of `write_arrays`, every byte checked against its CRC-32.

    Raises
    ------
    OSError, ValueError, zipfile.BadZipFile
        Where the file is absent or damaged.
    """
    with zipfile.ZipFile(path) as archive:
        found: dict[str, NDArray[Any]] = {}
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if names is None or name in names:
                with archive.open(info) as member:
                    found[name] = np.lib.format.read_array(member, allow_pickle=False)
    return found
