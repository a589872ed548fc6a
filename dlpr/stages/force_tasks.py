"""Tasks of forces: whole structures, and runs of the atoms of those that are stored by space."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dlpr.stages.structures import StructureStore
from dlpr.structures.frames import Piece

TASK_ATOMS = 4096
"""Atoms of a task: a run of those of a large structure."""


def force_edges(store: StructureStore, size: NDArray[np.int64], most: int) -> list[int]:
    """Cut a set into tasks, none of which crosses a part.

    Parameters
    ----------
    store : StructureStore
    size : (n_structures,)
        Of structures, in any unit.
    most : int
        Of the structures of a task together, if it has several.

    Returns
    -------
    list of int
        First environments of tasks, and the number of environments.
    """
    offset, total = store.structure_offset, np.cumsum(size)
    by_space = np.flatnonzero(np.any(store.over_structures("bin_shape"), axis=1))
    large = {int(offset[index]): int(offset[index + 1]) for index in by_space}
    fixed = np.unique([*store.part_edges, *large, *large.values()]).tolist()
    edges = [0]
    for start, stop in pairwise(fixed):
        if start in large:
            edges += [*range(start + TASK_ATOMS, stop, TASK_ATOMS), stop]
        while edges[-1] < stop:
            first = int(np.searchsorted(offset, edges[-1]))
            limit = total[first] - size[first] + most
            last = int(np.searchsorted(total, limit, side="right"))
            edges.append(min(stop, int(offset[max(last, first + 1)])))
    return edges


def force_piece(store: StructureStore, index: int, start: int, stop: int, cutoff: float) -> Piece:
    """What decides the forces on environments ``start:stop`` of a structure.

    It is the whole structure, or of one that is stored by space those of the atoms that belong to
    the task as centres, with all that their environments and those of their neighbours see.
    """
    if store.is_sorted_by_space(index):
        (cut,) = store.pieces(start, stop, 2.0 * cutoff)
        return cut
    return store.whole(index)


def structures_of(store: StructureStore, start: int, stop: int) -> range:
    """Numbers of the structures that have some of the environments ``start:stop``."""
    first, last = (int(store.structure_of(at, at + 1)[0]) for at in (start, stop - 1))
    return range(first, last + 1)
