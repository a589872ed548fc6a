"""Structures in files, stages done task by task, and a descriptor of whole numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import write
from numpy.typing import NDArray

from dlpr.core.blas import blas_kernel
from dlpr.stages import ingest as ingest_stage
from dlpr.stages import rows as rows_stage
from dlpr.stages.tasks import run_task
from dlpr.store.files import Json
from dlpr.store.folder import StageFolder
from dlpr.structures.frames import Piece

SELECTION: Json = {
    "keys": {},
    "units": {"length": "angstrom", "energy": "eV"},
    "type_map": {},
    "where": None,
    "group_by": "group",
    "minimum_distance": 0.1,
}
MODEL: Json = {"rows": "sum", "centre_species": "separate"}


class Exact:
    """Coordinates, which are whole numbers here: every sum of features is exact."""

    n_features, cutoff, reads_rows = 3, 2.0, False

    def __init__(self, hypers: Mapping[str, Any], species: Sequence[int]) -> None:
        self.species = tuple(species)

    @property
    def components(self) -> dict[str, slice]:
        return {"exact": slice(0, 3)}

    @property
    def columns(self) -> dict[str, NDArray[Any]]:
        return {"axis": np.arange(3)}

    def settings(self) -> dict[str, Any]:
        return {"exact": {}, "species": list(self.species)}

    def compute(self, pieces: Sequence[Piece]) -> NDArray[np.float64]:
        found = [p.position if p.centre is None else p.position[p.centre] for p in pieces]
        return np.concatenate(found)


def frame(n_atoms: int, seed: int, group: str = "all", symbols: str = "SiGe") -> Atoms:
    """Atoms on different points of a grid, in no cell."""
    rng = np.random.default_rng(seed)
    points = rng.permutation(20**3)[:n_atoms]
    positions = 3.0 * np.stack(np.unravel_index(points, (20, 20, 20)), axis=1)
    numbers = rng.choice(Atoms(symbols).numbers, n_atoms)
    atoms = Atoms(numbers, positions)
    atoms.info |= {"energy": float(seed), "group": group}
    return atoms


def finished(folder: StageFolder) -> StageFolder:
    """A stage whose tasks are done, those that are adopted excepted."""
    folder.adopt(folder.missing())
    for task in folder.missing():
        run_task(str(folder.path), task)
    return folder


def structures_of(folder: Path, files: Mapping[str, Sequence[Atoms]]) -> StageFolder:
    """The structure store of files, taken in the order of their names."""
    for name, frames in files.items():
        write(folder / name, list(frames), format="extxyz")
    work = folder / "work"
    names = sorted(files)
    index = finished(ingest_stage.plan_index(work, names, folder, full_hash=True))
    return finished(ingest_stage.plan(work, index, SELECTION))


def features_settings(task_environments: int, block_environments: int = 1 << 10) -> Json:
    return {
        "descriptor": {"exact": {}, "species": [14, 32]},
        "dtype": "float64",
        "block_environments": block_environments,
        "task_environments": task_environments,
    }


def rows_of(structures: StageFolder, task_environments: int) -> StageFolder:
    """The row store of a set, its features computed as they are needed."""
    settings = features_settings(task_environments)
    plan = rows_stage.plan(structures.path.parent, structures, settings, {"kind": "linear"})
    return finished(plan)


def numerics(tile_columns: int = 4096, fold_block_rows: int = 4) -> Json:
    return {
        "threads": 1,
        "factor_threads": 1,
        "kernel": blas_kernel(),
        "fold_block_rows": fold_block_rows,
        "partials_nbytes": 1 << 30,
        "tile_columns": tile_columns,
    }
