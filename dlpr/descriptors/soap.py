"""The SOAP power spectrum as rows with one fixed layout of columns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlpr.descriptors.columns import Columns, full_columns, reduced_columns, spectrum_factor
from dlpr.descriptors.kind import FeatomicKind
from dlpr.descriptors.neighbours import CALL_NBYTES, DENSITY, Surroundings, surroundings_nbytes
from dlpr.descriptors.pieces import check_piece, compute_in_batches
from dlpr.descriptors.spectrum import LANES, SLOTS, WIDTH, power_spectrum
from dlpr.structures.frames import Piece

BATCH = 512
"""Atoms whose surroundings are set up together, and environments computed together."""

_MARGIN = 1.3
"""On what was measured, see `CALL_NBYTES`."""


class Soap(FeatomicKind):
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

    kind = "soap"

    def __init__(self, hypers: Mapping[str, Any], species: Sequence[int]) -> None:
        from dlpr.descriptors.native import channels

        super().__init__(hypers, species)
        self.parameters = json.dumps(self.hypers)
        self.channels = channels(self.parameters, "soap")

    @property
    def cutoff(self) -> float:
        """Radius of an environment in Å."""
        return float(self.hypers["cutoff"]["radius"])

    @property
    def n_features(self) -> int:
        """Number of columns."""
        return len(self.columns["weight"])

    @cached_property
    def full_columns(self) -> Columns:
        """featomic's own columns and where to find them, see `dlpr.descriptors.columns`."""
        return full_columns(self.species, self.channels.radial)

    @cached_property
    def columns(self) -> Columns:
        """The columns, arrays (n_features,): neighbour_1, neighbour_2, l, n_1, n_2, weight."""
        return reduced_columns(self.full_columns)

    @cached_property
    def place(self) -> dict[tuple[int, int], int]:
        """First column of each pair of neighbour species, which are given by their indices."""
        pairs = np.stack([self.columns["neighbour_1"], self.columns["neighbour_2"]], axis=1)
        numbers, start = np.unique(pairs, axis=0, return_index=True)
        index = np.searchsorted(self.species, numbers).tolist()
        return {(a, b): at for (a, b), at in zip(index, start.tolist(), strict=True)}

    @cached_property
    def _factor(self) -> NDArray[np.float64]:
        """Factor of each column on the sum over m, (n_features,)."""
        return spectrum_factor(self.columns)

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
        return compute_in_batches(pieces, self.species, self.n_features, BATCH, self._fill)

    def _fill(
        self,
        features: NDArray[np.float64],
        pieces: Sequence[Piece],
        centres: Sequence[NDArray[np.int64]],
    ) -> None:
        """Write the features of the centres of some pieces."""
        from dlpr.descriptors.radial import radial_table

        table = radial_table(self.parameters)
        around = Surroundings(pieces, centres, self.cutoff, self.species)
        for start in range(0, len(features), BATCH):
            stop = min(start + BATCH, len(features))
            power_spectrum(
                around.neighbours(start, stop),
                around.centre_species(start, stop),
                table,
                self.channels,
                self.place,
                self._factor,
                features[start:stop],
            )

    def compute_nbytes(
        self,
        n_environments: int,
        n_atoms: int | None = None,
        density: float = DENSITY,
        volume: float | None = None,
    ) -> int:
        """Bound the memory that `compute` needs beyond what the process held before.

        Parameters
        ----------
        n_environments
            Centres of all pieces of the call.
        n_atoms
            Atoms of the largest piece, halo included. None: all environments are of one piece.
        density
            Atoms per Å³, of the densest structure.
        volume
            Not asked for: what lies beyond the cutoff costs nothing.

        Returns
        -------
        int
            Bytes, the returned rows included.
        """
        n_neighbours = density * 4.0 / 3.0 * np.pi * self.cutoff**3
        around = surroundings_nbytes(n_environments, n_atoms, density, self.cutoff, BATCH)
        radial = self.channels.radial
        slots = max(SLOTS, 2.0 * LANES * n_neighbours)
        values = (radial[-1][0] + 1) ** 2 + 3 * max(size for _, size in radial) + 16
        sums = 2 * len(self.species) * max(size * (2 * l_ + 1) for l_, size in radial)
        group = slots * values + WIDTH * (sums + 2 * self.n_features)
        needed = around + 8 * group
        return int(8 * n_environments * self.n_features + _MARGIN * needed) + CALL_NBYTES

    def check(self, piece: Piece, index: int) -> None:
        """Catch what featomic would accept in silence; `index` is the piece's in the call."""
        check_piece(piece, index, self.species)
