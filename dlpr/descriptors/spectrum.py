"""The power spectrum of environments from their neighbours.

The density of an environment has the coefficients ``c_nlm = sum_j R_nl(r_j) Y_lm(r_j)`` over the
neighbours of one species; the features are sums over m of products of two of them. Both sums run
elementwise over many environments side by side, term by term in a fixed order: an environment's
bits depend neither on the others nor on a BLAS library.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dlpr.descriptors.columns import Channels
from dlpr.descriptors.harmonics import spherical_harmonics
from dlpr.descriptors.neighbours import Neighbours

if TYPE_CHECKING:  # it imports featomic
    from dlpr.descriptors.radial import RadialTable

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

WIDTH = 128
"""Most environments side by side, for long loops."""
SLOTS = 8192
"""Most neighbours side by side, for the cache."""
LANES = 8
"""Environments side by side are filled up to a multiple, so that all loops are of one kind."""


class _Group(NamedTuple):
    """Environments side by side. A slot is a neighbour, or nothing, of one of them."""

    weight: Floats
    """(n_slots, 4) of the nodes of the radial table; 0 of nothing"""
    node: NDArray[np.int32]
    """(n_slots, 4)"""
    direction: Floats
    """(3, n_slots)"""
    rows: list[slice]
    """of slots of each species; slots are (n_rows, width)"""
    width: int


def power_spectrum(
    neighbours: Neighbours,
    own: Integers,
    table: RadialTable,
    channels: Channels,
    place: Mapping[tuple[int, int], slice],
    factor: Floats,
    features: Floats,
) -> None:
    """Compute the power spectra of some environments.

    Parameters
    ----------
    neighbours
        Of the environments.
    own : (n_environments,)
        Index of the central species.
    table
        Radial functions.
    channels
        Angular channels, and what the centre's own density adds.
    place
        Columns of each pair of indices of species a <= b, ordered by (l, n_1, n_2), with
        n_1 <= n_2 where a = b.
    factor : (n_features,)
        Factor of each column on ``sum_m c_{a n_1 l m} c_{b n_2 l m}``.
    features : (n_environments, n_features)
        Where they are written to.
    """
    weight, node = table.cubics(neighbours.distance)
    # One more: no neighbour.
    weight = np.concatenate([weight, np.zeros((1, 4))])
    node = np.concatenate([node, np.zeros((1, 4), np.int32)])
    direction = np.concatenate([neighbours.direction, [[0.0], [0.0], [1.0]]], axis=1)
    count = neighbours.count
    first = (np.cumsum(count) - count.ravel()).reshape(count.shape)
    size = count.sum(axis=1)
    by_size = np.argsort(size, kind="stable")
    width = max(LANES, min(WIDTH, SLOTS // max(1, size.max()) // LANES * LANES))
    for start in range(0, len(own), width):
        chosen = by_size[start : start + width]
        slot, rows = _slots(count[chosen], first[chosen], len(neighbours.distance))
        flat = slot.ravel()
        group = _Group(weight[flat], node[flat], direction[:, flat], rows, slot.shape[1])
        columns = _columns(group, own[chosen], table, channels, place, len(factor))
        columns *= factor[:, None]
        features[chosen] = columns[:, : len(chosen)].T


def _slots(count: Integers, first: Integers, nothing: int) -> tuple[Integers, list[slice]]:
    """Indices of neighbours (n_rows, width), one column per environment, and rows by species."""
    width = -(-len(count) // LANES) * LANES
    height = count.max(axis=0)
    slot = np.full((height.sum(), width), nothing)
    stop = np.cumsum(height)
    rows = [slice(b - h, b) for b, h in zip(stop.tolist(), height.tolist(), strict=True)]
    for s, part in enumerate(rows):
        rank = np.arange(height[s])[:, None]
        slot[part, : len(count)] = np.where(rank < count[:, s], first[:, s] + rank, nothing)
    return slot, rows


def _columns(
    group: _Group,
    own: Integers,
    table: RadialTable,
    channels: Channels,
    place: Mapping[tuple[int, int], slice],
    n_columns: int,
) -> Floats:
    """Sums over m without their factors, (n_columns, width)."""
    columns = np.empty((n_columns, group.width))
    start = {pair: own.start for pair, own in place.items()}
    angular = spherical_harmonics(group.direction, channels.radial[-1][0])
    angular = angular.reshape(len(angular), -1, group.width)
    radial = table.functions(group.weight, group.node)
    for (l_, size), values in zip(channels.radial, radial, strict=True):
        functions = np.ascontiguousarray(values.T).reshape(size, -1, group.width)
        harmonics = angular[l_ * l_ : (l_ + 1) ** 2]
        coefficients = np.empty((len(group.rows), 2 * l_ + 1, size, group.width))
        for s, rows in enumerate(group.rows):
            np.einsum("mjc,njc->mnc", harmonics[:, rows], functions[:, rows], out=coefficients[s])
        if l_ == 0:
            coefficients[own, 0, :, np.arange(len(own))] += channels.centre
        for a, b in place:
            at = start[a, b]
            left, right = coefficients[a], coefficients[b]
            if a == b:
                for n in range(size):
                    stop = at + size - n
                    np.einsum("mc,mqc->qc", left[:, n], right[:, n:], out=columns[at:stop])
                    at = stop
            else:
                stop = at + size * size
                block = columns[at:stop].reshape(size, size, group.width)
                np.einsum("mpc,mqc->pqc", left, right, out=block)
                at = stop
            start[a, b] = at
    return columns
