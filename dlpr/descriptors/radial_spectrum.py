"""The radial spectrum: the l = 0 coefficients of the neighbour densities."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dlpr.descriptors.columns import Columns
from dlpr.descriptors.near_kind import BATCH, NearKind
from dlpr.descriptors.neighbours import CALL_NBYTES, DENSITY, Neighbours, surroundings_nbytes

if TYPE_CHECKING:  # it imports featomic
    from dlpr.descriptors.native import Place

_MARGIN = 1.3
_NODE_NBYTES = 200
"""Per neighbour, to evaluate its radial functions."""


class RadialSpectrum(NearKind):
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
        self.parameters = json.dumps(self.hypers)
        basis = dict(self.hypers["basis"])
        by_angular = {"0": basis.pop("radial")}
        expansion = {"type": "Explicit", "by_angular": by_angular, **basis}
        self._expansion = json.dumps({**self.hypers, "basis": expansion})
        self._channels = channels(self._expansion, "radial")

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

    def _write(
        self, near: Neighbours, own: NDArray[np.int64], features: NDArray[np.float64]
    ) -> None:
        from dlpr.descriptors.radial import radial_table

        table = radial_table(self._expansion)
        values = next(table.functions(*table.cubics(near.distance)))
        sums = np.zeros((near.count.size, self._n_radial))
        count = near.count.ravel()
        some = np.flatnonzero(count)
        if some.size:
            sums[some] = np.add.reduceat(values, (np.cumsum(count) - count)[some], axis=0)
        sums /= np.sqrt(4.0 * np.pi)  # Y_00
        coefficients = sums.reshape(*near.count.shape, self._n_radial)
        coefficients[np.arange(len(own)), own] += self._channels.centre
        features[:] = coefficients.reshape(len(own), -1)

    @property
    def _gradient_sizes(self) -> tuple[int, int]:
        return self._n_radial, self._n_radial

    @property
    def places(self) -> Mapping[tuple[int, ...], Place]:
        """Columns of each neighbour species."""
        from dlpr.descriptors.native import Place

        size = self._n_radial
        labels, weight = np.arange(size, dtype=np.int32)[:, None], np.ones(size)
        return {
            (number,): Place(slice(k * size, (k + 1) * size), labels, weight)
            for k, number in enumerate(self.species)
        }

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
