"""Zarr arrays as dlpr keeps them: raw chunks with a checksum, flat chunk names, dimension names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numpy.typing import DTypeLike, NDArray
from zarr.codecs import Crc32cCodec

from dlpr.store.files import atomic_file, explained, map_bytes
from dlpr.store.folder import StageFolder

# Dask gives the parallelism; Zarr's own threads would multiply with it. Whether chunks equal to the
# fill value are written is no property of a stored array: it is said here for every opening.
zarr.config.set(
    {"async.concurrency": 2, "threading.max_workers": 2, "array.write_empty_chunks": True}
)

CHECKSUM_NBYTES = 4
METADATA = "zarr.json"


def create_array(
    group: zarr.Group,
    name: str,
    shape: tuple[int, ...],
    dtype: DTypeLike,
    dimensions: tuple[str, ...],
    chunk_rows: int,
    attributes: dict[str, Any] | None = None,
) -> zarr.Array[Any]:
    """Create an array cut into chunks of rows; floats are filled with NaN.

    Every chunk is the raw little-endian rows followed by their CRC-32C, and is written even where
    it equals the fill value: a chunk that is absent was never computed.
    """
    floating = np.issubdtype(np.dtype(dtype), np.floating)
    rows = max(1, min(chunk_rows, shape[0]))
    return group.create_array(
        name,
        shape=shape,
        chunks=(rows, *(max(1, n) for n in shape[1:])),
        dtype=np.dtype(dtype),
        filters=None,
        compressors=[Crc32cCodec()],
        fill_value=np.nan if floating else 0,
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=dimensions,
        attributes=attributes or {},
    )


def create_group(path: Path, attributes: dict[str, Any]) -> zarr.Group:
    """Create a group that replaces nothing."""
    with explained(path):
        path.mkdir(parents=True, exist_ok=True)
        return zarr.create_group(str(path), attributes=attributes, zarr_format=3)


def write_rows(array: zarr.Array[Any], start: int, rows: NDArray[Any], path: Path) -> None:
    """Write rows from ``start`` on (a chunk boundary)."""
    with explained(path):
        array[start : start + len(rows)] = rows


def chunk_name(chunk: int, n_dimensions: int) -> str:
    """File of the chunk of an array that begins with row ``chunk * chunk_rows``."""
    return ".".join(["c", str(chunk), *["0"] * (n_dimensions - 1)])


def write_chunk(path: Path, rows: NDArray[Any], chunk_rows: int) -> int:
    """Write the file of one chunk as an array of `create_array` has it; returns its CRC-32C.

    Parameters
    ----------
    path : Path
    rows : (n, ...) array
    chunk_rows : int
        Rows of a chunk: what the last one lacks is filled.
    """
    filler = np.nan if np.issubdtype(rows.dtype, np.floating) else 0
    whole = np.full((chunk_rows, *rows.shape[1:]), filler, rows.dtype)
    whole[: len(rows)] = rows
    content = whole.tobytes()
    check = int(google_crc32c.value(content))
    with atomic_file(path) as file:
        file.write(content)
        file.write(check.to_bytes(CHECKSUM_NBYTES, "little"))
    return check


def map_chunk(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """A whole chunk where it lies: read-only, mapped, its checksum verified.

    Raises
    ------
    OSError
        Where it is absent.
    ValueError
        Where it is not what was written.
    """
    whole = map_bytes(path)
    body = whole[:-CHECKSUM_NBYTES]
    if google_crc32c.value(body) != int.from_bytes(whole[-CHECKSUM_NBYTES:].tobytes(), "little"):
        raise ValueError(f"the content of {path.name} does not match its checksum")
    return body.view(np.dtype(dtype)).reshape(shape)


def chunk_files(path: Path) -> list[Path]:
    """All chunk files below ``path``."""
    return sorted(f for f in path.rglob("c*") if f.name == "c" or f.name.startswith("c."))


def store_files(path: Path) -> list[Path]:
    """All chunk and metadata files below ``path``."""
    return sorted([*chunk_files(path), *path.rglob(METADATA)])


def checksums(files: Iterable[Path], below: Path) -> dict[str, int]:
    """CRC-32C of chunks, read off their ends, and of metadata, by name below ``below``."""
    found: dict[str, int] = {}
    for path in files:
        if path.name == METADATA:
            check = google_crc32c.value(path.read_bytes())
        else:
            with path.open("rb") as file:
                file.seek(-CHECKSUM_NBYTES, 2)
                check = int.from_bytes(file.read(CHECKSUM_NBYTES), "little")
        found[path.relative_to(below).as_posix()] = check
    return found


def check_metadata(folder: StageFolder, task: int) -> None:
    """Compare the metadata of a task's stores with its receipt: a chunk's own checksum says nothing
    of the shape and the names by which it is found.

    Raises
    ------
    CorruptPartError
    """
    receipt = folder.receipt(task)
    for name, (_, check) in receipt.files.items() if receipt is not None else ():
        if name.endswith(METADATA):
            path = folder.path / name
            if checksums([path], folder.path)[name] != check:
                raise folder.corrupt(task, name, "its bytes have changed")
