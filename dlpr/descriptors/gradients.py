"""Rows of forces and stresses: derivatives of a model's features, contracted batch by batch.

Gradients of features are hundreds of kB for each environment. They are asked for few centres at a
time, taken through the derivative of the model's feature map, and added up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from scipy.sparse import csr_array

from dlpr.descriptors.gradient_batches import (
    BATCH,
    GRADIENT_NBYTES,
    FloatArray,
    GradientBlock,
    IntArray,
    gradient_batches,
)
from dlpr.errors import InputError
from dlpr.structures.frames import Piece

if TYPE_CHECKING:
    from dlpr.descriptors import Descriptor

STRIP_NBYTES = 16 * 2**20
"""Most memory for derivatives on their way through the feature map, or what one atom needs."""


class Tangent(Protocol):
    """A feature map x -> phi, seen from its derivative."""

    @property
    def raw_widths(self) -> tuple[int, ...]:
        """Columns of the derivatives of each central species."""

    def derivative(
        self, species: int, features: FloatArray, tangent: FloatArray, centre: IntArray
    ) -> FloatArray:
        """Return directional derivatives of phi.

        Parameters
        ----------
        species
            Index of the central species in the descriptor's `species`.
        features : (n_centres, n_features)
            x of some centres of that species.
        tangent : (n, n_features)
            Derivatives dx along n directions.
        centre : (n,)
            The row of `features` that each direction starts from.

        Returns
        -------
        ndarray
            (n, raw_widths[species])
        """


@dataclass(frozen=True)
class DerivativeRows:
    """Rows whose product with the weights is a force or a stress of one structure.

    Columns are the model's blocks of the central species, one after the other.
    """

    forces: FloatArray | None
    """(3 n_atoms, n_columns): row 3 j + a is ``-sum_i d phi_i / d r_ja``, 1/Å"""
    stress: FloatArray | None
    """(6, n_columns): ``(1/V) sum_i d phi_i / d eps_ab`` for the symmetric strains xx, yy, zz, yz,
    xz, xy, 1/Å³; off-diagonal rows, as ASE's components, are half the derivative in
    ``eps_ab = eps_ba``"""


class _Part(NamedTuple):
    """Derivatives of some columns along some of the directions that a contraction runs over."""

    columns: slice
    entry: IntArray
    """(n,) where in the contraction, ascending"""
    gradient: FloatArray
    """(n, n_directions, n_columns)"""


def has_stress(piece: Piece) -> bool:
    """Whether a structure has a volume, and with it a stress: periodic in three directions."""
    return bool(piece.pbc.all())


def derivative_rows(
    calculator: Descriptor, piece: Piece, tangent: Tangent, *, forces: bool, stress: bool
) -> DerivativeRows:
    """Compute the rows of the forces and of the stress of one structure.

    Parameters
    ----------
    calculator
        A descriptor that lacks nothing for these rows, see `dlpr.descriptors.gradient_refusal`.
    piece
        A whole structure of any periodicity. Where it names centres, the forces on these alone
        are computed; it may then be an open cut with all atoms within twice the cutoff of them.
    tangent
        The derivative of the model's feature map.
    forces, stress
        The rows wanted; a stress needs a whole structure.

    Returns
    -------
    DerivativeRows
        Equal calls give equal bits.

    Raises
    ------
    InputError
        If the descriptor would refuse the structure, two atoms coincide, or a stress is wanted of
        a structure that is not periodic in three directions.
    """
    if stress and not has_stress(piece):
        raise InputError(
            f"a stress is wanted of a structure that is periodic in {int(piece.pbc.sum())}"
            " direction(s); it must be periodic in 3 to have a volume."
            " Leave out the stress of this structure, or correct its periodicity."
        )
    centres = _centres(piece, calculator.cutoff)
    gradients = calculator.gradients(piece, centres, forces=forces, stress=stress)
    sums = _Sums(calculator, tangent, piece, forces, stress)
    for start, stop in gradient_batches(gradients, len(centres)):
        sums.add(centres[start:stop], gradients.blocks(start, stop))
    rows = sums.rows(piece.cell)
    _check_finite(rows)
    return rows


def derivative_nbytes(
    calculator: Descriptor,
    n_rows: int,
    n_atoms: int,
    density: float,
    volume: float,
    widths: Sequence[int],
    *,
    forces: bool,
    stress: bool,
) -> int:
    """Bound the memory of a call of `derivative_rows`.

    Parameters
    ----------
    calculator
        The descriptor.
    n_rows
        Rows that are returned.
    n_atoms
        Atoms of the structure.
    density
        Atoms per Å³.
    volume
        Å³ of its cell.
    widths
        As `Tangent.raw_widths`.
    forces, stress
        The rows wanted.

    Returns
    -------
    int
        Bytes, the returned rows included; without what the tangent itself needs.
    """
    one = calculator.gradient_nbytes(n_atoms, density, forces=forces, stress=stress)
    # Directions and what the tangent makes of them, sums of these by atom, and the rows changed.
    strip = 3 * max(STRIP_NBYTES, 8 * 6 * (calculator.n_features + max(widths)))
    around = calculator.compute_nbytes(min(BATCH, n_atoms), n_atoms, density, volume)
    return 8 * n_rows * sum(widths) + max(GRADIENT_NBYTES, math.ceil(one)) + strip + around


def _centres(piece: Piece, cutoff: float) -> IntArray:
    """Atoms whose environments change with the positions of the atoms that are wanted."""
    every = np.arange(len(piece.species))
    if piece.centre is None or piece.pbc.any():
        return every
    from scipy.spatial import cKDTree  # slow to load

    distance, _ = cKDTree(piece.position[piece.centre]).query(piece.position)
    return every[distance <= cutoff * (1.0 + 1e-9)]


class _Sums:
    """Rows of one structure while batches of centres are added."""

    def __init__(
        self, calculator: Descriptor, tangent: Tangent, piece: Piece, forces: bool, stress: bool
    ) -> None:
        self._species, self._n_features = calculator.species, calculator.n_features
        self._tangent = tangent
        self._stop = np.cumsum(tangent.raw_widths).tolist()
        wanted = np.arange(len(piece.species)) if piece.centre is None else piece.centre
        self._row = np.full(len(piece.species), -1)  # of each atom; -1: not wanted
        self._row[wanted] = np.arange(len(wanted))
        self._forces = np.zeros((len(wanted), 3, self._stop[-1])) if forces else None
        self._virial = np.zeros((6, self._stop[-1])) if stress else None

    def rows(self, cell: FloatArray) -> DerivativeRows:
        """Return the rows of all that was added, for a cell (3, 3)."""
        forces, stress = self._forces, None
        if self._virial is not None:
            stress = self._virial / abs((cell[0] * np.cross(cell[1], cell[2])).sum())
        return DerivativeRows(
            None if forces is None else forces.reshape(3 * len(forces), self._stop[-1]), stress
        )

    def add(self, centres: IntArray, found: Sequence[GradientBlock]) -> None:
        """Add the gradients of a batch of centres."""
        for number in sorted({block.species for block in found}):
            blocks = [block for block in found if block.species == number]
            centre = np.unique(np.concatenate([block.centre for block in blocks]))
            features = np.zeros((len(centre), self._n_features))
            for block in blocks:
                features[np.searchsorted(centre, block.centre), block.columns] = block.values
            species = self._species.index(number)
            if self._forces is not None:
                self._add_forces(species, features, blocks, centre, centres)
            if self._virial is not None:
                self._add_virial(species, features, blocks, centre)

    def _add_forces(
        self,
        species: int,
        features: FloatArray,
        blocks: Sequence[GradientBlock],
        centre: IntArray,
        centres: IntArray,
    ) -> None:
        """Add what the features of centres of one species change when atoms move."""
        assert self._forces is not None
        n_moved = 1 + len(self._row)
        keys = [n_moved * block.gradient_centre + 1 + block.gradient_atom for block in blocks]
        pair = np.unique(np.concatenate(keys))
        at, atom = np.divmod(pair, n_moved)
        moved = self._row[np.where(atom == 0, centres[at], atom - 1)]
        wanted = moved >= 0
        number, parts = np.cumsum(wanted) - 1, []
        for block, key in zip(blocks, keys, strict=True):
            entry = np.searchsorted(pair, key)
            kept = wanted[entry]
            positions = block.positions if kept.all() else block.positions[kept]
            parts.append(_Part(block.columns, number[entry[kept]], positions))
        row, moved, own = np.searchsorted(centre, at[wanted]), moved[wanted], self._own(species)
        for strip, along in self._contract(species, features, row, parts):
            atom, of = np.unique(moved[strip], return_inverse=True)
            minus = csr_array((np.full(len(of), -1.0), (of, np.arange(len(of)))))
            change = minus @ along.reshape(len(of), -1)
            self._forces[atom, :, own] += change.reshape(len(atom), 3, -1)

    def _add_virial(
        self,
        species: int,
        features: FloatArray,
        blocks: Sequence[GradientBlock],
        centre: IntArray,
    ) -> None:
        """Add what the features of centres of one species change under strain."""
        assert self._virial is not None
        parts = [
            _Part(block.columns, np.searchsorted(centre, block.centre), block.strain)
            for block in blocks
        ]
        own = self._own(species)
        for _, along in self._contract(species, features, np.arange(len(centre)), parts):
            self._virial[:, own] += along.sum(axis=0)

    def _own(self, species: int) -> slice:
        """Columns of the model's block of a central species."""
        return slice(self._stop[species] - self._tangent.raw_widths[species], self._stop[species])

    def _contract(
        self, species: int, features: FloatArray, row: IntArray, parts: Sequence[_Part]
    ) -> Iterator[tuple[slice, FloatArray]]:
        """Take derivatives of features through the feature map, strip by strip.

        Parameters
        ----------
        species
            Index of the central species.
        features : (n_centres, n_features)
            Of centres of that species.
        row : (n_entries,)
            The centre of each entry.
        parts
            Derivatives of features at the entries, by columns.

        Yields
        ------
        slice, ndarray
            Some entries, and their derivatives (n, n_directions, width).
        """
        n_directions = parts[0].gradient.shape[1]
        width, n_features = self._tangent.raw_widths[species], self._n_features
        step = max(1, STRIP_NBYTES // (8 * n_directions * (n_features + width)))
        for start in range(0, len(row), step):
            strip = slice(start, min(start + step, len(row)))
            direction = np.zeros((strip.stop - start, n_directions, n_features))
            for columns, entry, gradient in parts:
                some = slice(*np.searchsorted(entry, (start, strip.stop)))
                direction[entry[some] - start, :, columns] = gradient[some]
            along = self._tangent.derivative(
                species,
                features,
                direction.reshape(-1, n_features),
                np.repeat(row[strip], n_directions),
            )
            yield strip, along.reshape(-1, n_directions, width)


def _check_finite(rows: DerivativeRows) -> None:
    """Name the atom whose force, or the stress, is lost where atoms coincide."""
    if rows.forces is not None:
        lost = np.flatnonzero(~np.isfinite(rows.forces.sum(axis=1)))
        if lost.size:
            raise InputError(
                f"the derivatives of the features by the position of atom {lost[0] // 3} are not"
                f" finite, as are those of {np.unique(lost // 3).size} atom(s) in all."
                " Check the distances between atoms."
            )
    if rows.stress is not None and not np.isfinite(rows.stress.sum()):
        raise InputError(
            "the derivatives of the features by the strain are not finite."
            " Check the distances between atoms."
        )
