"""The columns of a power spectrum: featomic's full layout, and the one without exact duplicates.

featomic's column (a, b, l, n1, n2) of the neighbour species a <= b is, up to a factor,
``sum_m c_{a n1 l m} c_{b n2 l m}``. For a = b it equals column (a, a, l, n2, n1) to the bit. Of
such a pair only n1 < n2 is kept, times sqrt(2): scalar products of rows, and with them kernels,
ridge predictions and rigidities, stay what they are in the full layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Columns = dict[str, NDArray[Any]]
"""Arrays of equal length, one entry per column of features."""


class Channels(NamedTuple):
    """The angular channels of a basis."""

    radial: tuple[tuple[int, int], ...]
    """Angular degree l and number of radial functions of each channel, ascending."""
    centre: NDArray[np.float64]
    """What an atom's own density adds to its coefficients of l = 0; empty without that channel."""


NAMES = ("neighbour_1", "neighbour_2", "l", "n_1", "n_2")


def full_columns(species: Sequence[int], radial: Sequence[tuple[int, int]]) -> Columns:
    """List featomic's columns and where the reduced layout holds each of them.

    Parameters
    ----------
    species
        Atomic numbers, ascending.
    radial
        Angular degree l and number of radial functions of each angular channel.

    Returns
    -------
    dict
        ``neighbour_1``, ``neighbour_2``, ``l``, ``n_1``, ``n_2`` of each of featomic's columns in
        featomic's order, then ``column`` and ``weight``: featomic's column is the reduced layout's
        column ``column`` divided by ``weight``.
    """
    entries: list[tuple[int, ...]] = []
    reduced: list[int] = []
    position: dict[tuple[int, ...], int] = {}
    for i, a in enumerate(species):
        for b in species[i:]:
            for angular, size in radial:
                for n_1 in range(size):
                    for n_2 in range(size):
                        kept = (min(n_1, n_2), max(n_1, n_2)) if a == b else (n_1, n_2)
                        entries.append((a, b, angular, n_1, n_2))
                        reduced.append(position.setdefault((a, b, angular, *kept), len(position)))
    full: Columns = dict(zip(NAMES, np.array(entries, dtype=np.int32).T.copy(), strict=True))
    twice = (full["neighbour_1"] == full["neighbour_2"]) & (full["n_1"] != full["n_2"])
    return {**full, "column": np.array(reduced), "weight": np.where(twice, np.sqrt(2.0), 1.0)}


def reduced_columns(full: Columns) -> Columns:
    """List the columns of the reduced layout.

    Parameters
    ----------
    full
        From `full_columns`.

    Returns
    -------
    dict
        ``neighbour_1``, ``neighbour_2``, ``l``, ``n_1``, ``n_2`` and ``weight``, the factor on
        featomic's value: sqrt(2) where the column stands for two equal ones, else 1.
    """
    kept = np.unique(full["column"], return_index=True)[1]
    return {name: full[name][kept] for name in (*NAMES, "weight")}


def spectrum_factor(columns: Columns) -> NDArray[np.float64]:
    """Factor of each column on ``sum_m c_{a n_1 l m} c_{b n_2 l m}``, (n_features,).

    featomic's (-1)^l / sqrt(2 l + 1), sqrt(2) for pairs of different species, and the weight of
    the reduced layout.
    """
    l_ = columns["l"]
    cross = columns["neighbour_1"] != columns["neighbour_2"]
    norm = np.where(l_ % 2 == 0, 1.0, -1.0) * np.sqrt(2.0 * l_ + 1.0)
    factor: NDArray[np.float64] = np.where(cross, np.sqrt(2.0), columns["weight"]) / norm
    return factor


def pair_columns(columns: Columns, species: Sequence[int]) -> dict[tuple[int, int], slice]:
    """Find the columns of each pair of neighbour species, which are given by their indices."""
    pairs = np.stack([columns["neighbour_1"], columns["neighbour_2"]], axis=1)
    numbers, start = np.unique(pairs, axis=0, return_index=True)
    edges = [*start.tolist(), len(pairs)]
    index = np.searchsorted(species, numbers).tolist()
    return {(a, b): slice(*edges[k : k + 2]) for k, (a, b) in enumerate(index)}
