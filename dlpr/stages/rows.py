"""Structure rows: the features of each structure's environments, summed per central species.

Sums carry no convention: the factor 1/N, the regularizer, the scale and whether species share
weights enter later, so a change of any of them starts from here.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlpr.core.rows import Blocks, sum_rows
from dlpr.stages.features import FeatureSource, open_descriptor
from dlpr.stages.structures import StructureStore, open_structures
from dlpr.store.files import Json
from dlpr.store.folder import StageFolder

PART_NBYTES = 1 << 27
"""Bytes of rows that one task may hold; small structures make many rows."""


def plan(work: Path, structures: StageFolder, features: Json) -> StageFolder:
    """Tasks of about ``task_environments`` whose rows fit `PART_NBYTES`."""
    store = open_structures(structures)
    calculator = open_descriptor(features["descriptor"])
    n_columns = calculator.n_features * len(calculator.species)
    most_rows = max(1, PART_NBYTES // (8 * n_columns))
    edges = [0]
    while edges[-1] < store.n_environments:
        stop = min(edges[-1] + features["task_environments"], store.n_environments)
        first = int(store.structure_of(edges[-1], edges[-1] + 1)[0])
        if first + most_rows < store.n_structures:
            stop = min(stop, int(store.structure_offset[first + most_rows]))
        edges.append(stop)
    settings = {"features": features, "edges": edges}
    return StageFolder.create(work, "rows", settings, {"structures": structures}, len(edges) - 1)


def run(folder: StageFolder, task: int) -> tuple[dict[str, Any], Json]:
    """Sum the features of one run of environments into the rows of their structures."""
    settings = folder.settings
    source = FeatureSource(folder.input("structures"), settings["features"])
    store = source.structures
    start, stop = settings["edges"][task : task + 2]
    blocks = Blocks(source.descriptor.n_features, len(source.descriptor.species))
    structure = store.structure_of(start, stop)
    first, last = int(structure[0]), int(structure[-1])
    rows = np.zeros((last - first + 1, blocks.n_columns))
    square = 0.0
    for a, b, features in source.blocks(start, stop):
        local = structure[a - start : b - start] - structure[a - start]
        at = int(structure[a - start]) - first
        block = source.environment_block(a, b)
        rows[at : at + local[-1] + 1] += sum_rows(
            features, block, local, int(local[-1]) + 1, blocks
        )
        square += float(np.einsum("ij,ij->", features, features))
    group = store.group[first : last + 1]
    arrays: dict[str, NDArray[Any]] = {}
    for number in np.unique(group):
        of_group = np.flatnonzero(group == number)
        arrays[f"structure_{number}"] = first + of_group
        arrays[f"rows_{number}"] = rows[of_group]
    facts = {"first": first, "last": last, "square": square, "n_environments": stop - start}
    return folder.write_part(task, arrays), facts


class RowStore:
    """Structure rows of a finished stage, in the order (group, structure).

    Attributes
    ----------
    structures : StructureStore
    order : (n_structures,) int64
        The structures in the order of their rows.
    mean_square : float
        Mean over training environments of |x|^2: the square of scikit-matter's scale.
    """

    def __init__(self, folder: StageFolder) -> None:
        self.folder = folder
        self.structures: StructureStore = open_structures(folder.input("structures"))
        receipts = folder.receipts()
        self._first = np.array([r.facts["first"] for r in receipts])
        self._last = np.array([r.facts["last"] for r in receipts])
        n_environments = sum(r.facts["n_environments"] for r in receipts)
        self.mean_square = sum(r.facts["square"] for r in receipts) / n_environments
        self.order = np.argsort(self.structures.group, kind="stable")

    @property
    def n_atoms(self) -> NDArray[np.int64]:
        """(n_structures,) environments of each structure."""
        return np.diff(self.structures.structure_offset)

    def blocks(
        self, start: int, stop: int, n_rows: int
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """Blocks ``(structure, rows)`` of rows ``start:stop`` of `order`, ``n_rows`` at a time."""
        held: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []
        count = 0
        for structure, rows in self._read(start, stop):
            held.append((structure, rows))
            count += len(rows)
            if count >= n_rows:
                ids, values = _join(held)
                whole = count // n_rows * n_rows
                for a in range(0, whole, n_rows):
                    yield ids[a : a + n_rows], values[a : a + n_rows]
                held, count = [(ids[whole:], values[whole:])], count - whole
        if count:
            yield _join(held)

    def _read(
        self, start: int, stop: int
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """Rows part by part; a structure cut between tasks is put together in task order."""
        wanted = self.order[start:stop]
        groups = self.structures.group[wanted]
        for number in np.unique(groups):
            ids = wanted[groups == number]
            tasks = np.flatnonzero((self._first <= ids[-1]) & (self._last >= ids[0]))
            open_id, open_row = np.empty(0, np.int64), np.empty((0, 0))
            for task in tasks:
                names = (f"structure_{number}", f"rows_{number}")
                part = self.folder.read_part(int(task), names)
                if not part:
                    continue
                inside = (part[names[0]] >= ids[0]) & (part[names[0]] <= ids[-1])
                structure, rows = part[names[0]][inside], part[names[1]][inside]
                if len(structure) == 0:
                    continue
                if len(open_id) and open_id[0] == structure[0]:
                    rows[0] = open_row[0] + rows[0]
                elif len(open_id):
                    yield open_id, open_row
                open_id, open_row = structure[-1:], rows[-1:]
                yield structure[:-1], rows[:-1]
            if len(open_id):
                yield open_id, open_row


def _join(
    held: list[tuple[NDArray[np.int64], NDArray[np.float64]]],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    held = [pair for pair in held if len(pair[0])]
    if len(held) == 1:
        return held[0]
    return np.concatenate([pair[0] for pair in held]), np.concatenate([pair[1] for pair in held])


@lru_cache(maxsize=4)
def _open(path: str, digest: str) -> RowStore:
    return RowStore(StageFolder(Path(path)))


def open_rows(folder: StageFolder) -> RowStore:
    """The row store of a finished stage, opened once per process."""
    return _open(str(folder.path), folder.output_digest())
