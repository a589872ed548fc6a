"""Reading a structure store: parts of ragged arrays seen as one run of environments."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from ase.data import chemical_symbols
from numpy.typing import NDArray

from dlpr.store.arrays import check_metadata
from dlpr.store.folder import StageFolder
from dlpr.structures.frames import Piece
from dlpr.structures.spatial import cell_volume, cut_cluster

CHUNK_ROWS = 1 << 16
"""Environments per chunk of a structure store; structures that are read at once."""
PER_ENVIRONMENT = ("position", "species", "source_atom", "force")
UNREADABLE = (FileNotFoundError, ValueError, KeyError, TypeError)
"""What Zarr raises for chunks or metadata that are gone or damaged."""
CACHED_NBYTES = 1 << 23
"""Bytes of chunks, and of arrays over structures, that a process keeps decoded of all its sets."""


def part_name(part: int) -> str:
    """Name of a part below its stage's folder."""
    return f"parts/{part:06d}.zarr"


class _Cache:
    """Arrays that were used last, as many as fit a number of bytes, and the last one in any case.

    Parameters
    ----------
    nbytes : int
    """

    def __init__(self, nbytes: int) -> None:
        self._most, self.nbytes = nbytes, 0
        self._held: OrderedDict[object, NDArray[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: object, read: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """The array of a key, read if it is not here."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
        found = read()
        with self._lock:
            before = self._held.pop(key, None)  # another thread was quicker
            self.nbytes += found.nbytes - (0 if before is None else before.nbytes)
            self._held[key] = found
            while self.nbytes > self._most and len(self._held) > 1:
                self.nbytes -= self._held.popitem(last=False)[1].nbytes
        return found


_cache = _Cache(CACHED_NBYTES)


class _Part:
    """One part of a structure store."""

    def __init__(self, folder: StageFolder, number: int) -> None:
        self._folder, self._number = folder, number

    @cached_property
    def _group(self) -> zarr.Group:
        name = part_name(self._number)
        check_metadata(self._folder, self._number)
        try:
            return zarr.open_group(str(self._folder.path / name), mode="r")
        except UNREADABLE as error:
            raise self._folder.corrupt(self._number, name, error) from error

    def names(self, key: str) -> list[str]:
        """A list of names among the attributes."""
        try:
            return [str(name) for name in cast("list[str]", self._group.attrs[key])]
        except UNREADABLE as error:
            raise self._folder.corrupt(self._number, part_name(self._number), error) from error

    def rows(self, name: str, start: int, stop: int | None) -> NDArray[Any]:
        """Rows of an array, their checksums verified."""
        try:
            return np.asarray(cast("Any", self._group[name])[start:stop])
        except UNREADABLE as error:
            place = f"{part_name(self._number)}/{name}"
            raise self._folder.corrupt(self._number, place, error) from error


class StructureStore:
    """All structures of one set, in ingest order.

    Attributes
    ----------
    n_environments, n_structures : int
    structure_offset : (n_structures + 1,) int64
    group : (n_structures,) int32
        Index into ``group_names``.
    group_names : tuple of str
    species : tuple of int
        Atomic numbers that occur, ascending.
    part_edges : (n_parts + 1,) int64
        First environment of every part.
    """

    def __init__(self, folder: StageFolder) -> None:
        self.folder = folder
        receipts = folder.receipts()
        self._has_forces = [r.facts["has_forces"] for r in receipts]
        counts = [(r.facts["n_structures"], r.facts["n_environments"]) for r in receipts]
        edges = np.cumsum([(0, 0), *counts], axis=0, dtype=np.int64)
        self._part_structure, self.part_edges = edges[:, 0], edges[:, 1]
        self.n_structures, self.n_environments = int(edges[-1, 0]), int(edges[-1, 1])
        self.species = tuple(sorted({int(z) for r in receipts for z in r.facts["species"]}))
        self.group_names = tuple(sorted({g for r in receipts for g in r.facts["groups"]}))
        self.structure_offset = np.zeros(self.n_structures + 1, np.int64)
        self.group = np.zeros(self.n_structures, np.int32)
        self._parts = [_Part(folder, number) for number in range(folder.n_tasks)]
        number_of = {name: k for k, name in enumerate(self.group_names)}
        for part, first, stop, start in zip(
            self._parts, edges[:-1, 0], edges[1:, 0], edges[:-1, 1], strict=True
        ):
            if stop > first:
                number = [number_of[name] for name in part.names("groups")]
                self.group[first:stop] = np.asarray(number, np.int32)[part.rows("group", 0, None)]
                self.structure_offset[first:stop] = (
                    part.rows("structure_offset", 0, None)[:-1] + start
                )
        self.structure_offset[-1] = self.n_environments

    def _whole(self, part: int, name: str) -> NDArray[Any]:
        key = (self.folder.path, part, name)
        return _cache.get(key, lambda: self._parts[part].rows(name, 0, None))

    def _chunk(self, part: int, name: str, chunk: int) -> NDArray[Any]:
        start = chunk * CHUNK_ROWS
        rows = self._parts[part].rows
        key = (self.folder.path, part, name, chunk)
        return _cache.get(key, lambda: rows(name, start, start + CHUNK_ROWS))

    def read(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows ``start:stop`` of an array over environments."""
        found: list[NDArray[Any]] = []
        while start < stop:
            part = int(np.searchsorted(self.part_edges, start, side="right")) - 1
            local = start - int(self.part_edges[part])
            end = min(stop, int(self.part_edges[part + 1]))
            chunk, row = divmod(local, CHUNK_ROWS)
            rows = self._chunk(part, name, chunk)[row : row + end - start]
            found.append(rows)
            start += len(rows)
        return np.concatenate(found) if len(found) != 1 else found[0]

    def forces(self, start: int, stop: int) -> NDArray[np.float64]:
        """(stop - start, 3) forces of environments, NaN where unknown."""
        found = np.full((stop - start, 3), np.nan)
        at = start
        while at < stop:
            part = int(np.searchsorted(self.part_edges, at, side="right")) - 1
            end = min(stop, int(self.part_edges[part + 1]))
            if self._has_forces[part]:
                found[at - start : end - start] = self.read("force", at, end)
            at = end
        return found

    def structure(self, name: str, index: int) -> NDArray[Any]:
        """Row ``index`` of an array over structures."""
        part, local = self._locate(index)
        chunk, row = divmod(local, CHUNK_ROWS)
        return np.asarray(self._chunk(part, name, chunk)[row])

    def over_structures(self, name: str) -> NDArray[Any]:
        """A whole array over structures (energy, source_frame, ...)."""
        return np.concatenate([part.rows(name, 0, None) for part in self._parts])

    @cached_property
    def energy(self) -> NDArray[np.float64]:
        """(n_structures,) total energies, NaN where unknown."""
        return self.over_structures("energy")

    @cached_property
    def weight(self) -> NDArray[np.float64]:
        """(n_structures,) weights in the loss, of all rows of a structure; 1 by default."""
        if not self.is_weighted:
            return np.ones(self.n_structures)
        weight = self.over_structures("weight")
        return np.where(np.isnan(weight), 1.0, weight)

    @property
    def is_weighted(self) -> bool:
        """Whether structures have weights of their own."""
        return self.folder.settings.get("weight") is not None

    @cached_property
    def volume(self) -> NDArray[np.float64]:
        """(n_structures,) volumes of the cells in Å³."""
        return cell_volume(self.over_structures("cell"))

    @property
    def symbols(self) -> str:
        """Species as people write them."""
        return " ".join(chemical_symbols[z] for z in self.species)

    @cached_property
    def n_repeats(self) -> int:
        """Structures that repeat an earlier one exactly."""
        digests = self.over_structures("digest")
        return self.n_structures - len(np.unique(digests, axis=0))

    def contents(self, runs: Iterable[tuple[int, int]], labels: Sequence[str] = ()) -> list[str]:
        """Digests of runs of environments: equal ones have equal atoms in equal structures.

        Parameters
        ----------
        runs : iterable of (int, int)
            Environments at which each begins and ends.
        labels : sequence of str
            Which of "energy", "forces", "stress" count as well, and with them the groups.

        Returns
        -------
        list of str
            One for each run.
        """
        digests = self.over_structures("digest")
        stress = self.over_structures("stress") if "stress" in labels else np.empty(0)
        found = []
        for start, stop in runs:
            first, last = (int(self.structure_of(at, at + 1)[0]) for at in (start, stop - 1))
            begin, end = self.structure_offset[[first, last]].tolist()
            ends = (start - begin, stop - end)
            digest = hashlib.blake2b(repr(ends).encode(), digest_size=16)
            digest.update(digests[first : last + 1].tobytes())
            if labels:
                if "energy" in labels:
                    digest.update(self.energy[first : last + 1].tobytes())
                if "forces" in labels:
                    digest.update(self.forces(start, stop).tobytes())
                if "stress" in labels:
                    digest.update(stress[first : last + 1].tobytes())
                names = [self.group_names[g] for g in self.group[first : last + 1]]
                digest.update("\0".join(names).encode())
            found.append(digest.hexdigest())
        return found

    def sources(self) -> tuple[NDArray[np.int32], list[str]]:
        """The source file of every structure: index, and file names."""
        names: dict[str, int] = {}
        index: list[NDArray[np.int32]] = []
        for part in self._parts:
            here = part.names("source_files")
            number = np.asarray([names.setdefault(n, len(names)) for n in here], np.int32)
            index.append(number[part.rows("source_file", 0, None)])
        return np.concatenate(index), list(names)

    def _locate(self, index: int) -> tuple[int, int]:
        part = int(np.searchsorted(self._part_structure, index, side="right")) - 1
        return part, index - int(self._part_structure[part])

    def is_sorted_by_space(self, index: int) -> bool:
        """Whether a structure's environments are stored by spatial bins."""
        return bool(np.any(self.structure("bin_shape", index)))

    def structure_of(self, start: int, stop: int) -> NDArray[np.int64]:
        """The structure of each environment ``start:stop``."""
        at = np.arange(start, stop)
        return np.searchsorted(self.structure_offset, at, side="right") - 1

    def pieces(self, start: int, stop: int, cutoff: float) -> list[Piece]:
        """What a descriptor needs for environments ``start:stop``: frames, cuts of large ones."""
        if start >= stop:
            return []
        first, last = self.structure_of(start, start + 1)[0], self.structure_of(stop - 1, stop)[0]
        return [self._piece(int(s), start, stop, cutoff) for s in range(first, last + 1)]

    def whole(self, index: int) -> Piece:
        """A whole structure in stored order, however large."""
        begin, end = self.structure_offset[index : index + 2].tolist()
        return Piece(
            self.read("position", begin, end),
            self.read("species", begin, end),
            self.structure("cell", index),
            self.structure("pbc", index),
        )

    def _piece(self, index: int, start: int, stop: int, cutoff: float) -> Piece:
        begin, end = int(self.structure_offset[index]), int(self.structure_offset[index + 1])
        a, b = max(start, begin), min(stop, end)
        if self.is_sorted_by_space(index):
            row = begin + self.read("source_atom", a, b)
            if np.isfinite(cutoff):
                piece = self._cut(index, begin, a - begin, b - begin, cutoff)
                return replace(piece, row=row)
        else:
            row = np.arange(a, b)
        centre = None if (a, b) == (begin, end) else np.arange(a - begin, b - begin)
        return replace(self.whole(index), centre=centre, row=row)

    def _cut(self, index: int, begin: int, start: int, stop: int, cutoff: float) -> Piece:
        part, local = self._locate(index)
        rows = slice(*self._whole(part, "bin_offset")[local : local + 2])

        def read(a: int, b: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
            x, y = begin + a, begin + b
            return (
                self.read("position", x, y),
                self.read("species", x, y),
                self.read("source_atom", x, y),
            )

        return cut_cluster(
            read,
            bin_shape=self.structure("bin_shape", index),
            bin_box=self.structure("bin_box", index),
            bin_origin=self.structure("bin_origin", index),
            bin_range=self._whole(part, "bin_range")[rows],
            cell=self.structure("cell", index),
            pbc=self.structure("pbc", index),
            start=start,
            stop=stop,
            cutoff=cutoff,
        )


@lru_cache(maxsize=4)
def _open(path: str, digest: str) -> StructureStore:
    return StructureStore(StageFolder(Path(path)))


def open_structures(folder: StageFolder) -> StructureStore:
    """The structure store of a finished stage, opened once per process."""
    return _open(str(folder.path), folder.output_digest())
