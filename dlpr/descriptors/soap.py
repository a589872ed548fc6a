"""The SOAP power spectrum as rows with one fixed layout of columns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dlpr.descriptors.columns import (
    Columns,
    full_columns,
    pair_columns,
    reduced_columns,
    spectrum_factor,
)
from dlpr.descriptors.near_kind import BATCH, NearKind
from dlpr.descriptors.neighbours import CALL_NBYTES, DENSITY, Neighbours, surroundings_nbytes
from dlpr.descriptors.spectrum import LANES, SLOTS, WIDTH, power_spectrum

if TYPE_CHECKING:  # it imports featomic
    from dlpr.descriptors.native import Place

_MARGIN = 1.3
"""On what was measured, see `CALL_NBYTES`."""


class Soap(NearKind):
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
    def place(self) -> dict[tuple[int, int], slice]:
        """Columns of each pair of neighbour species, which are given by their indices."""
        return pair_columns(self.columns, self.species)

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

    def _write(
        self, near: Neighbours, own: NDArray[np.int64], features: NDArray[np.float64]
    ) -> None:
        from dlpr.descriptors.radial import radial_table

        table = radial_table(self.parameters)
        power_spectrum(near, own, table, self.channels, self.place, self._factor, features)

    @property
    def _gradient_sizes(self) -> tuple[int, int]:
        coefficients = sum((2 * l_ + 1) * size for l_, size in self.channels.radial)
        return coefficients, self.n_features

    @cached_property
    def places(self) -> Mapping[tuple[int, ...], Place]:
        """Columns of each pair of neighbour species."""
        from dlpr.descriptors.native import Place

        names = [self.columns[name].astype(np.int32) for name in ("l", "n_1", "n_2")]
        labels, weight = np.stack(names, axis=1), self.columns["weight"]
        return {
            (self.species[a], self.species[b]): Place(own, labels[own], weight[own])
            for (a, b), own in self.place.items()
        }

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
