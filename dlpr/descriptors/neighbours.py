"""Neighbours of the wanted centres of some pieces, periodic images included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlpr.errors import InputError
from dlpr.structures.frames import Piece

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_FLAT = 1e-8
"""A cell is degenerate where its volume is below this part of the product of its edges."""
_MARGIN = 1.0 + 1e-9
"""The search reaches a little farther than the cutoff; distances decide."""

DENSITY = 0.2
"""Atoms per Å³, where none is given: more than in diamond."""
CALL_NBYTES = 16 * 2**20
"""What any call needs; also what featomic needs once, to tabulate its radial functions.

All numbers of bytes are measured as the growth of VmHWM in fresh processes: 1 to 4 species, 1 to
12,000 atoms, 11 to 320 neighbours, 3 to 11,000 columns."""
_IMAGE_NBYTES = 120
"""Per atom and periodic image that centres can see."""
_PAIR_NBYTES = 180
"""Per centre and neighbour."""


@dataclass(frozen=True)
class Neighbours:
    """Neighbours by centre, by species within a centre, in the order of the piece's atoms."""

    count: Integers
    """(n_centres, n_species)"""
    distance: Floats
    """(n_neighbours,) Å"""
    direction: Floats
    """(3, n_neighbours) unit vectors from the centre; NaN where atoms coincide"""
    atom: Integers
    """(n_neighbours,) the atom they are or are images of, counted over all pieces"""


class Surroundings:
    """Atoms of some pieces and all their images that centres can see.

    Parameters
    ----------
    pieces
        With any periodicity. Cell vectors along open directions are not used; they can be zero.
    centres
        Of each piece, rows of its atoms.
    cutoff
        Å
    species
        Atomic numbers, ascending; every atom has one of them.

    Raises
    ------
    InputError
        If the cell vectors along the periodic directions do not span them.
    """

    def __init__(
        self,
        pieces: Sequence[Piece],
        centres: Sequence[Integers],
        cutoff: float,
        species: Sequence[int],
    ) -> None:
        sizes = [len(piece.species) for piece in pieces]
        number = np.repeat(np.arange(len(pieces)), sizes)
        atom, self._position, home = _images(pieces, number, cutoff)
        numbers = np.concatenate([piece.species for piece in pieces])
        self._species: Integers = np.searchsorted(species, numbers)[atom]
        self._atom = atom
        self._n_species = len(species)
        self._cutoff = cutoff
        # Pieces are apart along a fourth axis.
        self._point = np.column_stack([self._position, 3.0 * cutoff * number[atom]])
        from scipy.spatial import cKDTree  # slow to load

        self._tree = cKDTree(self._point)
        first = np.cumsum(sizes) - sizes
        self._centre = home[np.concatenate([f + c for f, c in zip(first, centres, strict=True)])]

    def centre_species(self, start: int, stop: int) -> Integers:
        """Index of each centre's own species, of centres ``start:stop`` of all."""
        own: Integers = self._species[self._centre[start:stop]]
        return own

    def neighbours(self, start: int, stop: int) -> Neighbours:
        """Find the neighbours of centres ``start:stop``, counted over all pieces.

        Order and bits of a centre's neighbours depend on its piece alone.
        """
        from scipy.spatial import cKDTree

        centre = self._centre[start:stop]
        found = cKDTree(self._point[centre]).sparse_distance_matrix(
            self._tree, self._cutoff * _MARGIN, output_type="ndarray"
        )
        row = found["i"] * self._n_species + self._species[found["j"]]
        row, other = np.divmod(np.sort(row * len(self._point) + found["j"]), len(self._point))
        own = centre[row // self._n_species]
        vector = np.ascontiguousarray((self._position[other] - self._position[own]).T)
        square = vector[0] * vector[0] + vector[1] * vector[1] + vector[2] * vector[2]
        kept = (square < self._cutoff * self._cutoff) & (other != own)
        distance = np.sqrt(square[kept])
        with np.errstate(invalid="ignore"):
            direction = vector[:, kept] / distance
        count = np.bincount(row[kept], minlength=len(centre) * self._n_species)
        count = count.reshape(len(centre), self._n_species)
        return Neighbours(count, distance, direction, self._atom[other[kept]])


def surroundings_nbytes(
    n_environments: int, n_atoms: int | None, density: float, cutoff: float, batch: int
) -> float:
    """Memory of `Surroundings` and of the neighbours of a batch of centres.

    Parameters
    ----------
    n_environments, n_atoms
        As for `dlpr.descriptors.Descriptor.compute_nbytes`.
    density
        Atoms per Å³.
    cutoff
        Å
    batch
        Most centres at once, and most atoms of several pieces at once.
    """
    largest = max(batch, n_environments if n_atoms is None else n_atoms)
    n_neighbours = density * 4.0 / 3.0 * np.pi * cutoff**3
    edge = (largest / density) ** (1.0 / 3.0)
    # As many as in one large cell, or around as many atoms in the smallest of cells.
    images = max(density * (edge + 2.0 * cutoff) ** 3, 4.0 * batch * n_neighbours)
    pairs = min(batch, n_environments) * n_neighbours
    return float(_IMAGE_NBYTES * images + _PAIR_NBYTES * pairs)


def _images(
    pieces: Sequence[Piece], number: Integers, cutoff: float
) -> tuple[Integers, Floats, Integers]:
    """Atom and position of each image that can be seen, and the image in the cell of each atom.

    Along an axis of the reciprocal length b the atoms in the cell see cutoff * b cells beyond it.
    """
    cell = np.stack([complete_cell(piece) for piece in pieces])
    periodic = np.stack([piece.pbc for piece in pieces])[number]
    position = np.concatenate([piece.position for piece in pieces])
    planes = np.cross(cell[:, [1, 2, 0]], cell[:, [2, 0, 1]])
    reciprocal = planes / (cell[:, 0] * planes[:, 0]).sum(axis=1)[:, None, None]
    reach = _MARGIN * cutoff * np.sqrt((reciprocal * reciprocal).sum(axis=2))[number]
    fraction = (position[:, None] * reciprocal[number]).sum(axis=2)
    home = np.where(periodic, np.floor(fraction), 0.0)
    fraction -= home
    low = np.where(periodic, np.ceil(-reach - fraction), 0.0).astype(np.int64)
    high = np.where(periodic, np.floor(1.0 + reach - fraction), 0.0).astype(np.int64)
    atom, shift = np.arange(len(position)), np.zeros((len(position), 3), np.int64)
    for axis in range(3):
        n_images = (high - low + 1)[atom, axis]
        source = np.repeat(np.arange(len(atom)), n_images)
        step = np.arange(len(source)) - np.repeat(np.cumsum(n_images) - n_images, n_images)
        atom, shift = atom[source], shift[source]
        shift[:, axis] = low[atom, axis] + step
    in_cell = np.flatnonzero((shift == 0).all(axis=1))
    moved = position[atom]
    for axis in range(3):
        if periodic[:, axis].any():
            moved += (shift[:, axis] - home[atom, axis])[:, None] * cell[number[atom], axis]
    return atom, moved, in_cell


def complete_cell(piece: Piece) -> Floats:
    """The cell, with unit vectors orthogonal to the periodic directions along the open ones."""
    cell = piece.cell.copy()
    periodic = np.flatnonzero(piece.pbc)
    with np.errstate(invalid="ignore"):
        if periodic.size == 0:
            cell = np.eye(3)
        elif periodic.size == 1:
            axis = int(periodic[0])
            along = _unit(cell[axis])
            first = np.cross(along, np.eye(3)[np.argmin(np.abs(along))])
            cell[(axis + 1) % 3] = _unit(first)
            cell[(axis + 2) % 3] = np.cross(along, cell[(axis + 1) % 3])
        elif periodic.size == 2:
            axis = 3 - int(periodic.sum())
            normal = np.cross(cell[(axis + 1) % 3], cell[(axis + 2) % 3])
            cell[axis] = _unit(normal)
        edges = float(np.sqrt((cell * cell).sum(axis=1)).prod())
        volume = abs(float((cell[0] * np.cross(cell[1], cell[2])).sum()))
    if not volume > _FLAT * edges:
        raise InputError(
            f"the cell vectors {piece.cell[periodic].tolist()} Å of the {periodic.size} periodic"
            f" direction(s) span no volume: {volume:.3g} Å³ with the open directions of length 1;"
            f" it must be greater than {_FLAT * edges:.3g}. Correct the cell, or the periodicity,"
            " of this structure."
        )
    return cell


def _unit(vector: Floats) -> Floats:
    """The vector over its length, elementwise: a norm's bits depend on the BLAS kernel."""
    unit: Floats = vector / np.sqrt((vector * vector).sum())
    return unit
