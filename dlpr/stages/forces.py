"""Rigidities of the components of the forces of one set (FD24 table 1), and the fitted forces."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlpr.core.models import FeatureMap
from dlpr.core.rows import FloatArray
from dlpr.descriptors import Descriptor
from dlpr.descriptors.gradients import derivative_rows
from dlpr.stages.factor import open_factors
from dlpr.stages.features import open_descriptor
from dlpr.stages.force_tasks import TASK_ATOMS, force_edges, force_piece, structures_of
from dlpr.stages.structures import StructureStore, open_structures
from dlpr.store.files import Json
from dlpr.store.folder import StageFolder
from dlpr.structures.spatial import BIN_EDGE, SORTED_FRAME_ATOMS

SOLVE_ROWS = 1536
"""Rows that are solved at once: more than a tile that is read for them costs."""
RIGIDITY, FORCES = "environment_pr_forces", "environment_forces"
ATTRIBUTES: dict[str, Json] = {
    RIGIDITY: {"of": "-dE/dr of the total energy, against the Hessian of all columns"},
    FORCES: {"of": "-dE/dr of the total energy", "units": "eV/Å"},
}
"""What stands beside them in a result."""


def plan(
    work: Path, structures: StageFolder, factor: StageFolder, features: Json, numerics: Json
) -> StageFolder:
    """Tasks of whole structures; a structure that is stored by space is cut into several."""
    store, model = open_structures(structures), factor.settings["model"]
    settings: Json = {
        "features": features,
        "model": {name: model[name] for name in ("rows", "centre_species", "baseline")},
        "numerics": {name: numerics[name] for name in ("threads", "kernel")},
        "solve_rows": SOLVE_ROWS,
        "edges": force_edges(store, np.diff(store.structure_offset), TASK_ATOMS),
    }
    order = [SORTED_FRAME_ATOMS, BIN_EDGE]  # of the atoms in a large frame
    same = {name: value for name, value in settings.items() if name != "edges"}
    same |= {"factor": factor.output_digest(), "order": order}
    contents = store.contents(pairwise(settings["edges"]))
    tasks = [{"settings": same, "content": content} for content in contents]
    inputs = {"structures": structures, "factor": factor}
    return StageFolder.create(work, "forces", settings, inputs, tasks)


def run(folder: StageFolder, task: int) -> tuple[dict[str, Any], Json]:
    """Rows of the forces on the atoms of one task, solved and forgotten some at a time."""
    settings = folder.settings
    start, stop = settings["edges"][task : task + 2]
    store = open_structures(folder.input("structures"))
    fit = open_factors(folder.input("factor")).fit
    calculator = open_descriptor(settings["features"]["descriptor"])
    found: dict[str, list[FloatArray]] = {RIGIDITY: []}
    if fit.weights is not None:
        found[FORCES] = []
    blocks = _rows(store, calculator, fit.model.map, start, stop)
    for rows in _joined(blocks, settings["solve_rows"]):
        rigidity, force = fit.derivatives(rows)
        found[RIGIDITY].append(rigidity)
        if force is not None:
            found[FORCES].append(force)
    arrays = {name: np.concatenate(parts).reshape(-1, 3) for name, parts in found.items()}
    return folder.write_part(task, arrays), {"arrays": list(arrays)}


def _rows(
    store: StructureStore, calculator: Descriptor, mapping: FeatureMap, start: int, stop: int
) -> Iterator[FloatArray]:
    """Rows of the forces on some atoms, structure by structure."""
    for index in structures_of(store, start, stop):
        piece = force_piece(store, index, start, stop, calculator.cutoff)
        found = derivative_rows(calculator, piece, mapping, forces=True, stress=False).forces
        assert found is not None
        yield found


def _joined(blocks: Iterator[FloatArray], size: int) -> Iterator[FloatArray]:
    """The same rows, ``size`` of them at a time."""
    held: list[FloatArray] = []
    for block in blocks:
        held.append(block)
        count = sum(map(len, held))
        if count < size:
            continue
        rows = held[0] if len(held) == 1 else np.concatenate(held)
        stop = count // size * size
        for at in range(0, stop, size):
            yield rows[at : at + size]
        held = [rows[stop:].copy()]
    if held and len(rows := np.concatenate(held)):
        yield rows


class ForceRows:
    """What a finished stage says of the forces on environments, in stored order."""

    def __init__(self, folder: StageFolder) -> None:
        self._folder, self._edges = folder, np.array(folder.settings["edges"])
        self.names: tuple[str, ...] = tuple(folder.facts(0)["arrays"])
        self._held: tuple[int, dict[str, NDArray[Any]]] = -1, {}

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Tasks that have a run of environments, and which of their rows these are."""
        first = int(np.searchsorted(self._edges, start, side="right")) - 1
        last = int(np.searchsorted(self._edges, stop, side="left"))
        for task in range(first, last):
            edge = int(self._edges[task])
            yield task, max(start - edge, 0), min(stop, int(self._edges[task + 1])) - edge

    def contents(self, start: int, stop: int) -> list[list[Any]]:
        """All that decides what `read` gives."""
        receipts = self._folder.receipts()
        return [[receipts[task].content, a, b] for task, a, b in self._pieces(start, stop)]

    def read(self, start: int, stop: int) -> dict[str, NDArray[Any]]:
        """Arrays (stop - start, 3) by name."""
        found = []
        for task, a, b in self._pieces(start, stop):
            if self._held[0] != task:
                self._held = task, self._folder.read_part(task, self.names)
            found.append({name: rows[a:b] for name, rows in self._held[1].items()})
        return {name: np.concatenate([part[name] for part in found]) for name in self.names}
