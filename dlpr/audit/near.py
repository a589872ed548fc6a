"""Structures that the model can hardly tell apart: within a set, or in a test and the training set.

Told by projections of their rows (`dlpr.core.projection`) that rigidities and rows leave behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from scipy.spatial import KDTree

from dlpr.audit.figures import read
from dlpr.audit.repeats import Repeats, digests, told
from dlpr.core.rows import FloatArray, square_norm
from dlpr.stages.rigidity import PROJECTION
from dlpr.stages.rows import open_rows
from dlpr.stages.structures import StructureStore
from dlpr.store.folder import StageFolder

WITHIN = 0.002
"""Relative change of an environment's features up to which structures are near."""


@dataclass(frozen=True)
class Descriptors:
    """Structures of a set as points."""

    store: StructureStore
    points: FloatArray
    """(n, N_PROJECTIONS) projections of the mean row of a structure's environments"""

    @classmethod
    def of(cls, store: StructureStore, result: zarr.Group | None, rows: StageFolder) -> Descriptors:
        """Those of a set that has rigidities, or those of the training set."""
        sums = open_rows(rows).projections() if result is None else read(result, PROJECTION)
        return cls(store, sums / np.diff(store.structure_offset)[:, None])

    def limits(self, within: float) -> FloatArray:
        """(n,) the distance at which another structure is near: that of N environments which
        change by ``within`` of their length each by itself, so that the mean changes by
        ``within / sqrt(N)``. 0 where there are no features: nothing is near an isolated atom."""
        n_atoms = np.diff(self.store.structure_offset)
        limits: FloatArray = within * np.sqrt(square_norm(self.points) / n_atoms)
        return limits


def near_repeats(own: Descriptors, of: Descriptors | None = None, *, within: float) -> Repeats:
    """Structures of a set near an earlier one of it, or near any of another set.

    Exact repeats (`dlpr.audit.repeats`) are left out. A rotated copy, a supercell and a copy that
    is rattled a little are near. Distances of projections stand for those of rows: where these
    are ``within``, or up to 1.5 times more or less, chance decides. Arrays of some 500 bytes
    a structure are held.

    Parameters
    ----------
    own : Descriptors
    of : Descriptors, optional
        Of the other set.
    within : float
        See `Descriptors.limits`; of the two limits the smaller one counts.
    """
    marks = digests(own.store)
    limits = own.limits(within)
    if of is not None:
        rest = np.flatnonzero(~np.isin(marks, digests(of.store)) & (limits > 0.0))
        other = of.limits(within)
        found, original = _near(own.points, rest, limits, of.points, np.flatnonzero(other), other)
        return told(own.store, of.store, found, original, "is near")
    rest = np.sort(np.unique(marks, return_index=True)[1])
    rest = rest[limits[rest] > 0.0]
    original = np.arange(len(marks))
    while len(rest) > 1:
        later, earlier = _near(own.points, rest, limits, own.points, rest, limits)
        if not len(later):
            break
        later, earlier = np.maximum(later, earlier), np.minimum(later, earlier)
        original[later] = earlier
        rest = rest[original[rest] == rest]
    found = np.flatnonzero(original != np.arange(len(marks)))
    return told(own.store, own.store, found, original[found], "is near")


def _near(
    points: FloatArray,
    chosen: NDArray[np.int64],
    limits: FloatArray,
    other_points: FloatArray,
    other: NDArray[np.int64],
    other_limits: FloatArray,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Those of the chosen points whose nearest other one is near, and which one that is."""
    if not (len(chosen) and len(other)):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    is_same = points is other_points
    most = float(limits[chosen].max())
    nearest: Any = KDTree(other_points[other]).query(
        points[chosen], k=[1, 2] if is_same else [1], distance_upper_bound=most
    )
    distance, place = nearest
    column = np.zeros(len(chosen), np.int64)
    if is_same:  # the nearest, or second of equals, is the point itself
        column[place[:, 0] == np.arange(len(chosen))] = 1
    row = np.arange(len(chosen))
    distance, place = distance[row, column], place[row, column]
    known = np.flatnonzero(np.isfinite(distance))
    own, others = chosen[known], other[place[known]]
    is_near = distance[known] <= np.minimum(limits[own], other_limits[others])
    return own[is_near], others[is_near]
