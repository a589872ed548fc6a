"""Derivatives of features, a few centres at a time: there is no memory for those of many."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

GRADIENT_NBYTES = 64 * 2**20
"""Most memory for the gradients of a batch, with those of the coefficients that they come from; a
centre that needs more is a batch alone."""
BATCH = 512
"""Centres whose gradients are measured before they are cut into batches."""
VOIGT = ((0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1))
"""Rows and columns of xx, yy, zz, yz, xz, xy: ASE's order."""


class GradientBlock(NamedTuple):
    """Some columns of the features of centres of one species, and their derivatives.

    Centres are given by their place in the batch.
    """

    species: int
    """Atomic number of the centres."""
    columns: slice
    """Of the features."""
    centre: IntArray
    """(n_centres,) ascending"""
    values: FloatArray
    """(n_centres, n_columns)"""
    gradient_centre: IntArray
    """(n_gradients,) the centre whose features are differentiated, ascending"""
    gradient_atom: IntArray
    """(n_gradients,) the atom of the structure that is moved, ascending for each centre; -1: the
    centre itself, where its images are atoms of their own"""
    positions: FloatArray
    """(n_gradients, 3, n_columns) 1/Å; empty if not asked for"""
    strain: FloatArray
    """(n_centres, 6, n_columns) by the symmetric strains of `VOIGT`; empty if not asked for"""


class Gradients(Protocol):
    """Derivatives of the features of some centres of one structure."""

    def nbytes(self, start: int, stop: int) -> FloatArray:
        """Bound the memory that each of the centres ``start:stop`` takes, in bytes."""

    def blocks(self, start: int, stop: int) -> list[GradientBlock]:
        """Derivatives of centres ``start:stop``, some of those that `nbytes` was last asked of."""


def gradient_batches(gradients: Gradients, n_centres: int) -> Iterator[tuple[int, int]]:
    """Cut centres, in order, into runs whose gradients fit into GRADIENT_NBYTES, or of one."""
    for start in range(0, n_centres, BATCH):
        stop = min(start + BATCH, n_centres)
        first, total = start, 0.0
        for centre, size in enumerate(gradients.nbytes(start, stop).tolist(), start):
            if centre > first and total + size > GRADIENT_NBYTES:
                yield first, centre
                first, total = centre, 0.0
            total += size
        yield first, stop
