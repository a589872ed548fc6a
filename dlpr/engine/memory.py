"""Memory of every task, promised before the run: a process's own, and what a task adds to it.

Constants are measured upper bounds (Linux, Python 3.11 to 3.13, NumPy 2, featomic 0.6).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dlpr.core.rows import Blocks
from dlpr.descriptors import Descriptor
from dlpr.errors import ResourceError
from dlpr.stages import ingest as ingest_stage
from dlpr.stages.features import open_descriptor
from dlpr.stages.fold import blocks_of
from dlpr.stages.result import CHUNK_ROWS
from dlpr.stages.rows import PART_NBYTES
from dlpr.stages.structures import open_structures
from dlpr.store.folder import StageFolder
from dlpr.structures.spatial import SORTED_FRAME_ATOMS
from dlpr.units import format_bytes

MIB = 1 << 20
BASE_NBYTES = 256 * MIB
"""A worker with all libraries loaded, and its caches of structures."""
INDEX_NBYTES = 48 * MIB
"""Text of a file under its scan for frames."""
ATOM_NBYTES = 700
"""Ingest, per atom of a run of frames: positions, labels, sorting, the check of distances."""
TEXT_NBYTES = 96 * MIB
"""ASE's parser on one block of rows, whose numbers are Python objects."""
DENSITY = 0.2
"""Atoms per Å³ that are reckoned with where frames are thinner: diamond has 0.18."""
RAGGED = 1.6
"""Atoms around a block of a large frame, over those around a cube of as many centres."""
RESULT_NBYTES = 160
"""Result stage, per environment of a chunk, or of the largest frame stored by space."""


def tasks_at_once(task_nbytes: int, memory_per_worker: int, threads: int) -> int:
    """How many tasks of a size a worker runs at once.

    Raises
    ------
    ResourceError
        If not even one fits.
    """
    free = memory_per_worker - BASE_NBYTES
    if free < task_nbytes:
        raise ResourceError(
            f"memory_per_worker is {format_bytes(memory_per_worker)}; one task needs "
            f"{format_bytes(task_nbytes)} beside the process's own "
            f"{format_bytes(BASE_NBYTES)}: at least "
            f"{format_bytes(task_nbytes + BASE_NBYTES)}. Use fewer workers with more "
            f"memory each, or lower numerics.block_environments."
        )
    return min(threads, free // max(1, task_nbytes))


def ingest_nbytes(largest_frame: int) -> int:
    """One run of frames as text, as records, as arrays."""
    return TEXT_NBYTES + ATOM_NBYTES * max(ingest_stage.TASK_ATOMS, largest_frame)


@dataclass(frozen=True)
class Crowd:
    """What the memory of a descriptor depends on beside its hyperparameters.

    Attributes
    ----------
    largest_frame : int
        Atoms.
    density : float
        Atoms per Å³ of the densest periodic frame.
    """

    largest_frame: int
    density: float


def block_nbytes(calculator: Descriptor, block: int, crowd: Crowd) -> int:
    """A block of features while it is computed, its neighbours and halo included."""
    density, cutoff = max(crowd.density, DENSITY), calculator.cutoff
    n_atoms = crowd.largest_frame
    if n_atoms > SORTED_FRAME_ATOMS:
        n_atoms = int(RAGGED * density * ((block / density) ** (1 / 3) + 2 * cutoff) ** 3)
    return calculator.compute_nbytes(block, n_atoms, density * 4 / 3 * np.pi * cutoff**3)


def rows_nbytes(calculator: Descriptor, block: int, crowd: Crowd, n_rows: int) -> int:
    """A block of features and the rows of the structures of a task."""
    n_columns = calculator.n_features * len(calculator.species)
    return block_nbytes(calculator, block, crowd) + 3 * 8 * n_columns * n_rows


def fold_nbytes(layout: Blocks, block_rows: int) -> int:
    """A partial, the block that is folded into it, and parts of rows."""
    return 2 * 8 * layout.n_columns**2 + 4 * 8 * layout.n_columns * block_rows + 2 * PART_NBYTES


def factors_nbytes(layout: Blocks) -> int:
    """The factored Hessian as a worker reads and holds it."""
    blocks = layout.n_blocks * layout.n_features**2 if layout.n_blocks > 1 else 0
    return 8 * (2 * layout.n_columns**2 + blocks)


def factor_nbytes(layout: Blocks) -> int:
    """Partials combined and factorized."""
    return factors_nbytes(layout) + 3 * 8 * layout.n_columns**2 + 64 * MIB


def rigidity_nbytes(calculator: Descriptor, layout: Blocks, block: int, crowd: Crowd) -> int:
    """The factors, a block of features, its solution, and the rows of its structures."""
    n_columns = calculator.n_features * len(calculator.species)
    rows = 2 * 8 * block * (n_columns + calculator.n_features)
    return factors_nbytes(layout) + block_nbytes(calculator, block, crowd) + rows


def result_nbytes(layout: Blocks, largest_frame: int) -> int:
    """Arrays of some chunks, or of a frame that is put back in source order, and the factors."""
    return factors_nbytes(layout) + RESULT_NBYTES * max(2 * CHUNK_ROWS, largest_frame)


def task_nbytes(folder: StageFolder) -> int:
    """What one task of a stage adds to its process at most, in bytes."""
    return _TASK[folder.stage](folder)


def _ingest(folder: StageFolder) -> int:
    index = folder.input("index")
    largest = 0
    for number in range(index.n_tasks):
        part = index.read_part(number, ("n_atoms", "selected"))
        largest = max(largest, int(part["n_atoms"][part["selected"]].max(initial=0)))
    return ingest_nbytes(largest)


def crowd_of(structures: StageFolder) -> Crowd:
    """How crowded the frames of a finished set are."""
    facts = [receipt.facts for receipt in structures.receipts()]
    return Crowd(max(f["largest_frame"] for f in facts), max(f["density"] for f in facts))


def _features(folder: StageFolder) -> int:
    settings, crowd = folder.settings, crowd_of(folder.input("structures"))
    calculator = open_descriptor(settings["descriptor"])
    return block_nbytes(calculator, settings["block_environments"], crowd)


def _rows(folder: StageFolder) -> int:
    features, edges = folder.settings["features"], np.asarray(folder.settings["edges"])
    offset = open_structures(folder.input("structures")).structure_offset
    first = np.searchsorted(offset, edges[:-1], side="right")
    last = np.searchsorted(offset, edges[1:], side="left")
    calculator = open_descriptor(features["descriptor"])
    n_rows = int((last - first).max()) + 1
    crowd = crowd_of(folder.input("structures"))
    return rows_nbytes(calculator, features["block_environments"], crowd, n_rows)


def _layout(folder: StageFolder) -> Blocks:
    return blocks_of(folder.settings["features"], folder.settings["model"])


def _fold(folder: StageFolder) -> int:
    return fold_nbytes(_layout(folder), folder.settings["numerics"]["fold_block_rows"])


def _rigidity(folder: StageFolder) -> int:
    features = folder.settings["features"]
    calculator = open_descriptor(features["descriptor"])
    crowd = crowd_of(folder.input("structures"))
    return rigidity_nbytes(calculator, _layout(folder), features["block_environments"], crowd)


def _result(folder: StageFolder) -> int:
    sets = [folder.input(name) for name in folder.settings["sets"]]
    frames = [r.facts["largest_frame"] for s in sets for r in s.input("structures").receipts()]
    return result_nbytes(_layout(sets[0]), max(frames))


_TASK: dict[str, Callable[[StageFolder], int]] = {
    "index": lambda folder: INDEX_NBYTES,
    "structures": _ingest,
    "features": _features,
    "rows": _rows,
    "hessian": _fold,
    "triangle": _fold,
    "factor": lambda folder: factor_nbytes(_layout(folder)),
    "rigidity": _rigidity,
    "result": _result,
}
