"""What the descriptors have in common that featomic makes of neighbours within a cutoff."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from dlpr.descriptors.gradient_batches import GradientBlock
from dlpr.descriptors.kind import FeatomicKind
from dlpr.descriptors.neighbours import Neighbours, Surroundings
from dlpr.descriptors.pieces import check_piece, compute_in_batches
from dlpr.structures.frames import Piece

if TYPE_CHECKING:  # it imports featomic
    from dlpr.descriptors.native import Place

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

BATCH = 512
"""Atoms whose surroundings are set up together, and environments computed together."""


class NearKind(FeatomicKind):
    """A descriptor of featomic's whose environments end at a cutoff; parameters as there."""

    underived: ClassVar[Mapping[str, str]] = {}
    parameters: str
    """JSON of the hyperparameters."""

    @property
    def cutoff(self) -> float:
        """Radius of an environment in Å."""
        return float(self.hypers["cutoff"]["radius"])

    def compute(self, pieces: Sequence[Piece]) -> FloatArray:
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
        self, features: FloatArray, pieces: Sequence[Piece], centres: Sequence[IntArray]
    ) -> None:
        """Write the features of the centres of some pieces."""
        around = Surroundings(pieces, centres, self.cutoff, self.species)
        for start in range(0, len(features), BATCH):
            stop = min(start + BATCH, len(features))
            own = around.centre_species(start, stop)
            self._write(around.neighbours(start, stop), own, features[start:stop])

    def _write(self, near: Neighbours, own: IntArray, features: FloatArray) -> None:
        """Write the features of centres with some neighbours and of some species (indices)."""
        raise NotImplementedError

    def gradients(
        self, piece: Piece, centres: IntArray, *, forces: bool, stress: bool
    ) -> NearGradients:
        """Give derivatives of the features of some centres, see `dlpr.descriptors.Descriptor`."""
        check_piece(piece, 0, self.species)
        return NearGradients(self, piece, centres, forces=forces, stress=stress)

    def gradient_nbytes(self, n_atoms: int, density: float, *, forces: bool, stress: bool) -> float:
        """Bound what derivatives of one centre take, see `dlpr.descriptors.Descriptor`."""
        count = np.array([density * 4.0 / 3.0 * np.pi * self.cutoff**3])
        return float(self.centre_nbytes(count, n_atoms, forces=forces, stress=stress)[0])

    def centre_nbytes(
        self, n_neighbours: IntArray | FloatArray, n_atoms: int, *, forces: bool, stress: bool
    ) -> FloatArray:
        """Bound the gradients of each centre's features and of its coefficients, in bytes.

        featomic holds the gradients of coefficients by each atom that is moved, beside them first
        those by each neighbour and then those of the features, which take their place; and for each
        species those by the centre's own position and by strain.
        """
        coefficients, moved_features = self._gradient_sizes
        every = 2 * len(self.species) * coefficients
        n_moved = np.minimum(n_neighbours, n_atoms) + 1
        numbers = np.full(len(n_moved), float(self.n_features + every))
        if forces:
            later = np.maximum(n_neighbours * coefficients, n_moved * moved_features)
            numbers += 3 * (n_moved * coefficients + later + every)
        if stress:
            numbers += 9 * (self.n_features + every)
        return 8.0 * numbers

    @property
    def _gradient_sizes(self) -> tuple[int, int]:
        """Coefficients of each species, and features that an atom changes at most."""
        raise NotImplementedError

    @property
    def places(self) -> Mapping[tuple[int, ...], Place]:
        """Columns of each set of neighbour species, given by their atomic numbers."""
        raise NotImplementedError


class NearGradients:
    """Derivatives by featomic, of some centres of one structure.

    It is given the neighbours. Centres and the atoms that they see are told apart: a centre may
    see images of itself.
    """

    def __init__(
        self, kind: NearKind, piece: Piece, centres: IntArray, *, forces: bool, stress: bool
    ) -> None:
        self._kind, self._species, self._centres = kind, piece.species, centres
        self._wanted = {"forces": forces, "stress": stress}
        self._around = Surroundings([piece], [centres], kind.cutoff, kind.species)

    def nbytes(self, start: int, stop: int) -> FloatArray:
        """Bound the memory that each of the centres ``start:stop`` takes, in bytes."""
        self._start, self._near = start, self._around.neighbours(start, stop)
        count = self._near.count.sum(axis=1)
        return self._kind.centre_nbytes(count, len(self._species), **self._wanted)

    def blocks(self, start: int, stop: int) -> list[GradientBlock]:
        """Derivatives of centres ``start:stop``, some of those that `nbytes` was last asked of."""
        from dlpr.descriptors.native import PAIR, Environments, spectrum_gradients

        near, own = self._near, slice(start - self._start, stop - self._start)
        count = near.count.sum(axis=1)
        end = np.cumsum(count)
        some = slice(end[own.start] - count[own.start], end[own.stop - 1])
        n_centres = stop - start
        seen, second = np.unique(near.atom[some], return_inverse=True)
        pairs = np.zeros(len(second), PAIR)
        pairs["first"] = np.repeat(np.arange(n_centres), count[own])
        pairs["second"] = n_centres + second
        pairs["distance"] = near.distance[some]
        pairs["vector"] = (near.distance[some] * near.direction[:, some]).T
        home = np.concatenate([self._centres[start:stop], seen])
        found = spectrum_gradients(
            self._kind.kind,
            self._kind.parameters,
            Environments(self._species[home].astype(np.int32), count[own], pairs),
            self._kind.places,
            positions=self._wanted["forces"],
            strain=self._wanted["stress"],
        )
        home[:n_centres] = -1
        return [block._replace(gradient_atom=home[block.gradient_atom]) for block in found]
