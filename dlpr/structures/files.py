"""Structure files before they are parsed: patterns, fingerprints, decompression."""

from __future__ import annotations

import bz2
import glob
import gzip
import hashlib
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast

from dlpr.errors import InputError, JobError

BLOCK_NBYTES = 4 << 20
"""Bytes of a file that are looked at together."""
_END_NBYTES = 64 << 10
_INDEX = re.compile(r"-?\d+|-?\d*:-?\d*(:-?\d*)?")
_OPENERS: dict[str, Callable[[Path, str], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}
_DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError)


@dataclass(frozen=True)
class Source:
    """One file of structures and the frames wanted of it."""

    path: Path
    """absolute"""
    index: str = ":"
    """ASE's index string: ``5``, ``-1``, ``:``, ``::10``"""


def expand(patterns: Sequence[str], base: Path) -> list[Source]:
    """Find the files that a job names.

    Parameters
    ----------
    patterns : sequence of str
        Paths or globs (``**`` included), absolute or relative to ``base``, each with an optional
        index suffix ``@::10``, ``@5``, ``@:``.
    base : Path
        The folder that relative patterns start from.

    Returns
    -------
    list of Source
        In the order of the patterns; the files of one glob sorted by name.

    Raises
    ------
    InputError
        If a file does not exist or a glob matches none.
    JobError
        If an index suffix is none of ASE's.
    """
    return [source for pattern in patterns for source in _expand_one(pattern, base)]


def _expand_one(pattern: str, base: Path) -> list[Source]:
    path = _absolute(pattern, base)
    if path.is_file():  # also a file whose name holds an @ or a bracket
        return [Source(path)]
    index = ":"
    if "@" in path.name:
        name, _, index = path.name.rpartition("@")
        _check_index(index, pattern)
        path = path.with_name(name)
    if path.is_file():
        return [Source(path, index)]
    if path.is_dir():
        raise InputError(f"{path} is a folder; write {path}/* to read the files in it")
    if not glob.has_magic(str(path)):
        raise InputError(f"no file {path} (from '{pattern}'); {_nearest(path)}")
    found = sorted(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207 (absolute)
    files = [Source(p, index) for p in found if p.is_file()]
    if not files:
        raise InputError(f"no file matches '{pattern}' in {base}; {_nearest(path)}")
    return files


def _absolute(pattern: str, base: Path) -> Path:
    return (base / Path(pattern).expanduser()).absolute()


def _check_index(index: str, pattern: str) -> None:
    if not _INDEX.fullmatch(index) or index.split(":")[2:] in (["0"], ["-0"]):
        raise JobError(
            f"'{pattern}': '{index}' is no index of frames; after the @ write a number or a slice "
            "with a step that is not 0, such as @5, @-1, @: or @::10"
        )


def _nearest(path: Path) -> str:
    """Say what is there instead of ``path``."""
    folder = path.parent
    while glob.has_magic(str(folder)) or not folder.is_dir():
        path, folder = folder, folder.parent
    names = sorted(p.name for p in folder.iterdir())
    close = get_close_matches(path.name, names, n=3, cutoff=0.5) or names[:3]
    if not close:
        return f"the folder {folder} is empty; correct the path"
    return f"in {folder} there is, for instance: {', '.join(close)}; correct the path"


def fingerprint(path: Path, full: bool = False) -> dict[str, Any]:
    """Tell whether a file is still the one that was read.

    Parameters
    ----------
    path : Path
    full : bool
        Hash the whole file, not only its ends: once in a process, until the file is written to.

    Returns
    -------
    dict
        ``size`` in bytes, ``mtime_ns``, ``ends_sha256`` (first and last 64 KiB) and, if ``full``,
        ``sha256`` of everything.

    Raises
    ------
    InputError
        If the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            ends = hashlib.sha256(file.read(_END_NBYTES))
            file.seek(max(file.tell(), status.st_size - _END_NBYTES))
            ends.update(file.read(_END_NBYTES))
        found = {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
        found_ends: dict[str, Any] = {**found, "ends_sha256": ends.hexdigest()}
        if not full:
            return found_ends
        state = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        return {**found_ends, "sha256": _sha256(path, state)}
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); correct it") from error


@lru_cache(maxsize=4096)
def _sha256(path: Path, state: tuple[int, ...]) -> str:
    """SHA-256 of a file in some state: every task that reads some of its frames asks for it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_compressed(path: Path) -> bool:
    """Whether a file's suffix is that of gzip, bzip2 or xz."""
    return path.suffix.lower() in _OPENERS


def open_bytes(path: Path) -> BinaryIO:
    """Open a file for reading as plain bytes, decompressed where its suffix says so."""
    opener = _OPENERS.get(path.suffix.lower())
    return path.open("rb") if opener is None else cast(BinaryIO, opener(path, "rb"))


def read_blocks(path: Path) -> Iterator[bytes]:
    """Yield the plain bytes of a file in blocks of at most `BLOCK_NBYTES`.

    Raises
    ------
    InputError
        If the file is empty, cannot be read, or its compressed data are truncated or corrupt.
    """
    n_bytes = 0
    try:
        with open_bytes(path) as file:
            while block := file.read(BLOCK_NBYTES):
                n_bytes += len(block)
                yield block
    except _DAMAGE as error:
        what = f"its {path.suffix[1:]} data end early or are corrupt" * is_compressed(path)
        raise InputError(
            f"{path} cannot be read beyond byte {n_bytes} of its content: {what or 'reading fails'}"
            f" ({error}); copy it again from where it came"
        ) from error
    if n_bytes == 0:
        raise InputError(f"{path} is empty (0 bytes of content); copy it again or take it out")
