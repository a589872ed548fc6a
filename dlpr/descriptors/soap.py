"""The SOAP power spectrum as rows with one fixed layout of columns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlpr.descriptors.columns import Columns, full_columns, reduced_columns
from dlpr.descriptors.hypers import check_hypers
from dlpr.descriptors.neighbours import Surroundings
from dlpr.descriptors.spectrum import LANES, SLOTS, WIDTH, power_spectrum
from dlpr.errors import InputError, JobError
from dlpr.structures.frames import Piece

BATCH = 512
"""Atoms whose surroundings are set up together, and environments computed together."""

# Behind `Soap.compute_nbytes`, measured as the growth of VmHWM in fresh processes: 1 to 4 species,
# 1 to 12,000 atoms, 11 to 320 neighbours, 3 to 11,000 columns.
_MARGIN = 1.3
_CALL_NBYTES = 16 * 2**20
"""Also what featomic needs once, to tabulate its radial functions."""
_IMAGE_NBYTES = 120
"""Per atom and periodic image that centres can see."""
_PAIR_NBYTES = 180
"""Per centre and neighbour."""


class Soap:
    """SOAP power spectrum of featomic, without its exact duplicate columns.

    Columns are (neighbour_1 <= neighbour_2, l, n_1, n_2) for all pairs of the species of the whole
    job, whatever species a call meets and whatever the central species is.

    Parameters
    ----------
    hypers
        featomic's hyperparameters of ``SoapPowerSpectrum``: cutoff, density, basis.
    species
        Atomic numbers of all atoms of the job.

    Raises
    ------
    JobError
        If a hyperparameter is unknown, missing or out of range, or featomic refuses them.
    """

    def __init__(self, hypers: Mapping[str, Any], species: Sequence[int]) -> None:
        from dlpr.descriptors.native import channels

        self._hypers = check_hypers(hypers)
        self.species: tuple[int, ...] = tuple(sorted({int(number) for number in species}))
        if not self.species or not 1 <= self.species[0] <= self.species[-1] <= 118:
            raise JobError(
                f"the species of the descriptor are {list(self.species)}; needed are atomic numbers"
                " from 1 to 118, one at least. Check the species of the structures."
            )
        self._parameters = json.dumps(self._hypers)
        self._channels = channels(self._parameters)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the tables of columns, which are quickly made again."""
        cached = ("columns", "full_columns", "_place", "_factor")
        return {name: value for name, value in self.__dict__.items() if name not in cached}

    @property
    def cutoff(self) -> float:
        """Radius of an environment in Å."""
        return float(self._hypers["cutoff"]["radius"])

    @property
    def n_features(self) -> int:
        """Number of columns."""
        return len(self.columns["weight"])

    @cached_property
    def full_columns(self) -> Columns:
        """featomic's own columns and where to find them, see `dlpr.descriptors.columns`."""
        return full_columns(self.species, self._channels.radial)

    @cached_property
    def columns(self) -> Columns:
        """The columns, arrays (n_features,): neighbour_1, neighbour_2, l, n_1, n_2, weight."""
        return reduced_columns(self.full_columns)

    @cached_property
    def _place(self) -> dict[tuple[int, int], int]:
        """First column of each pair of neighbour species, which are given by their indices."""
        pairs = np.stack([self.columns["neighbour_1"], self.columns["neighbour_2"]], axis=1)
        numbers, start = np.unique(pairs, axis=0, return_index=True)
        index = np.searchsorted(self.species, numbers).tolist()
        return {(a, b): at for (a, b), at in zip(index, start.tolist(), strict=True)}

    @cached_property
    def _factor(self) -> NDArray[np.float64]:
        """Factor of each column on the sum over m, (n_features,).

        featomic's (-1)^l / sqrt(2 l + 1), its sqrt(2) for pairs of different species, and the
        weight of the reduced layout.
        """
        l_ = self.columns["l"]
        cross = self.columns["neighbour_1"] != self.columns["neighbour_2"]
        norm = np.where(l_ % 2 == 0, 1.0, -1.0) * np.sqrt(2.0 * l_ + 1.0)
        factor: NDArray[np.float64] = np.where(cross, np.sqrt(2.0), self.columns["weight"]) / norm
        return factor

    def settings(self) -> dict[str, Any]:
        """Return all that decides the columns and their values, as JSON can hold it."""
        return {
            "soap": json.loads(self._parameters),
            "species": list(self.species),
            "featomic": version("featomic"),
        }

    def columns_with(self, species: int) -> NDArray[np.bool_]:
        """Mark the columns, (n_features,), in which a neighbour species takes part."""
        first, second = self.columns["neighbour_1"], self.columns["neighbour_2"]
        return np.asarray((first == species) | (second == species))

    def expand(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return rows in featomic's full layout, (n_rows, n_full_columns)."""
        full = self.full_columns
        rows: NDArray[np.float64] = features[..., full["column"]]
        rows /= full["weight"]
        return rows

    def compute(self, pieces: Sequence[Piece]) -> NDArray[np.float64]:
        """Compute the features of the centres of some pieces.

        Parameters
        ----------
        pieces
            Atoms with any periodicity; open directions are made periodic, which is exact.

        Returns
        -------
        ndarray
            (total number of centres, n_features), rows in the order of the pieces and of each
            piece's ``centre``. A row does not depend on what else is in the call, to the bit.

        Raises
        ------
        InputError
            If a species is not one of the job's, a position, cell or feature is not finite, a
            centre is out of range or named twice, or featomic refuses or loses an atom.
        """
        for index, piece in enumerate(pieces):
            self._check(piece, index)
        centres = [_centres(piece) for piece in pieces]
        features = np.empty((sum(map(len, centres)), self.n_features))
        stop = 0
        for batch in _batches(pieces, centres):
            start, stop = stop, stop + sum(len(centres[index]) for index in batch)
            chosen = [pieces[index] for index in batch]
            self._fill(features[start:stop], chosen, [centres[index] for index in batch])
            lost = np.flatnonzero(~np.isfinite(features[start:stop].sum(axis=1)))
            if lost.size:
                where = [(index, atom) for index in batch for atom in centres[index]][lost[0]]
                raise InputError(
                    f"the features of atom {where[1]} of structure {where[0]} of this call are not"
                    f" finite, as are those of {lost.size} atom(s) in all."
                    " Check the distances between atoms."
                )
        return features

    def _fill(
        self,
        features: NDArray[np.float64],
        pieces: Sequence[Piece],
        centres: Sequence[NDArray[np.int64]],
    ) -> None:
        """Write the features of the centres of some pieces."""
        from dlpr.descriptors.radial import radial_table

        table = radial_table(self._parameters)
        around = Surroundings(pieces, centres, self.cutoff, self.species)
        for start in range(0, len(features), BATCH):
            stop = min(start + BATCH, len(features))
            power_spectrum(
                around.neighbours(start, stop),
                around.centre_species(start, stop),
                table,
                self._channels,
                self._place,
                self._factor,
                features[start:stop],
            )

    def compute_nbytes(
        self, n_environments: int, n_atoms: int | None = None, n_neighbours: float = 200.0
    ) -> int:
        """Bound the memory that `compute` needs beyond what the process held before.

        Parameters
        ----------
        n_environments
            Centres of all pieces of the call.
        n_atoms
            Atoms of the largest piece, halo included. None: all environments are of one piece.
        n_neighbours
            Mean number of neighbours within the cutoff.

        Returns
        -------
        int
            Bytes, the returned rows included.
        """
        largest = max(BATCH, n_environments if n_atoms is None else n_atoms)
        density = n_neighbours / (4.0 / 3.0 * np.pi * self.cutoff**3)
        edge = (largest / density) ** (1.0 / 3.0)
        # As many as in one large cell, or around as many atoms in the smallest of cells.
        images = max(density * (edge + 2.0 * self.cutoff) ** 3, 4.0 * BATCH * n_neighbours)
        pairs = min(BATCH, n_environments) * n_neighbours
        radial = self._channels.radial
        slots = max(SLOTS, 2.0 * LANES * n_neighbours)
        values = (radial[-1][0] + 1) ** 2 + 3 * max(size for _, size in radial) + 16
        sums = 2 * len(self.species) * max(size * (2 * l_ + 1) for l_, size in radial)
        group = slots * values + WIDTH * (sums + 2 * self.n_features)
        needed = _IMAGE_NBYTES * images + _PAIR_NBYTES * pairs + 8 * group
        return int(8 * n_environments * self.n_features + _MARGIN * needed) + _CALL_NBYTES

    def _check(self, piece: Piece, index: int) -> None:
        """Catch what featomic would accept in silence."""
        unknown = np.flatnonzero(~np.isin(piece.species, self.species))
        if unknown.size:
            raise InputError(
                f"atom {unknown[0]} of structure {index} of this call has the atomic number"
                f" {piece.species[unknown[0]]}, as {unknown.size} atom(s) in all have one that is"
                f" not among the descriptor's species {list(self.species)}."
                " Make the descriptor with the species of all structures."
            )
        lost = np.flatnonzero(~np.isfinite(piece.position).all(axis=1))
        if lost.size or not np.isfinite(piece.cell).all():
            what = f"position of atom {lost[0]}" if lost.size else "cell"
            raise InputError(
                f"the {what} of structure {index} of this call is not finite."
                " Correct the structure."
            )
        if piece.centre is not None:
            inside = (piece.centre >= 0) & (piece.centre < len(piece.species))
            if not inside.all() or np.unique(piece.centre).size != piece.centre.size:
                raise InputError(
                    f"the {piece.centre.size} centres of structure {index} of this call must be"
                    f" different rows of its {len(piece.species)} atoms; found"
                    f" {np.unique(piece.centre).size} different ones, {int(inside.sum())} in range."
                )


def _centres(piece: Piece) -> NDArray[np.int64]:
    return np.arange(len(piece.species)) if piece.centre is None else piece.centre


def _batches(pieces: Sequence[Piece], centres: Sequence[NDArray[np.int64]]) -> Iterator[list[int]]:
    """Group pieces with centres, in order, into batches of at most BATCH atoms or one piece."""
    batch: list[int] = []
    n_atoms = 0
    for index, piece in enumerate(pieces):
        if not len(centres[index]):
            continue
        if batch and n_atoms + len(piece.species) > BATCH:
            yield batch
            batch, n_atoms = [], 0
        batch.append(index)
        n_atoms += len(piece.species)
    if batch:
        yield batch
