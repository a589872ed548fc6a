"""Open directions turned into periodic ones, exactly, for descriptors of finite range.

featomic refuses mixed periodicity, and its neighbour search of a fully open system compares all
atoms with all. In a cell that reaches more than the cutoff beyond the atoms no atom sees an image
along the open directions: the environments are those of the open system.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dlpr.errors import InputError
from dlpr.structures.frames import Piece

_FLAT = 1e-8
"""A cell is degenerate where its volume is below this part of the product of its edges."""


def make_periodic(piece: Piece, cutoff: float) -> Piece:
    """Give a piece a cell that is periodic in all directions and leaves its environments alone.

    Parameters
    ----------
    piece
        With any periodicity. Its cell vectors along open directions are not used; they can be zero.
    cutoff
        Range of the descriptor in Å.

    Returns
    -------
    Piece
        The same atoms, periodic in all directions; the piece itself where it already is. Open
        directions become orthogonal to the periodic ones, and a whole number of cutoffs long,
        which is what featomic's cell list handles best.

    Raises
    ------
    InputError
        If the cell vectors along the periodic directions do not span them.
    """
    periodic = np.flatnonzero(piece.pbc)
    vectors = piece.cell[periodic]
    edges = float(np.prod(np.linalg.norm(vectors, axis=1)))
    volume = float(np.prod(np.linalg.svd(vectors, compute_uv=False)))
    if not volume > _FLAT * edges:
        raise InputError(
            f"the cell vectors {vectors.tolist()} Å of the {periodic.size} periodic direction(s)"
            f" span a volume of {volume:.3g} Å^{periodic.size}; it must be greater than"
            f" {_FLAT * edges:.3g}. Correct the cell, or the periodicity, of this structure."
        )
    if periodic.size == 3:
        return piece
    cell = piece.cell.copy()
    for axis, direction in _open_directions(cell, periodic):
        height = (piece.position * direction).sum(axis=1)  # no BLAS, whose bits differ
        extent = float(np.ptp(height)) if height.size else 0.0
        cell[axis] = direction * (cutoff * (np.floor(extent / cutoff) + 2.0) * (1.0 + 1e-6))
    return replace(piece, cell=cell, pbc=np.ones(3, dtype=bool))


def _open_directions(
    cell: NDArray[np.float64], periodic: NDArray[np.intp]
) -> list[tuple[int, NDArray[np.float64]]]:
    """Open axes and unit vectors orthogonal to the periodic ones; the cell gets right-handed."""
    if periodic.size == 0:
        return list(enumerate(np.eye(3)))
    if periodic.size == 2:
        axis = 3 - int(periodic.sum())
        normal = np.cross(cell[(axis + 1) % 3], cell[(axis + 2) % 3])
        return [(axis, normal / np.linalg.norm(normal))]
    axis = int(periodic[0])
    along = cell[axis] / np.linalg.norm(cell[axis])
    first = np.cross(along, np.eye(3)[np.argmin(np.abs(along))])
    first /= np.linalg.norm(first)
    return [((axis + 1) % 3, first), ((axis + 2) % 3, np.cross(along, first))]
