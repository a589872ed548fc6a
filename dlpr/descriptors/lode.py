"""Long-distance equivariants: the power spectrum of the potential that all atoms make."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dlpr.descriptors.columns import (
    Columns,
    full_columns,
    pair_columns,
    reduced_columns,
    spectrum_factor,
)
from dlpr.descriptors.kind import FeatomicKind
from dlpr.descriptors.lode_spectrum import LodeGradients, products
from dlpr.descriptors.neighbours import CALL_NBYTES, DENSITY, complete_cell
from dlpr.descriptors.pieces import check_piece, compute_in_batches
from dlpr.errors import InputError
from dlpr.structures.frames import Piece

BATCH = 64
"""Centres whose products of coefficients are made together."""

_MARGIN = 1.3


def memory_nbytes() -> int:
    """Memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class Lode(FeatomicKind):
    """Power spectrum of featomic's LODE coefficients, without its exact duplicate columns.

    Every atom of a periodic cell, and every image of it, enters every environment, with a smeared
    potential 1/r^p (Grisafi and Ceriotti, J. Chem. Phys. 151, 204105, 2019). As in the power
    spectrum of `featomic.clebsch_gordan.PowerSpectrum`, coefficients of equal l are multiplied and
    summed over m; columns are those of `Soap`: (neighbour_1 <= neighbour_2, l, n_1, n_2), where
    one stands for two equal ones with the weight sqrt(2).

    With ``exclude``, atoms within a cutoff, the centre among them, are taken off the coefficients,
    as much of each as the smoothing has of it: beside SOAP of that cutoff, components of separate
    ranges (FD24 sec. 5.2). It is exact up to featomic's truncation of waves at ``k_cutoff``.

    Parameters
    ----------
    hypers
        featomic's hyperparameters of ``LodeSphericalExpansion``: density, basis, k_cutoff; and
        exclude, the keys of a cutoff of featomic (radius, smoothing).
    species
        Atomic numbers of all atoms of the job.

    Raises
    ------
    JobError
        If a hyperparameter is unknown, missing or out of range, or featomic refuses them.
    """

    kind = "lode"
    underived: ClassVar[Mapping[str, str]] = {
        "stress": "featomic differentiates LODE by positions alone"
    }

    def __init__(self, hypers: Mapping[str, Any], species: Sequence[int]) -> None:
        from dlpr.descriptors.fourier import lode_channels

        super().__init__(hypers, species)
        self.parameters = json.dumps(self.hypers)
        self._channels = lode_channels(self.parameters)

    @property
    def cutoff(self) -> float:
        """Infinite: a whole structure is needed."""
        return math.inf

    @property
    def n_features(self) -> int:
        """Number of columns."""
        return len(self.columns["weight"])

    @cached_property
    def columns(self) -> Columns:
        """The columns, arrays (n_features,): neighbour_1, neighbour_2, l, n_1, n_2, weight.

        ``weight`` is the factor on the value in ``featomic.clebsch_gordan.PowerSpectrum``.
        """
        columns = reduced_columns(full_columns(self.species, self._channels))
        cross = columns["neighbour_1"] != columns["neighbour_2"]
        return {**columns, "weight": np.where(cross, np.sqrt(2.0), columns["weight"])}

    @cached_property
    def place(self) -> dict[tuple[int, int], slice]:
        """Columns of each pair of neighbour species, which are given by their indices."""
        return pair_columns(self.columns, self.species)

    @cached_property
    def factor(self) -> NDArray[np.float64]:
        """Factor of each column on the sum over m, (n_features,)."""
        return spectrum_factor(self.columns)

    def compute(self, pieces: Sequence[Piece]) -> NDArray[np.float64]:
        """Compute the features of the centres of some pieces.

        Parameters
        ----------
        pieces
            Whole structures, periodic along all axes.

        Returns
        -------
        ndarray
            (total number of centres, n_features), rows in the order of the pieces and of each
            piece's ``centre``. A row does not depend on what else is in the call, to the bit.

        Raises
        ------
        InputError
            If a structure is not periodic along all axes, its cell spans no volume or asks for
            more than this machine's memory, or as for `compute_in_batches`.
        """
        for index, piece in enumerate(pieces):
            self._check(piece, index)
        return compute_in_batches(pieces, self.species, self.n_features, 1, self._fill)

    def _fill(
        self,
        features: NDArray[np.float64],
        pieces: Sequence[Piece],
        centres: Sequence[NDArray[np.int64]],
    ) -> None:
        """Write the features of the centres of one piece."""
        from dlpr.descriptors.fourier import lode_coefficients

        (piece,), (chosen,) = pieces, centres
        coefficients = lode_coefficients(self.parameters, piece, chosen, self.species)
        for start in range(0, len(chosen), BATCH):
            some = slice(start, start + BATCH)
            for (a, b), columns in self.place.items():
                left, right = ({l_: c[some, s] for l_, c in coefficients.items()} for s in (a, b))
                features[some, columns] = products(left, right, a == b) * self.factor[columns]

    def _check(self, piece: Piece, index: int) -> None:
        """Refuse what has no waves, and a cell that featomic could not hold, before the system ends
        the process."""
        if not piece.pbc.all():
            raise InputError(
                f"structure {index} of this call is periodic along {int(piece.pbc.sum())} of"
                " its axes; LODE sums over waves of a cell and needs all 3. Put the structure"
                " in a periodic cell with vacuum, or take a descriptor with a cutoff."
            )
        cell = complete_cell(piece)
        volume = abs(float((cell[0] * np.cross(cell[1], cell[2])).sum()))
        n_atoms = len(piece.species)
        needed, there = self._waves_nbytes(n_atoms, volume), memory_nbytes()
        if needed > there:
            raise InputError(
                f"structure {index} of this call has {n_atoms} atoms in {volume:.4g} Å³; its sums"
                f" over waves need {needed / 2**30:.1f} GiB, this machine has"
                f" {there / 2**30:.1f} GiB. Lower descriptor.lode.k_cutoff or raise"
                " descriptor.lode.density.smearing, or leave out such large cells."
            )

    def _waves_nbytes(self, n_atoms: int, volume: float) -> float:
        """What featomic holds: two sums over waves for each atom and each species around it."""
        from dlpr.descriptors.fourier import wave_cutoff

        n_waves = volume * wave_cutoff(self.hypers) ** 3 / (12.0 * np.pi**2) + 1.0
        n_coefficients = sum(size * (2 * l_ + 1) for l_, size in self._channels)
        return 16.0 * n_waves * (n_atoms * (1 + len(self.species)) + n_coefficients)

    def gradients(
        self, piece: Piece, centres: NDArray[np.int64], *, forces: bool, stress: bool
    ) -> LodeGradients:
        """Give derivatives of the features of some centres, see `dlpr.descriptors.Descriptor`."""
        check_piece(piece, 0, self.species)
        self._check(piece, 0)
        return LodeGradients(self, piece, centres)

    def gradient_nbytes(self, n_atoms: int, density: float, *, forces: bool, stress: bool) -> float:
        """Bound what derivatives of one centre take, see `dlpr.descriptors.Descriptor`.

        Every atom moves featomic's coefficients, ours, those of the centres of one species, the
        features, and products of a pair of species.
        """
        n_coefficients = sum(size * (2 * l_ + 1) for l_, size in self._channels)
        square = max(size for _, size in self._channels) ** 2
        n_moved = n_atoms + len(self.species)
        return 24.0 * n_moved * (3 * n_coefficients + 2 * self.n_features + 2 * square)

    def compute_nbytes(
        self,
        n_environments: int,
        n_atoms: int | None = None,
        density: float = DENSITY,
        volume: float | None = None,
    ) -> int:
        """Bound the memory of a call of `compute`, see `dlpr.descriptors.Descriptor`."""
        atoms = n_environments if n_atoms is None else n_atoms
        cell = atoms / density if volume is None else volume
        waves = self._waves_nbytes(atoms, cell)
        n_coefficients = sum(size * (2 * l_ + 1) for l_, size in self._channels)
        products = 32.0 * BATCH * self.n_features
        coefficients = 24.0 * n_environments * n_coefficients * len(self.species)
        needed = waves + products + coefficients
        return int(8 * n_environments * self.n_features + _MARGIN * needed) + CALL_NBYTES
