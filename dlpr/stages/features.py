"""Features of environments: read from a store where they are stored, else computed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlpr.descriptors import Descriptor, descriptor
from dlpr.stages.structures import (
    CHUNK_ROWS,
    UNREADABLE,
    StructureStore,
    open_structures,
    part_name,
)
from dlpr.store.arrays import (
    check_metadata,
    checksums,
    create_array,
    create_group,
    map_chunk,
    store_files,
    write_rows,
)
from dlpr.store.files import (
    Json,
    atomic_folder,
    canonical_json,
    explained,
    partial_path,
    read_ahead,
)
from dlpr.store.folder import FORMAT_VERSION, StageFolder
from dlpr.structures.spatial import BIN_EDGE, SORTED_FRAME_ATOMS

ARRAY = "environment_feature"
COLUMNS = "columns.zarr"
"""What each column is: arrays ``feature_*``."""
ROWS_NBYTES = 1 << 27
"""Bytes of structure rows that one task may make; small structures make many."""


def plan(work: Path, structures: StageFolder, features: Json, create: bool = True) -> StageFolder:
    """The feature store of a set under ``features``: descriptor, dtype, block and task sizes.

    Parameters
    ----------
    features : dict
        ``descriptor`` (settings of a descriptor), ``dtype``, ``block_environments`` (rows of a
        chunk), ``task_environments``.
    create : bool
        False: only say where it would be.
    """
    tasks = task_keys(structures, features, features)
    inputs = {"structures": structures}
    folder = StageFolder.create(work, "features", features, inputs, tasks, dry=not create)
    if create and not (folder.path / COLUMNS).exists():
        _write_columns(folder.path / COLUMNS, features)
    return folder


def _write_columns(target: Path, features: Json) -> None:
    calculator = open_descriptor(features["descriptor"])
    attributes = {"descriptor": features["descriptor"], "format_version": FORMAT_VERSION}
    partial = partial_path(target)
    with explained(target):
        try:
            group = create_group(partial, attributes)
            for name, values in calculator.columns.items():
                column = create_array(
                    group, f"feature_{name}", values.shape, values.dtype, ("feature",), len(values)
                )
                column[:] = values
            partial.rename(target)
        except OSError:
            if not target.is_dir():  # somebody who does the same was quicker
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def task_keys(
    structures: StageFolder, features: Json, settings: Json, labels: Sequence[str] = ()
) -> list[Json]:
    """All that decides a task over the environments of `task_edges`, for every task.

    Parameters
    ----------
    settings : dict
        What the stage adds to the atoms of a task.
    labels : sequence of str
        Which labels of the structures enter as well, see `StructureStore.contents`.
    """
    runs = pairwise(task_edges(structures, features).tolist())
    content = open_structures(structures).contents(runs, labels)
    order = [SORTED_FRAME_ATOMS, BIN_EDGE]  # of the atoms in a large frame
    common = [settings, order]
    keys: list[Json] = [{"settings": common, "content": one} for one in content]
    if open_descriptor(features["descriptor"]).reads_rows:  # equal atoms have different rows
        for key, start in zip(keys, task_edges(structures, features).tolist(), strict=False):
            key["start"] = start
    return keys


def task_edges(structures: StageFolder, features: Json) -> NDArray[np.int64]:
    """Environments (n_tasks + 1,) at which tasks begin and end: a function of the parts alone.

    No task crosses a part of the structures, and none has more structures than `ROWS_NBYTES` of
    rows hold. So data that come at the end of a file, or in a file of their own, move no task.
    """
    return _task_edges(str(structures.path), structures.output_digest(), canonical_json(features))


@lru_cache(maxsize=8)
def _task_edges(path: str, digest: str, features: bytes) -> NDArray[np.int64]:
    store, settings = open_structures(StageFolder(Path(path), digest)), json.loads(features)
    calculator = open_descriptor(settings["descriptor"])
    width = calculator.n_features * len(calculator.species)
    most_structures = max(1, ROWS_NBYTES // (8 * width))
    offset, edges = store.structure_offset, [0]
    for part_stop in store.part_edges[1:].tolist():
        while edges[-1] < part_stop:
            first = int(np.searchsorted(offset, edges[-1], side="right")) - 1
            limit = int(offset[min(first + most_structures, store.n_structures)])
            edges.append(min(edges[-1] + settings["task_environments"], part_stop, limit))
    return np.array(edges)


@lru_cache(maxsize=8)
def _descriptor(settings: bytes) -> Descriptor:
    return descriptor(json.loads(settings))


def open_descriptor(settings: Json) -> Descriptor:
    """The descriptor of a plan's settings, made once per process."""
    return _descriptor(canonical_json(settings))


def run(folder: StageFolder, task: int) -> tuple[dict[str, Any], Json]:
    """Compute and store the features of one run of environments."""
    settings = folder.settings
    source = FeatureSource(folder.input("structures"), settings, stored=False)
    start, stop = source.edges[task : task + 2].tolist()
    target = folder.path / part_name(task)
    with atomic_folder(target) as partial:
        array = create_array(
            create_group(partial, {"format_version": FORMAT_VERSION}),
            ARRAY,
            (stop - start, source.descriptor.n_features),
            settings["dtype"],
            ("environment", "feature"),
            settings["block_environments"],
        )
        for a, _, features in source.blocks(task):
            write_rows(array, a - start, features, partial)
    return checksums(store_files(target), folder.path), {"n_environments": stop - start}


@lru_cache(maxsize=8)
def _store_of(path: str, digest: str, features: bytes) -> Path:
    """Where the features of a set would be stored."""
    structures = StageFolder(Path(path), digest)
    return plan(structures.path.parent, structures, json.loads(features), create=False).path


class FeatureSource:
    """Features of a set, block by block, from a store where there is one.

    Parameters
    ----------
    structures : StageFolder
    features : dict
        As for `plan`.
    stored : bool
        False: never look for a feature store.

    Attributes
    ----------
    structures : StructureStore
    descriptor : Descriptor
    edges : (n_tasks + 1,) int64
        Environments of each task, see `task_edges`.
    """

    def __init__(self, structures: StageFolder, features: Json, stored: bool = True) -> None:
        self.structures: StructureStore = open_structures(structures)
        self.descriptor = open_descriptor(features["descriptor"])
        self.edges = task_edges(structures, features)
        self._features = features
        self._store: StageFolder | None = None
        if stored:
            digest = structures.output_digest()
            folder = _store_of(str(structures.path), digest, canonical_json(features))
            self._store = StageFolder(folder) if (folder / "plan.json").exists() else None

    @classmethod
    def of_rows(cls, rows: StageFolder) -> FeatureSource:
        """The features that rows are made of."""
        return cls(rows.input("structures"), rows.settings["features"])

    def blocks(self, task: int) -> Iterator[tuple[int, int, NDArray[np.float64]]]:
        """Blocks ``(a, b, features)`` of a task's environments; features (b - a, n_features).

        They are read-only where they are stored.
        """
        first, last = self.edges[task : task + 2].tolist()
        size = self._features["block_environments"]
        store = self._store
        stored = store is not None and store.receipt(task) is not None
        if store is not None and stored:
            check_metadata(store, task)
        for start in range(first, last, size):
            stop = min(start + size, last)
            if stored:
                yield start, stop, self._read(task, (start - first) // size, last - first)
            else:
                yield start, stop, self._compute((start, stop))

    def some(self, chosen: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Features and central species of a few environments (n,), given in ascending order."""
        runs = np.split(chosen, np.flatnonzero(np.diff(chosen) > 1) + 1)
        ends = [(int(run[0]), int(run[-1]) + 1) for run in runs]
        species = np.concatenate([self.environment_species(a, b) for a, b in ends])
        return self._compute(*ends), species

    def _compute(self, *ends: tuple[int, int]) -> NDArray[np.float64]:
        cutoff = self.descriptor.cutoff
        pieces = [piece for a, b in ends for piece in self.structures.pieces(a, b, cutoff)]
        features = self.descriptor.compute(pieces)
        if self._features["dtype"] != "float64":
            features = features.astype(self._features["dtype"]).astype(np.float64)
        return features

    def _read(self, task: int, chunk: int, n_rows: int) -> NDArray[np.float64]:
        assert self._store is not None
        size = min(self._features["block_environments"], n_rows)
        name = f"{part_name(task)}/{ARRAY}/c.{chunk}.0"
        read_ahead(self._store.path / f"{part_name(task)}/{ARRAY}/c.{chunk + 1}.0")
        shape = (size, self.descriptor.n_features)
        try:
            rows = map_chunk(self._store.path / name, shape, self._features["dtype"])
        except UNREADABLE as error:
            raise self._store.corrupt(task, name, error) from error
        return np.asarray(rows[: n_rows - chunk * size], np.float64)

    def environment_species(self, start: int, stop: int) -> NDArray[np.int64]:
        """Index of each environment's central species among the descriptor's species."""
        species = self.structures.read("species", start, stop)
        return np.searchsorted(np.asarray(self.descriptor.species), species)

    def count(self, structures: NDArray[np.int64]) -> NDArray[np.int64]:
        """Atoms (n, n_species) of structures, given in ascending order."""
        offset = self.structures.structure_offset
        found = np.zeros((len(structures), len(self.descriptor.species)), np.int64)
        begin = 0
        for run in np.split(structures, np.flatnonzero(np.diff(structures) > 1) + 1):
            if len(run):
                start, stop = int(offset[run[0]]), int(offset[run[-1] + 1])
                for a in range(start, stop, CHUNK_ROWS):
                    b = min(a + CHUNK_ROWS, stop)
                    row = begin + self.structures.structure_of(a, b) - run[0]
                    np.add.at(found, (row, self.environment_species(a, b)), 1)
                begin += len(run)
        return found
