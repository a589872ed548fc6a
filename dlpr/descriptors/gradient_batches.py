"""The environments of a structure, cut where their gradients would take too much memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dlpr.descriptors.neighbours import Surroundings
from dlpr.descriptors.soap import BATCH, Soap
from dlpr.structures.frames import Piece

if TYPE_CHECKING:  # it imports featomic
    from dlpr.descriptors.native import Environments

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

GRADIENT_NBYTES = 64 * 2**20
"""Most memory for the gradients of a batch, with those of the coefficients that they come from; a
centre that needs more is a batch alone."""


def pair_columns(soap: Soap) -> dict[tuple[int, int], slice]:
    """The columns of each pair of neighbour species."""
    start = list(soap.place.values())
    numbers = [(soap.species[a], soap.species[b]) for a, b in soap.place]
    return dict(zip(numbers, map(slice, start, [*start[1:], soap.n_features]), strict=True))


def batch_nbytes(
    soap: Soap, n_atoms: int, n_neighbours: float, *, forces: bool, stress: bool
) -> int:
    """Bound the gradients of a batch, in bytes, from the largest number of neighbours."""
    one = _centre_nbytes(soap, np.array([n_neighbours]), n_atoms, forces, stress)
    return max(GRADIENT_NBYTES, math.ceil(float(one[0])))


def gradient_batches(
    soap: Soap, piece: Piece, centres: IntArray, *, forces: bool, stress: bool
) -> Iterator[tuple[IntArray, Environments]]:
    """Cut some centres of a structure into runs whose gradients fit into GRADIENT_NBYTES.

    Yields
    ------
    home : (n_centres + n_seen,)
        The atom of the structure that is meant by each atom of the batch.
    Environments
        Of the batch.
    """
    from dlpr.descriptors.native import PAIR, Environments

    n_atoms = len(piece.species)
    around = Surroundings([piece], [centres], soap.cutoff, soap.species)
    for start in range(0, len(centres), BATCH):
        near = around.neighbours(start, min(start + BATCH, len(centres)))
        count = near.count.sum(axis=1)
        end = np.cumsum(count)
        nbytes = _centre_nbytes(soap, count, n_atoms, forces, stress)
        for first, stop in _runs(nbytes):
            some = slice(end[first] - count[first], end[stop - 1])
            seen, second = np.unique(near.atom[some], return_inverse=True)
            home = np.concatenate([centres[start + first : start + stop], seen])
            pairs = np.zeros(len(second), PAIR)
            pairs["first"] = np.repeat(np.arange(stop - first), count[first:stop])
            pairs["second"] = stop - first + second
            pairs["distance"] = near.distance[some]
            pairs["vector"] = (near.distance[some] * near.direction[:, some]).T
            species = piece.species[home].astype(np.int32)
            yield home, Environments(species, count[first:stop], pairs)


def _centre_nbytes(
    soap: Soap, n_neighbours: IntArray | FloatArray, n_atoms: int, forces: bool, stress: bool
) -> FloatArray:
    """Bound the gradients of each centre's features and of its coefficients, in bytes.

    featomic holds the gradients of coefficients by each atom that is moved, beside them first those
    by each neighbour and then those of the features, which take their place; and for each species
    those by the centre's own position and by strain.
    """
    coefficients = sum((2 * l_ + 1) * size for l_, size in soap.channels.radial)
    every = 2 * len(soap.species) * coefficients
    n_moved = np.minimum(n_neighbours, n_atoms) + 1
    numbers = np.full(len(n_moved), float(soap.n_features + every))
    if forces:
        later = np.maximum(n_neighbours * coefficients, n_moved * soap.n_features)
        numbers += 3 * (n_moved * coefficients + later + every)
    if stress:
        numbers += 9 * (soap.n_features + every)
    return 8.0 * numbers


def _runs(nbytes: FloatArray) -> Iterator[tuple[int, int]]:
    """Group centres, in order, into runs of at most GRADIENT_NBYTES or one centre."""
    start, total = 0, 0.0
    for index, size in enumerate(nbytes.tolist()):
        if index > start and total + size > GRADIENT_NBYTES:
            yield start, index
            start, total = index, 0.0
        total += size
    if len(nbytes):
        yield start, len(nbytes)
