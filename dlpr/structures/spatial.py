"""Large frames ordered and cut by space.

The atoms of a large frame are stored bin by bin along a Z-order curve, so that a run of stored
environments is compact and needs few atoms around it. All arithmetic here is elementwise, so that
the order does not depend on the BLAS library.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from dlpr.structures.frames import Piece

SORTED_FRAME_ATOMS = 4096
"""Frames of more atoms are stored in spatial order."""
BIN_EDGE = 6.0
"""Å"""
_MARGIN = 1e-6
"""Å; two ways to round the distance of one pair differ by far less"""
_GAP_ATOMS = 256
"""Ranges nearer than this are read as one."""

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
Read: TypeAlias = Callable[[int, int], tuple[Floats, NDArray[np.uint8], Integers]]


def reciprocal(box: Floats) -> Floats:
    """Rows r with ``fraction[i] = position @ r[i]``; 1 / |r[i]| is the thickness along axis i."""
    planes = np.cross(box[[1, 2, 0]], box[[2, 0, 1]])
    volume: float = (box[0] * planes[0]).sum()
    return planes / volume


def cell_volume(cell: Floats) -> Floats:
    """Volumes of cells (..., 3, 3), elementwise: a determinant's bits depend on the BLAS kernel."""
    (ax, ay, az), (bx, by, bz), (cx, cy, cz) = (
        (cell[..., k, 0], cell[..., k, 1], cell[..., k, 2]) for k in range(3)
    )
    volume: Floats = np.abs(
        ax * (by * cz - bz * cy) + ay * (bz * cx - bx * cz) + az * (bx * cy - by * cx)
    )
    return volume


def complete_box(position: Floats, cell: Floats, pbc: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Find a box that holds all atoms.

    Parameters
    ----------
    position : (n_atoms, 3)
    cell : (3, 3)
        Its rows along open axes are not used and may be zero.
    pbc : (3,) bool

    Returns
    -------
    box : (3, 3)
        Periodic axes: the cell vector; open axes: orthogonal to all others, as long as the atoms
        extend along them.
    origin : (3,)
        The box's lower corner: 0 along the periodic axes.
    """
    box = np.where(pbc[:, None], cell, 0.0)
    basis: list[Floats] = []

    def residual(vector: Floats) -> Floats:
        for _ in range(2):  # twice is enough
            for unit in basis:
                vector = vector - (vector * unit).sum() * unit
        return vector

    for axis in np.flatnonzero(pbc):
        rest = residual(cell[axis])
        basis.append(rest / np.sqrt((rest * rest).sum()))
    origin = np.zeros(3)
    for axis in np.flatnonzero(~pbc):
        rests = [residual(unit) for unit in np.eye(3)]
        rest = max(rests, key=lambda vector: float((vector * vector).sum()))
        unit = rest / np.sqrt((rest * rest).sum())
        basis.append(unit)
        along = _along(position, unit)
        low, high = along.min(), along.max()
        box[axis] = unit * max(high - low, 1.0)
        origin = origin + unit * low
    return box, origin


def _along(position: Floats, vector: Floats) -> Floats:
    found: Floats = position[:, 0] * vector[0]
    found += position[:, 1] * vector[1]
    found += position[:, 2] * vector[2]
    return found


def shifted(position: Floats, image: Floats, cell: Floats) -> Floats:
    """Positions moved by ``image`` (n_atoms, 3) times the cell vectors."""
    moved = position.copy()
    for axis in range(3):
        if image[:, axis].any():
            moved += image[:, axis, None] * cell[axis]
    return moved


def wrap(
    position: Floats, box: Floats, origin: Floats, pbc: NDArray[np.bool_]
) -> tuple[Floats, Floats]:
    """Move atoms into the box along its periodic axes.

    Returns
    -------
    fraction : (n_atoms, 3)
        In [0, 1) along periodic axes, in [0, 1] up to rounding along open ones.
    wrapped : (n_atoms, 3)
        The same in Å; an atom that was inside keeps its position bit by bit.
    """
    centred = position - origin
    fraction = np.stack([_along(centred, row) for row in reciprocal(box)], axis=1)
    image = np.where(pbc, np.floor(fraction), 0.0)
    fraction -= image
    above = pbc & (fraction >= 1.0)  # a tiny negative fraction rounds to 1
    fraction[above] = 0.0
    return fraction, shifted(position, -image - above, box)


def sort_by_bins(
    position: Floats, cell: Floats, pbc: NDArray[np.bool_]
) -> tuple[Integers, NDArray[np.int32], Floats, Floats, Integers]:
    """Order the atoms of a frame by bins of space.

    Parameters
    ----------
    position : (n_atoms, 3)
    cell : (3, 3)
    pbc : (3,) bool

    Returns
    -------
    order : (n_atoms,)
        Source atom of each stored atom: bins along the Z-order curve, in each the source's order.
    bin_shape : (3,) int32
    bin_box : (3, 3)
    bin_origin : (3,)
    bin_range : (n_bins, 2)
        Start and stop of each bin's stored atoms, bins in C order.
    """
    box, origin = complete_box(position, cell, pbc)
    shape = _bin_shape(box, len(position))
    fraction, _ = wrap(position, box, origin, pbc)
    place = np.clip((fraction * shape).astype(np.int64), 0, shape - 1)
    index = (place[:, 0] * shape[1] + place[:, 1]) * shape[2] + place[:, 2]
    rank = np.empty(shape.prod(), np.int64)
    along_curve = np.argsort(
        _morton(np.indices(tuple(map(int, shape))).reshape(3, -1)), kind="stable"
    )
    rank[along_curve] = np.arange(len(rank))
    order = np.argsort(rank[index], kind="stable")
    counts = np.bincount(index, minlength=len(rank))
    stop = np.empty_like(rank)
    stop[along_curve] = np.cumsum(counts[along_curve])
    return order, shape.astype(np.int32), box, origin, np.stack([stop - counts, stop], axis=1)


def _bin_shape(box: Floats, n_atoms: int) -> Integers:
    thickness = 1.0 / np.sqrt((reciprocal(box) ** 2).sum(axis=1))
    edge = BIN_EDGE
    shape = np.maximum(1, np.floor(thickness / edge))
    while shape.prod() > n_atoms:  # mostly vacuum
        edge *= 1.25
        shape = np.maximum(1, np.floor(thickness / edge))
    return np.asarray(shape, np.int64)


def _morton(place: Integers) -> Integers:
    """Interleave the bits of (3, n) bin numbers below 2**20."""
    code = np.zeros(place.shape[1], np.int64)
    for bit in range(int(place.max()).bit_length()):
        for axis in range(3):
            code |= ((place[axis] >> bit) & 1) << (3 * bit + axis)
    return code


def cut_cluster(
    read: Read,
    *,
    bin_shape: NDArray[np.int32],
    bin_box: Floats,
    bin_origin: Floats,
    bin_range: Integers,
    cell: Floats,
    pbc: NDArray[np.bool_],
    start: int,
    stop: int,
    cutoff: float,
) -> Piece:
    """Cut some environments and all that surrounds them out of a frame sorted by bins.

    Parameters
    ----------
    read : callable
        ``read(a, b)`` gives position, species and source atom of the stored atoms ``a:b``.
    bin_shape, bin_box, bin_origin, bin_range
        As `sort_by_bins` gave them.
    cell : (3, 3)
    pbc : (3,) bool
    start, stop : int
        The wanted environments, in stored order.
    cutoff : float
        Å

    Returns
    -------
    Piece
        Not periodic: the atoms and periodic images within ``cutoff`` of any wanted environment, in
        the order of their source atoms, then images. ``centre`` is in stored order.
    """
    shape = bin_shape.astype(np.int64)
    low, high = bin_range.T
    held = np.flatnonzero((low < stop) & (high > start) & (low < high))
    bins, image = _surroundings(held, shape, bin_box, pbc, cutoff + _MARGIN)
    filled = bin_range[bins, 1] > bin_range[bins, 0]
    bins, image = bins[filled], image[filled]
    stored, (position, species, source) = _read_bins(read, bin_range[np.unique(bins)])
    _, position = wrap(position, bin_box, bin_origin, pbc)

    counts = bin_range[bins, 1] - bin_range[bins, 0]
    first = np.searchsorted(stored, bin_range[bins, 0]) - np.cumsum(counts) + counts
    row = np.repeat(first, counts) + np.arange(counts.sum())
    image = np.repeat(image, counts, axis=0)
    moved = shifted(position[row], image.astype(np.float64), cell)
    begin, end = np.searchsorted(stored, [start, stop])
    is_centre = (row >= begin) & (row < end) & ~image.any(axis=1)
    near = _near(moved, moved[is_centre], cutoff + _MARGIN)

    row, image, moved, is_centre = row[near], image[near], moved[near], is_centre[near]
    order = np.lexsort((image[:, 2], image[:, 1], image[:, 0], source[row]))
    row, is_centre = row[order], is_centre[order]
    centre = np.flatnonzero(is_centre)
    centre = centre[np.argsort(row[centre])]
    open_box = np.zeros((3, 3)), np.zeros(3, np.bool_)
    return Piece(moved[order], species[row], *open_box, centre, atom=source[row])


def _surroundings(
    held: Integers, shape: Integers, box: Floats, pbc: NDArray[np.bool_], reach: float
) -> tuple[Integers, Integers]:
    """Bins and images (n, 3) of them that can hold atoms within ``reach`` of the bins ``held``."""
    thickness = 1.0 / np.sqrt((reciprocal(box) ** 2).sum(axis=1)) / shape
    steps = np.ceil(reach / thickness).astype(np.int64)
    place = np.stack(np.unravel_index(held, tuple(shape)), axis=1)
    for axis in range(3):  # the block of bins around each, one axis after the other
        step = np.arange(-steps[axis], steps[axis] + 1)
        wider = np.repeat(place, len(step), axis=0)
        wider[:, axis] += np.tile(step, len(place))
        if not pbc[axis]:
            wider = wider[(wider[:, axis] >= 0) & (wider[:, axis] < shape[axis])]
        place = _unique_rows(wider)
    image, within = np.divmod(place, shape)
    return np.ravel_multi_index(tuple(within.T), tuple(shape)), image


def _unique_rows(place: Integers) -> Integers:
    low = place.min(axis=0)
    span = tuple(place.max(axis=0) - low + 1)
    code = np.unique(np.ravel_multi_index(tuple((place - low).T), span))
    return np.asarray(np.stack(np.unravel_index(code, span), axis=1) + low, np.int64)


def _read_bins(
    read: Read, ranges: Integers
) -> tuple[Integers, tuple[Floats, NDArray[np.uint8], Integers]]:
    """Read ranges of stored atoms, near ones together; also the stored index of what was read."""
    ranges = ranges[np.argsort(ranges[:, 0])]
    cut = np.flatnonzero(ranges[1:, 0] - ranges[:-1, 1] > _GAP_ATOMS) + 1
    runs = [(int(part[0, 0]), int(part[-1, 1])) for part in np.split(ranges, cut)]
    found = [read(a, b) for a, b in runs]
    position, species, source = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    stored = np.concatenate([np.arange(a, b) for a, b in runs])
    return stored, (position, species, source)


def _near(position: Floats, centres: Floats, reach: float) -> NDArray[np.bool_]:
    """Whether each position is within ``reach`` of any centre."""
    low, high = centres.min(axis=0) - reach, centres.max(axis=0) + reach
    near: NDArray[np.bool_] = ((position >= low) & (position <= high)).all(axis=1)
    from scipy.spatial import cKDTree  # slow to load

    distance, _ = cKDTree(centres).query(position[near], distance_upper_bound=reach)
    near[near] = np.isfinite(distance)
    return near
