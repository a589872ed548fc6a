"""Rows of features in users' own files: NumPy .npy, Zarr arrays, metatensor .mts.

Nothing in them is unpickled, and an array is read only where it is asked for.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dlpr.descriptors.columns import Columns
from dlpr.errors import InputError

_END_NBYTES = 1 << 16
_WHAT = "a NumPy array .npy, a Zarr array (a folder) or a metatensor TensorMap .mts"


class RowFile(Protocol):
    """Rows of features where they lie."""

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and columns."""

    @property
    def columns(self) -> Columns:
        """Arrays (n_columns,) by name: what each column is."""

    @property
    def resident_nbytes(self) -> int:
        """Bytes held in memory whatever is read."""

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return some rows, (n, n_columns)."""


def open_rows(path: Path) -> RowFile:
    """Open a file of features, a row for each environment.

    Parameters
    ----------
    path
        ``.npy``: an array (n_environments, n_features). A folder: a Zarr array of that shape.
        ``.mts``: blocks with samples named system (or structure) and atom (or center), no
        components and equal properties; its rows are put in the order of system and atom.

    Raises
    ------
    InputError
        If it is absent, of another kind, of another shape, or has no numbers.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file; needed is {_WHAT}. Correct descriptor.features.")
    try:
        if path.is_dir():
            return _open_zarr(path)
        if path.suffix == ".npy":
            return _ArrayRows(path, np.load(path, mmap_mode="r", allow_pickle=False))
        if path.suffix == ".mts":
            return _TensorMapRows(path)
    except (OSError, ValueError, EOFError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read as {_WHAT}: {' '.join(str(error).split())}."
            " Write it anew as an array of numbers."
        ) from None
    raise InputError(
        f"{path} has the suffix {path.suffix!r}; needed is {_WHAT}. Correct descriptor.features."
    )


def fingerprint(path: Path) -> dict[str, Any]:
    """What tells whether a file or a Zarr array is still the same.

    Returns
    -------
    dict
        ``size`` in bytes, ``mtime_ns`` (of the youngest file), ``sha256`` of the first and last 64
        KiB; of a folder, of the names, sizes and times of its files.
    """
    names = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    digest, size, newest = hashlib.sha256(), 0, 0
    for name in names:
        status = name.stat()
        size, newest = size + status.st_size, max(newest, status.st_mtime_ns)
        if path.is_dir():
            entry = (name.relative_to(path).as_posix(), status.st_size, status.st_mtime_ns)
            digest.update(repr(entry).encode())
        else:
            with name.open("rb") as file:
                digest.update(file.read(_END_NBYTES))
                file.seek(max(file.tell(), size - _END_NBYTES))
                digest.update(file.read(_END_NBYTES))
    return {"size": size, "mtime_ns": newest, "sha256": digest.hexdigest()}


def _check_array(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "fiu":
        raise InputError(
            f"{path} holds {dtype}; needed are real numbers. Write it anew, for instance as"
            " float64."
        )
    if len(shape) != 2 or not shape[1]:
        raise InputError(
            f"{path} has the shape {tuple(shape)}; needed are rows and columns,"
            " (n_environments, n_features). Reshape the array."
        )


class _ArrayRows:
    """Rows of an array of NumPy that is mapped, or of Zarr."""

    def __init__(self, path: Path, array: Any) -> None:
        _check_array(path, array.shape, array.dtype)
        self._array = array
        self.shape: tuple[int, int] = (int(array.shape[0]), int(array.shape[1]))
        self.columns: Columns = {"column": np.arange(self.shape[1], dtype=np.int32)}
        chunk = math.prod(getattr(array, "chunks", (0,))) * array.dtype.itemsize
        self.resident_nbytes: int = 4 * chunk

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return some rows; consecutive ones are one piece of the file."""
        start = int(rows[0]) if len(rows) else 0
        if np.array_equal(rows, np.arange(start, start + len(rows))):
            found = self._array[start : start + len(rows)]
        elif isinstance(self._array, np.ndarray):
            found = self._array[rows]
        else:  # each chunk once
            found = self._array.get_orthogonal_selection((rows, slice(None)))
        return np.array(found, np.float64)


def _open_zarr(path: Path) -> _ArrayRows:
    for name in (".zarray", "zarr.json"):
        metadata = path / name
        if metadata.is_file():
            _refuse_pickles(path, json.loads(metadata.read_text()))
            break
    else:
        raise InputError(
            f"{path} is a folder without .zarray or zarr.json: no Zarr array. Name the array, such"
            " as store.zarr/features, or another file."
        )
    import zarr

    array = zarr.open(str(path), mode="r")
    if not isinstance(array, zarr.Array):
        raise InputError(
            f"{path} is a Zarr group; needed is an array in it, such as {path}/features."
            " Correct descriptor.features."
        )
    return _ArrayRows(path, array)


def _refuse_pickles(path: Path, metadata: object) -> None:
    """Refuse codecs and types that would run what is written in the chunks."""
    if "pickle" in json.dumps(metadata).lower():
        raise InputError(
            f"the metadata of {path} name a codec that unpickles. Nothing is unpickled here:"
            " write the array anew as numbers."
        )


class _TensorMapRows:
    """Rows of a metatensor TensorMap, held in memory."""

    def __init__(self, path: Path) -> None:
        from dlpr.descriptors.native import metatensor

        try:
            blocks = metatensor.load(str(path)).blocks()
        except metatensor.MetatensorError as error:
            raise ValueError(str(error)) from None
        if not blocks:
            raise InputError(f"{path} has no blocks; needed is one at least. Write it anew.")
        first = blocks[0].properties
        for block in blocks:
            if len(block.components) or block.properties != first:
                raise InputError(
                    f"{path} has blocks with {len(block.components)} component(s) and"
                    f" {len(block.properties)} properties; needed are 0 and the {len(first)}"
                    " properties of the first block in each. Move keys and components to the"
                    " properties (keys_to_properties, components_to_properties)."
                )
        samples = np.concatenate([_samples(path, block.samples) for block in blocks])
        values = np.concatenate([np.asarray(block.values) for block in blocks])
        _check_array(path, values.shape, values.dtype)
        order = np.lexsort((samples[:, 1], samples[:, 0]))
        twice = np.flatnonzero((np.diff(samples[order], axis=0) == 0).all(axis=1))
        if twice.size:
            system, atom = samples[order[twice[0]]].tolist()
            raise InputError(
                f"{path} has {twice.size + 1} or more rows for one atom, such as atom {atom} of"
                f" system {system}; needed is one. Sum or join the blocks."
            )
        self._values = values[order].astype(np.float64)
        self.shape: tuple[int, int] = (len(values), values.shape[1])
        self.columns: Columns = dict(zip(first.names, np.array(first.values).T.copy(), strict=True))
        self.resident_nbytes: int = 3 * self._values.nbytes

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return some rows."""
        found: NDArray[np.float64] = self._values[rows]
        return found


def _samples(path: Path, labels: Any) -> NDArray[np.int64]:
    """System and atom of each sample, (n, 2)."""
    names = list(labels.names)
    system = next((name for name in ("system", "structure") if name in names), None)
    atom = next((name for name in ("atom", "center") if name in names), None)
    if system is None or atom is None:
        raise InputError(
            f"{path} has samples named {', '.join(names)}; needed are system and atom. Write one"
            " sample for each atom."
        )
    values = np.array(labels.values, np.int64)
    found: NDArray[np.int64] = values[:, [names.index(system), names.index(atom)]]
    return found
