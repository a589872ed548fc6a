"""Checks of one frame: what would give wrong features in silence is refused here."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from dlpr.errors import InputError
from dlpr.structures.parse import Record
from dlpr.structures.spatial import complete_box, reciprocal, wrap

MIN_DISTANCE = 0.1
"""Å; atoms nearer than this are at one place"""
_FLATTEST = 1e-6
"""Volume of the periodic cell vectors over that of a box with edges as long."""
_FIRST_QUERY, _LAST_QUERY = 64, 1 << 18
_LEAVE_OUT = "correct the frame or leave it out with an index or a where"


def check_record(record: Record, min_distance: float = MIN_DISTANCE) -> None:
    """Refuse a frame that no descriptor can be trusted with.

    Parameters
    ----------
    record : Record
    min_distance : float
        Å. Two atoms nearer than this, and cells that are thinner, are refused; 0 turns that off.

    Raises
    ------
    InputError
        For no atoms, unknown species, positions or labels that are not finite, a cell that does not
        span space along its periodic axes, or atoms at one place.
    """
    if len(record.number) == 0:
        raise InputError(f"{record.place} has no atoms (0, at least 1 is needed); {_LEAVE_OUT}")
    _check_species(record)
    _check_finite(record)
    _check_cell(record)
    if min_distance > 0.0:
        _check_distances(record, min_distance)


def _check_species(record: Record) -> None:
    unknown = (record.number < 1) | (record.number > 118)
    if unknown.any():
        atom = int(np.argmax(unknown))
        raise InputError(
            f"{record.place}, atom {atom}: atomic number {record.number[atom]} is no element (1 to "
            "118 are); correct the frame or give a type_map, e.g. type_map: {1: Si}"
        )


def _check_finite(record: Record) -> None:
    bad = ~np.isfinite(record.position).all(axis=1)
    if bad.any():
        atom = int(np.argmax(bad))
        raise InputError(
            f"{record.place}, atom {atom}: position {_vector(record.position[atom])} is not finite "
            f"({int(bad.sum())} atoms like this); {_LEAVE_OUT}"
        )
    if not np.isfinite(record.cell).all():
        axis = int(np.argmax(~np.isfinite(record.cell).all(axis=1)))
        raise InputError(
            f"{record.place}: cell vector {axis} {_vector(record.cell[axis])} is not finite; "
            f"{_LEAVE_OUT}"
        )
    labels = {"energy": np.asarray(record.energy), "forces": record.force, "stress": record.stress}
    for label, value in labels.items():
        if value is None or np.isnan(value).all():
            continue
        bad = ~np.isfinite(value)
        if bad.any():
            where = f", atom {int(np.argwhere(bad)[0, 0])}" if label == "forces" else ""
            raise InputError(
                f"{record.place}{where}: the {label} holds {int(bad.sum())} values that are not "
                "finite; correct them, or let all be nan where the label is absent"
            )


def _check_cell(record: Record) -> None:
    vectors = record.cell[record.pbc]
    if len(vectors) == 0:
        return
    length = np.linalg.norm(vectors, axis=1)
    for axis, size in zip(np.flatnonzero(record.pbc), length, strict=True):
        if size == 0.0:
            raise InputError(
                f"{record.place}: it is periodic along cell vector {axis}, which is (0, 0, 0); "
                "correct the cell or set pbc to F there"
            )
    unit = vectors / length[:, None]
    measure = float(np.linalg.svd(unit, compute_uv=False).prod())
    if measure < _FLATTEST:
        what = ("length", "area", "volume")[len(vectors) - 1]
        raise InputError(
            f"{record.place}: the cell vectors along its periodic axes span no {what}: "
            f"{measure * float(length.prod()):.3g} Å^{len(vectors)}, {measure:.1g} of that of "
            f"orthogonal ones (at least {_FLATTEST:g} is needed); correct the cell or pbc"
        )


def _check_distances(record: Record, minimum: float) -> None:
    box, origin = complete_box(record.position, record.cell, record.pbc)
    thickness = 1.0 / np.linalg.norm(reciprocal(box), axis=1)
    thin = record.pbc & (thickness < minimum)
    if thin.any():
        axis = int(np.argmax(thin))
        raise InputError(
            f"{record.place}: the cell is {thickness[axis]:.3g} Å thick along cell vector {axis}, "
            f"and atoms need {minimum:g} Å between them; correct the cell or the unit of length"
        )
    pair = _closest_pair(record.position, box, origin, record.pbc, minimum / thickness, minimum)
    if pair is None:
        return
    a, b, distance = pair
    raise InputError(
        f"{record.place}: atoms {a} ({chemical_symbols[record.number[a]]}) and {b} "
        f"({chemical_symbols[record.number[b]]}) are {distance:.3g} Å apart, at least {minimum:g} Å"
        f" are needed; correct the unit of length, or {_LEAVE_OUT}"
    )


def _closest_pair(
    position: NDArray[np.float64],
    box: NDArray[np.float64],
    origin: NDArray[np.float64],
    pbc: NDArray[np.bool_],
    reach: NDArray[np.float64],
    minimum: float,
) -> tuple[int, int, float] | None:
    """Two atoms nearer than ``minimum``, of which ``reach`` is the fraction of each axis.

    Only images within reach of a face are made. The search stops at atoms that coincide: where
    very many do, going on would take for ever.
    """
    fraction, point = wrap(position, box, origin, pbc)
    n_atoms = len(point)
    atom = np.arange(n_atoms)
    for axis in np.flatnonzero(pbc):
        low = np.flatnonzero(fraction[:, axis] <= reach[axis])
        high = np.flatnonzero(fraction[:, axis] >= 1.0 - reach[axis])
        point = np.concatenate([point, point[low] + box[axis], point[high] - box[axis]])
        fraction = np.concatenate([fraction, fraction[low], fraction[high]])
        atom = np.concatenate([atom, atom[low], atom[high]])
    from scipy.spatial import cKDTree  # slow to load

    tree = cKDTree(point, balanced_tree=False, compact_nodes=False)
    closest: tuple[int, int, float] | None = None
    start, size = 0, _FIRST_QUERY
    while start < n_atoms and (closest is None or closest[2] > 0.0):
        rows = np.arange(start, min(start + size, n_atoms))
        found = tree.query(point[rows], k=2, distance_upper_bound=minimum)
        distance, other = np.asarray(found[0]), np.asarray(found[1])
        # the atom itself is one of the two, unless three or more coincide
        at = np.argmin(distance[:, 1])
        if distance[at, 1] < (minimum if closest is None else closest[2]):
            near = other[at, 0] if other[at, 0] != rows[at] else other[at, 1]
            a, b = sorted((int(rows[at]), int(atom[near])))
            closest = (a, b, float(distance[at, 1]))
        start, size = start + size, _LAST_QUERY
    return closest


def _vector(values: NDArray[np.float64]) -> str:
    return f"({', '.join(f'{value:g}' for value in values)})"


def frame_fingerprint(record: Record) -> bytes:
    """Digest (16 bytes) of species, positions, cell and pbc: equal for exact repeats of a frame."""
    digest = hashlib.blake2b(digest_size=16)
    arrays: tuple[NDArray[Any], ...] = (record.number, record.position, record.cell, record.pbc)
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()
