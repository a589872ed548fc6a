"""The radial spectrum: the l = 0 coefficients of the neighbour densities."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlpr.descriptors.columns import Columns
from dlpr.descriptors.kind import FeatomicKind
from dlpr.descriptors.neighbours import CALL_NBYTES, DENSITY, Surroundings, surroundings_nbytes
from dlpr.descriptors.pieces import compute_in_batches
from dlpr.structures.frames import Piece

BATCH = 512
"""Atoms whose surroundings are set up together, and environments computed together."""

_MARGIN = 1.3
_NODE_NBYTES = 200
"""Per neighbour, to evaluate its radial functions."""


class RadialSpectrum(FeatomicKind):
    """Radial spectrum of featomic: invariants of one neighbour at a time.

    Columns are (neighbour, n) for all species of the whole job. featomic defines the spectrum as
    the spherical expansion with the one channel l = 0; neighbours and sums are those of `Soap`.

    Parameters
    ----------
    hypers
        featomic's hyperparameters of ``SoapRadialSpectrum``: cutoff, density, basis.
    species
        Atomic numbers of all atoms of the job.

    Raises
    ------
    JobError
        If a hyperparameter is unknown, missing or out of range, or featomic refuses them.
    """

    kind = "radial"

    def __init__(self, hypers: Mapping[str, Any], species: Sequence[int]) -> None:
        from dlpr.descriptors.native import channels

        super().__init__(hypers, species)
        basis = dict(self.hypers["basis"])
        by_angular = {"0": basis.pop("radial")}
        expansion = {"type": "Explicit", "by_angular": by_angular, **basis}
        self._parameters = json.dumps({**self.hypers, "basis": expansion})
        self._channels = channels(self._parameters, "radial")

    @property
    def cutoff(self) -> float:
        """Radius of an environment in Å."""
        return float(self.hypers["cutoff"]["radius"])

    @property
    def n_features(self) -> int:
        """Number of columns."""
        return len(self.species) * self._n_radial

    @property
    def _n_radial(self) -> int:
        return self._channels.radial[0][1]

    @cached_property
    def columns(self) -> Columns:
        """The columns, arrays (n_features,): neighbour, n."""
        n_radial = self._n_radial
        return {
            "neighbour": np.repeat(np.array(self.species, np.int32), n_radial),
            "n": np.tile(np.arange(n_radial, dtype=np.int32), len(self.species)),
        }

    def compute(self, pieces: Sequence[Piece]) -> NDArray[np.float64]:
        """Compute the features of the centres of some pieces.

        Parameters
        ----------
        pieces
            Atoms with any periodicity.

        Returns
        -------
        ndarray
            (total number of centres, n_features), rows in the order of the pieces and of each
            piece's ``centre``. A row does not depend on what else is in the call, to the bit.

        Raises
        ------
        InputError
            As for `compute_in_batches`.
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

        table = radial_table(self._parameters)
        around = Surroundings(pieces, centres, self.cutoff, self.species)
        for start in range(0, len(features), BATCH):
            stop = min(start + BATCH, len(features))
            near = around.neighbours(start, stop)
            values = next(table.functions(*table.cubics(near.distance)))
            sums = np.zeros((near.count.size, self._n_radial))
            count = near.count.ravel()
            some = np.flatnonzero(count)
            if some.size:
                sums[some] = np.add.reduceat(values, (np.cumsum(count) - count)[some], axis=0)
            sums /= np.sqrt(4.0 * np.pi)  # Y_00
            coefficients = sums.reshape(*near.count.shape, self._n_radial)
            own = around.centre_species(start, stop)
            coefficients[np.arange(stop - start), own] += self._channels.centre
            features[start:stop] = coefficients.reshape(stop - start, -1)

    def compute_nbytes(
        self,
        n_environments: int,
        n_atoms: int | None = None,
        density: float = DENSITY,
        volume: float | None = None,
    ) -> int:
        """Bound the memory of a call of `compute`, see `dlpr.descriptors.Descriptor`."""
        around = surroundings_nbytes(n_environments, n_atoms, density, self.cutoff, BATCH)
        n_neighbours = density * 4.0 / 3.0 * np.pi * self.cutoff**3
        pairs = min(BATCH, n_environments) * n_neighbours
        values = pairs * (_NODE_NBYTES + 8 * self._n_radial) + 32.0 * BATCH * self.n_features
        needed = around + values
        return int(8 * n_environments * self.n_features + _MARGIN * needed) + CALL_NBYTES
