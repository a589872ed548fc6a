"""The power spectrum of LODE coefficients, and what it changes when atoms are moved."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING

import numpy as np

from dlpr.descriptors.gradient_batches import FloatArray, GradientBlock, IntArray
from dlpr.descriptors.neighbours import DENSITY
from dlpr.structures.frames import Piece

if TYPE_CHECKING:
    from dlpr.descriptors.lode import Lode


def products(
    left: Mapping[int, FloatArray], right: Mapping[int, FloatArray], same: bool
) -> FloatArray:
    """Multiply coefficients of two species, summed over m.

    Elementwise, m after m: bits are a row's own.

    Parameters
    ----------
    left, right
        By angular degree l, (..., 2 l + 1, n_radial).
    same
        Whether the species is one: of n_1, n_2 only n_1 <= n_2 are wanted.

    Returns
    -------
    ndarray
        (..., n_columns) by (l, n_1, n_2).
    """
    full = []
    for l_ in left:
        first, second = left[l_][..., None], right[l_][..., None, :]
        size = second.shape[-1]
        sums = np.zeros((*np.broadcast_shapes(first.shape[:-3], second.shape[:-3]), size, size))
        for m in range(2 * l_ + 1):
            sums += first[..., m, :, :] * second[..., m, :, :]
        kept = np.triu_indices(size) if same else np.indices((size, size)).reshape(2, -1)
        full.append(sums[..., kept[0], kept[1]])
    return np.concatenate(full, axis=-1)


class LodeGradients:
    """Derivatives of LODE features of some centres by the positions of all atoms of a structure."""

    def __init__(self, kind: Lode, piece: Piece, centres: IntArray) -> None:
        self._kind, self._piece, self._centres = kind, piece, centres
        species = np.searchsorted(kind.species, piece.species)
        self._atoms = {s: np.flatnonzero(species == s) for s in np.unique(species).tolist()}

    def nbytes(self, start: int, stop: int) -> FloatArray:
        """Bound the memory that each of the centres ``start:stop`` takes, in bytes."""
        n_atoms = len(self._piece.species)
        one = self._kind.gradient_nbytes(n_atoms, DENSITY, forces=True, stress=False)
        return np.full(stop - start, one)

    def blocks(self, start: int, stop: int) -> list[GradientBlock]:
        """Derivatives of centres ``start:stop``."""
        from dlpr.descriptors.fourier import lode_slopes

        kind, centres = self._kind, self._centres[start:stop]
        coefficients, slopes = lode_slopes(kind.parameters, self._piece, centres, kind.species)
        number = self._piece.species[centres]
        blocks = []
        for species in np.unique(number).tolist():
            own = np.flatnonzero(number == species)
            c = {at: of_all[own] for at, of_all in coefficients.items()}
            dc = {at: of_all[own] for at, of_all in slopes.items()}
            for a, b in combinations_with_replacement(self._atoms, 2):
                columns = kind.place[a, b]
                weight = kind.factor[columns]
                values = products(_of(c, a), _of(c, b), a == b) * weight
                atom, positions = self._pair(c, dc, a, b)
                positions *= weight
                row, atom = np.repeat(own, len(atom)), np.tile(atom, len(own))
                positions = positions.reshape(len(row), 3, -1)
                blocks.append(
                    GradientBlock(species, columns, own, values, row, atom, positions, np.empty(0))
                )
        return blocks

    def _pair(
        self, c: Mapping[int, FloatArray], dc: Mapping[tuple[int, int], FloatArray], a: int, b: int
    ) -> tuple[IntArray, FloatArray]:
        """Atoms of two species, and derivatives (n_centres, n_atoms, 3, n_columns) by them.

        The product rule, of coefficients and slopes as in `lode_slopes`.
        """
        atom = np.unique(np.concatenate([[-1], self._atoms[a], self._atoms[b]]))
        still = {s: {l_: of_s[:, None, None] for l_, of_s in _of(c, s).items()} for s in (a, b)}
        moved = {s: {l_: dc[l_, s] for l_ in c} for s in (a, b)}
        first = products(moved[a], still[b], a == b)
        second = products(still[a], moved[b], a == b)
        found = np.zeros((len(first), len(atom), *first.shape[2:]))
        for s, part in ((a, first), (b, second)):
            found[:, np.searchsorted(atom, [-1, *self._atoms[s]])] += part
        return atom, found


def _of(c: Mapping[int, FloatArray], species: int) -> dict[int, FloatArray]:
    """Coefficients of one species."""
    return {l_: of_all[:, species] for l_, of_all in c.items()}
