"""What every kind of descriptor does with pieces: checks, batches, the species of a job."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dlpr.errors import InputError, JobError
from dlpr.structures.frames import Piece

if TYPE_CHECKING:
    from ase import Atoms

Fill = Callable[[NDArray[np.float64], list[Piece], list[NDArray[np.int64]]], None]
"""Writes the features of the centres of some pieces into rows made for them."""

_CHAIN_SPACING = 3.0
"""Å between the atoms of the structure that tells a number of columns."""


def sorted_species(species: Sequence[int]) -> tuple[int, ...]:
    """Atomic numbers in ascending order, each once.

    Raises
    ------
    JobError
        If there are none, or one is no atomic number.
    """
    found = tuple(sorted({int(number) for number in species}))
    if not found or not 1 <= found[0] <= found[-1] <= 118:
        raise JobError(
            f"the species of the descriptor are {list(found)}; needed are atomic numbers"
            " from 1 to 118, one at least. Check the species of the structures."
        )
    return found


def centres_of(piece: Piece) -> NDArray[np.int64]:
    """Rows of the atoms whose environments are wanted."""
    return np.arange(len(piece.species)) if piece.centre is None else piece.centre


def chain_of(species: Sequence[int]) -> Piece:
    """An open chain of one atom of each species, which tells the columns of what is a black box.

    It is periodic in a box around it.
    """
    n = len(species)
    position = np.zeros((n, 3))
    position[:, 0] = _CHAIN_SPACING * np.arange(n)
    cell = np.diag([_CHAIN_SPACING * (n + 3), *2 * [4 * _CHAIN_SPACING]])
    return Piece(position, np.array(species, np.uint8), cell, np.ones(3, np.bool_))


def atoms_of(piece: Piece) -> Atoms:
    """Convert to ASE's form."""
    from ase import Atoms

    return Atoms(piece.species, piece.position, cell=piece.cell, pbc=piece.pbc)


def compute_in_batches(
    pieces: Sequence[Piece], species: Sequence[int], n_features: int, most_atoms: int, fill: Fill
) -> NDArray[np.float64]:
    """Compute features batch by batch, after a look at the pieces and before one at the features.

    Parameters
    ----------
    pieces
        Atoms, and which of them are centres.
    species
        Atomic numbers of the job.
    n_features
        Columns.
    most_atoms
        Of a batch, but for a piece that has more.
    fill
        Computes a batch.

    Returns
    -------
    ndarray
        (total number of centres, n_features), rows in the order of the pieces and of each
        piece's ``centre``.

    Raises
    ------
    InputError
        If a species is not one of the job's, a position, cell or feature is not finite, or a
        centre is out of range or named twice.
    """
    for index, piece in enumerate(pieces):
        check_piece(piece, index, species)
    centres = [centres_of(piece) for piece in pieces]
    features = np.empty((sum(map(len, centres)), n_features))
    stop = 0
    for batch in _batches(pieces, centres, most_atoms):
        start, stop = stop, stop + sum(len(centres[index]) for index in batch)
        chosen = [pieces[index] for index in batch]
        fill(features[start:stop], chosen, [centres[index] for index in batch])
        lost = np.flatnonzero(~np.isfinite(features[start:stop].sum(axis=1)))
        if lost.size:
            where = [(index, atom) for index in batch for atom in centres[index]][lost[0]]
            raise InputError(
                f"the features of atom {where[1]} of structure {where[0]} of this call are not"
                f" finite, as are those of {lost.size} atom(s) in all."
                " Check the distances between atoms."
            )
    return features


def check_piece(piece: Piece, index: int, species: Sequence[int]) -> None:
    """Catch what featomic would accept in silence.

    Parameters
    ----------
    piece
        Atoms and centres.
    index
        Of the piece in the call, for messages.
    species
        Atomic numbers of the job.

    Raises
    ------
    InputError
        If a species is not one of the job's, a position or the cell is not finite, or a centre is
        out of range or named twice.
    """
    unknown = np.flatnonzero(~np.isin(piece.species, species))
    if unknown.size:
        raise InputError(
            f"atom {unknown[0]} of structure {index} of this call has the atomic number"
            f" {piece.species[unknown[0]]}, as {unknown.size} atom(s) in all have one that is"
            f" not among the descriptor's species {list(species)}."
            " Make the descriptor with the species of all structures."
        )
    lost = np.flatnonzero(~np.isfinite(piece.position).all(axis=1))
    if lost.size or not np.isfinite(piece.cell).all():
        what = f"position of atom {lost[0]}" if lost.size else "cell"
        raise InputError(
            f"the {what} of structure {index} of this call is not finite. Correct the structure."
        )
    if piece.centre is not None:
        inside = (piece.centre >= 0) & (piece.centre < len(piece.species))
        if not inside.all() or np.unique(piece.centre).size != piece.centre.size:
            raise InputError(
                f"the {piece.centre.size} centres of structure {index} of this call must be"
                f" different rows of its {len(piece.species)} atoms; found"
                f" {np.unique(piece.centre).size} different ones, {int(inside.sum())} in range."
            )


def _batches(
    pieces: Sequence[Piece], centres: Sequence[NDArray[np.int64]], most_atoms: int
) -> Iterator[list[int]]:
    """Group pieces with centres, in order, into batches of at most so many atoms or one piece."""
    batch: list[int] = []
    n_atoms = 0
    for index, piece in enumerate(pieces):
        if not len(centres[index]):
            continue
        if batch and n_atoms + len(piece.species) > most_atoms:
            yield batch
            batch, n_atoms = [], 0
        batch.append(index)
        n_atoms += len(piece.species)
    if batch:
        yield batch
