"""What is said of environments, read in the order of the source files."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlpr.stages.features import task_edges
from dlpr.stages.forces import ForceRows
from dlpr.stages.rigidity import arrays_of
from dlpr.stages.structures import open_structures
from dlpr.store.files import Json
from dlpr.store.folder import StageFolder

SPECIES = "environment_species"


class SourceOrder:
    """The environments of one set: a frame that is stored by spatial bins is put back in order.

    Parameters
    ----------
    rigidity : StageFolder
        Finished.
    forces : StageFolder, optional
        The "forces" stage of the same set, finished.

    Attributes
    ----------
    structures : StructureStore
    n_environments : int
    arrays : dict
        By name: dtype, and the shape of what is said of one environment.
    """

    def __init__(self, rigidity: StageFolder, forces: StageFolder | None) -> None:
        self.rigidity = rigidity
        self.structures = open_structures(rigidity.input("structures"))
        self.n_environments = self.structures.n_environments
        of_rigidity = arrays_of(rigidity)
        self._names = tuple(of_rigidity)
        self._edges = task_edges(rigidity.input("structures"), rigidity.settings["features"])
        self._forces = None if forces is None else ForceRows(forces)
        self.arrays: dict[str, tuple[Any, tuple[int, ...]]] = {
            **{name: (dtype, ()) for name, dtype in of_rigidity.items()},
            **dict.fromkeys(self._forces.names if self._forces else (), (np.float64, (3,))),
            SPECIES: (np.uint8, ()),
        }

    def _stored(self, start: int, stop: int) -> tuple[int, int]:
        """Stored environments among which environments ``start:stop`` in source order are."""
        store = self.structures
        first, last = (int(store.structure_of(at, at + 1)[0]) for at in (start, stop - 1))
        if store.is_sorted_by_space(first):
            start = int(store.structure_offset[first])
        if store.is_sorted_by_space(last):
            stop = int(store.structure_offset[last + 1])
        return start, stop

    def _pieces(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """Tasks of the rigidities that have a run of stored environments, and which of them."""
        first = int(np.searchsorted(self._edges, start, side="right")) - 1
        last = int(np.searchsorted(self._edges, stop, side="left"))
        return [
            (first + k, max(a, start), min(b, stop))
            for k, (a, b) in enumerate(pairwise(self._edges[first : last + 1].tolist()))
        ]

    def contents(self, runs: Sequence[tuple[int, int]]) -> list[Json]:
        """All that decides what `read` gives for some runs, and their groups."""
        stored = [self._stored(*run) for run in runs]
        structures = self.structures.contents(stored, ("groups",))
        receipts, found = self.rigidity.receipts(), []
        for (start, stop), (begin, end), content in zip(runs, stored, structures, strict=True):
            pieces = []
            for task, a, b in self._pieces(begin, end):
                edge = int(self._edges[task])
                pieces.append([receipts[task].content, a - edge, b - edge])
            forces = self._forces.contents(begin, end) if self._forces else []
            rows = [start - begin, stop - begin]
            found.append(
                {"rows": rows, "structures": content, "rigidity": pieces, "forces": forces}
            )
        return found

    def read(self, start: int, stop: int) -> dict[str, NDArray[Any]]:
        """Arrays over environments ``start:stop`` in source order, by name."""
        found = {
            name: np.empty((stop - start, *further), dtype)
            for name, (dtype, further) in self.arrays.items()
        }
        offset = self.structures.structure_offset
        for task, a, b in self._pieces(*self._stored(start, stop)):
            structure = self.structures.structure_of(a, b)
            place = offset[structure] + self.structures.read("source_atom", a, b) - start
            own = (place >= 0) & (place < stop - start)
            place, edge = place[own], int(self._edges[task])
            part = self.rigidity.read_part(task, self._names)
            for name in self._names:
                found[name][place] = part[name][a - edge : b - edge][own]
            found[SPECIES][place] = self.structures.read("species", a, b)[own]
            for name, rows in (self._forces.read(a, b) if self._forces else {}).items():
                found[name][place] = rows[own]
        return found
