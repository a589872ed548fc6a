"""Where the frames of a file are: one sequential scan, so that they can be parsed in parallel."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlpr.errors import InputError, StoreError
from dlpr.structures.files import Source, is_compressed, read_blocks
from dlpr.structures.text_frames import ExtxyzScan, check_dump

EXTXYZ = "extxyz"
_REFUSED = frozenset({"postgresql", "mysql", "bundletrajectory", "db"})


@dataclass(frozen=True)
class FileIndex:
    """The frames of one file.

    Byte ranges refer to ``data_path`` and are -1 where only ASE knows how to find a frame.
    """

    path: Path
    """the file that the job names"""
    data_path: Path
    """the file with the plain bytes: ``path``, or its decompressed copy"""
    format: str
    """ASE's name of the format"""
    offset: NDArray[np.int64]
    """(n_frames,) first byte"""
    nbytes: NDArray[np.int64]
    """(n_frames,) length"""
    n_atoms: NDArray[np.int64]
    """(n_frames,)"""
    selected: NDArray[np.int64]
    """(n_selected,) frame numbers that the index string asks for, in its order"""


def index_file(source: Source, scratch: Path) -> FileIndex:
    """Find the frames of a file.

    Extended xyz (and plain xyz) is scanned for its count lines; any other format is read once
    through ASE.

    Parameters
    ----------
    source : Source
    scratch : Path
        File to which a compressed source is decompressed. It appears whole, by a rename; nothing
        is written for a source that is not compressed.

    Returns
    -------
    FileIndex

    Raises
    ------
    InputError
        If the file is missing, empty, truncated, binary, has a wrong atom count, is of a format
        that ASE does not read, or has no frame of the wanted index.
    StoreError
        If ``scratch`` cannot be written.
    """
    path = source.path
    if not path.is_file():
        raise InputError(f"no file {path}; it was there when the job was read: put it back")
    name = _format(path)
    scan = ExtxyzScan(path) if name == EXTXYZ else None
    blocks = _scanned(read_blocks(path), scan)
    if is_compressed(path):
        _decompress(blocks, scratch)
    else:
        for _ in blocks:
            pass
    data_path = scratch if is_compressed(path) else path
    if scan is not None:
        offset, nbytes, n_atoms = scan.finish()
    else:
        n_atoms = _count_through_ase(path, data_path, name)
        offset = nbytes = np.full(len(n_atoms), -1, np.int64)
    selected = _select(source, len(n_atoms))
    return FileIndex(path, data_path, name, offset, nbytes, n_atoms, selected)


def _scanned(blocks: Iterator[bytes], scan: ExtxyzScan | None) -> Iterator[bytes]:
    """Pass blocks on; without a scan the first shows that there is content that can be read."""
    for block in blocks:
        if scan is not None:
            scan.feed(block)
        yield block


def _decompress(blocks: Iterator[bytes], scratch: Path) -> None:
    own = f"{os.getpid()}-{secrets.token_hex(4)}"  # threads of one process may do the same
    partial = scratch.with_name(f"{scratch.name}.{own}.partial")
    try:
        with partial.open("wb") as file:
            for block in blocks:
                file.write(block)
        partial.replace(scratch)
    except OSError as error:
        raise StoreError(
            f"the decompressed copy {scratch} cannot be written ({error.strerror}); free space "
            "there or give another scratch folder"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _format(path: Path) -> str:
    plain = path.with_suffix("") if is_compressed(path) else path
    if plain.suffix.lower() in (".xyz", ".extxyz"):
        return EXTXYZ
    import ase.io.formats  # slow to load

    hint = f"{path} is of no format that ASE reads; rename it with the suffix of its format"
    try:
        name = str(ase.io.formats.filetype(str(path)))
        readable = ase.io.formats.get_ioformat(name).can_read
    except Exception as error:  # ASE and the decompressors raise any kind on foreign bytes
        for _ in read_blocks(path):  # say first if it is empty or its compressed data are damaged
            pass
        raise InputError(f"{hint} ({error})") from error
    if name in _REFUSED or not readable:
        raise InputError(f"{path}: dlpr does not read the format {name}; convert it to extxyz")
    return name


def _count_through_ase(path: Path, data_path: Path, name: str) -> NDArray[np.int64]:
    if name == "lammps-dump-text":
        check_dump(path, data_path)
    import ase.io  # slow to load

    counts: list[int] = []
    try:
        for atoms in ase.io.iread(
            str(data_path), index=":", format=name, do_not_split_by_at_sign=True
        ):
            counts.append(len(atoms))
    except Exception as error:  # each of ASE's readers has its own way to fail
        raise InputError(
            f"{path}, frame {len(counts)}: ASE cannot read it as {name} "
            f"({type(error).__name__}: {error}); copy the file again or correct the frame"
        ) from error
    if not counts:
        raise InputError(f"{path} holds no frame that ASE reads as {name}; take it out of the job")
    return np.asarray(counts, np.int64)


def _select(source: Source, n_frames: int) -> NDArray[np.int64]:
    from ase.utils import string2index  # slow to load

    wanted: Any = string2index(source.index)
    frames = np.arange(n_frames, dtype=np.int64)
    if isinstance(wanted, slice):
        selected = frames[wanted]
    elif -n_frames <= wanted < n_frames:
        selected = frames[[wanted]]
    else:
        selected = frames[:0]
    if selected.size == 0:
        raise InputError(
            f"{source.path} has {n_frames} frames (0 to {n_frames - 1}), and '@{source.index}' "
            "selects none of them; correct the index"
        )
    return selected
