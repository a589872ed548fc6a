"""Features of environments: read from a store where they are stored, else computed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from dlpr.descriptors import Descriptor, descriptor
from dlpr.stages.structures import UNREADABLE, StructureStore, open_structures
from dlpr.store.arrays import checksums, create_array, create_group, write_rows
from dlpr.store.files import (
    Json,
    canonical_json,
    explained,
    fsync_directory,
    fsync_file,
    partial_path,
)
from dlpr.store.folder import FORMAT_VERSION, StageFolder

ARRAY = "environment_feature"


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
    store = open_structures(structures)
    n_tasks = -(-store.n_environments // features["task_environments"])
    folder = StageFolder.create(
        work, "features", features, {"structures": structures}, n_tasks, dry=not create
    )
    if create and folder.missing():
        _lay_out(folder.path / "features.zarr", store, features)
    return folder


def _lay_out(target: Path, store: StructureStore, features: Json) -> None:
    """Put the empty store there by one rename.

    Where there is one, its metadata and columns are replaced: they may be why tasks are missing.
    """
    calculator = open_descriptor(features["descriptor"])
    partial = partial_path(target)
    attributes = {"descriptor": features["descriptor"], "format_version": FORMAT_VERSION}
    with explained(target):
        try:
            group = create_group(partial, attributes)
            create_array(
                group,
                ARRAY,
                (store.n_environments, calculator.n_features),
                features["dtype"],
                ("environment", "feature"),
                features["block_environments"],
            )
            for name, values in calculator.columns.items():
                dimension = ("feature",)
                column = create_array(
                    group, f"feature_{name}", values.shape, values.dtype, dimension, len(values)
                )
                column[:] = values
            _put(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _put(partial: Path, target: Path) -> None:
    """Give a store its name; where another has it, replace that one's files one by one."""
    try:
        partial.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        for file in [path for path in partial.rglob("*") if path.is_file()]:
            place = target / file.relative_to(partial)
            place.parent.mkdir(exist_ok=True)
            file.replace(place)


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
    start = task * settings["task_environments"]
    stop = min(start + settings["task_environments"], source.structures.n_environments)
    path = folder.path / "features.zarr"
    array = zarr.open_group(str(path), mode="r+")[ARRAY]
    assert isinstance(array, zarr.Array)
    for a, _, features in source.blocks(start, stop):
        write_rows(array, a, features, path)
    block = settings["block_environments"]
    names = [f"features.zarr/{ARRAY}/c.{k}.0" for k in range(start // block, -(-stop // block))]
    with explained(path):
        for name in names:
            fsync_file(folder.path / name)
        fsync_directory(path / ARRAY)
    found = checksums([folder.path / name for name in names], folder.path)
    return found, {"n_environments": stop - start}


class FeatureSource:
    """Features of a set by runs of environments, from a store where there is one.

    Parameters
    ----------
    structures : StageFolder
    features : dict
        As for `plan`.
    stored : bool
        False: never look for a feature store.
    """

    def __init__(self, structures: StageFolder, features: Json, stored: bool = True) -> None:
        self.structures = open_structures(structures)
        self.descriptor = open_descriptor(features["descriptor"])
        self._features = features
        self._store: StageFolder | None = None
        if stored:
            folder = plan(structures.path.parent, structures, features, create=False)
            self._store = folder if (folder.path / "plan.json").exists() else None

    def blocks(self, start: int, stop: int) -> Iterator[tuple[int, int, NDArray[np.float64]]]:
        """Blocks ``(a, b, features)`` of environments ``start:stop``.

        Blocks end at multiples of ``block_environments``; features are (b - a, n_features).
        """
        size = self._features["block_environments"]
        while start < stop:
            end = min(stop, (start // size + 1) * size)
            yield start, end, self._block(start, end)
            start = end

    def _block(self, start: int, stop: int) -> NDArray[np.float64]:
        task = start // self._features["task_environments"]
        if self._store is not None and self._store.receipt(task) is not None:
            return self._read(self._store, task, start, stop)
        pieces = self.structures.pieces(start, stop, self.descriptor.cutoff)
        features = self.descriptor.compute(pieces)
        if self._features["dtype"] != "float64":
            features = features.astype(self._features["dtype"]).astype(np.float64)
        return features

    def _read(self, store: StageFolder, task: int, start: int, stop: int) -> NDArray[np.float64]:
        try:
            array = zarr.open_group(str(store.path / "features.zarr"), mode="r")[ARRAY]
            assert isinstance(array, zarr.Array)
            return np.asarray(array[start:stop], np.float64)
        except UNREADABLE as error:
            raise store.corrupt(task, f"features.zarr/{ARRAY}", error) from error

    def environment_block(self, start: int, stop: int) -> NDArray[np.int64]:
        """Index of each environment's central species among the descriptor's species."""
        species = self.structures.read("species", start, stop)
        return np.searchsorted(np.asarray(self.descriptor.species), species)
