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
from dlpr.descriptors.periodic import make_periodic
from dlpr.errors import InputError, JobError
from dlpr.structures.frames import Piece

BATCH = 1024
"""Atoms per call of featomic, which holds several times the features of what it works on."""

# Behind `Soap.compute_nbytes`, measured with featomic 0.6.7 as the growth of VmHWM in fresh
# processes: C, Mo, InP and CHO, 1 to 13,824 centres, 21 to 13,824 atoms, 6 to 1,026 columns.
_MARGIN = 1.2
_CALL_NBYTES = 16 * 2**20
_ATOM_NBYTES = 1000
_PAIR_NBYTES = 110
"""Kept per atom and neighbour; 90 measured."""
_SEARCH_NBYTES = 450
"""While neighbours are sought, per atom and neighbour; 80 to 180 in open pieces, at most 440."""
_EXPANSION_COPIES = 2.0
"""Spherical expansions of the centres: each piece's own and the call's."""
_FEATURE_COPIES = 1.2
"""featomic's rows, and the mark of those that are finite."""


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
        from dlpr.descriptors.native import radial_sizes

        self._hypers = check_hypers(hypers)
        self.species: tuple[int, ...] = tuple(sorted({int(number) for number in species}))
        if not self.species or not 1 <= self.species[0] <= self.species[-1] <= 118:
            raise JobError(
                f"the species of the descriptor are {list(self.species)}; needed are atomic numbers"
                " from 1 to 118, one at least. Check the species of the structures."
            )
        self._parameters = json.dumps(self._hypers)
        self._radial = radial_sizes(self._parameters)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the tables of columns, which are quickly made again."""
        cached = ("columns", "full_columns", "_place", "_properties")
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
        return full_columns(self.species, self._radial)

    @cached_property
    def columns(self) -> Columns:
        """The columns, arrays (n_features,): neighbour_1, neighbour_2, l, n_1, n_2, weight."""
        return reduced_columns(self.full_columns)

    @cached_property
    def _place(self) -> dict[tuple[int, int], slice]:
        """The columns of each pair of neighbour species, which lie side by side."""
        pairs = np.stack([self.columns["neighbour_1"], self.columns["neighbour_2"]], axis=1)
        _, start, count = np.unique(pairs, axis=0, return_index=True, return_counts=True)
        return {
            (int(pairs[i, 0]), int(pairs[i, 1])): slice(int(i), int(i + n))
            for i, n in zip(start, count, strict=True)
        }

    @cached_property
    def _properties(self) -> dict[tuple[int, int], NDArray[np.int32]]:
        """The columns (l, n_1, n_2) of each pair of neighbour species, as featomic selects them."""
        columns = np.stack([self.columns[name] for name in ("l", "n_1", "n_2")], axis=1)
        return {pair: columns[place] for pair, place in self._place.items()}

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
        features = np.zeros((sum(map(len, centres)), self.n_features))
        stop = 0
        for batch in _batches(pieces, centres):
            start, stop = stop, stop + sum(len(centres[index]) for index in batch)
            self._fill(features[start:stop], batch, pieces, centres)
        return features

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
        centres = min(n_environments, largest)
        n_expansion = len(self.species) * sum(size * (2 * l_ + 1) for l_, size in self._radial)
        search = largest * _SEARCH_NBYTES * n_neighbours
        spectrum = largest * (_ATOM_NBYTES + _PAIR_NBYTES * n_neighbours) + 8 * centres * (
            _EXPANSION_COPIES * n_expansion + _FEATURE_COPIES * self.n_features
        )
        rows = 8 * n_environments * self.n_features
        return int(rows + _MARGIN * max(search, spectrum)) + _CALL_NBYTES

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

    def _fill(
        self,
        features: NDArray[np.float64],
        batch: list[int],
        pieces: Sequence[Piece],
        centres: Sequence[NDArray[np.int64]],
    ) -> None:
        """Write the features of one batch of pieces, block by block, into their places."""
        from dlpr.descriptors.native import compute_blocks

        offset = np.cumsum([0, *(len(pieces[index].species) for index in batch)])
        atom = np.concatenate([o + centres[index] for o, index in zip(offset, batch, strict=False)])
        row = np.full(offset[-1], -1)
        row[atom] = np.arange(atom.size)
        n_rows = np.zeros(atom.size, dtype=np.int64)
        for key, samples, values in compute_blocks(
            self._parameters,
            [make_periodic(pieces[index], self.cutoff) for index in batch],
            self._properties,
        ):
            target = row[offset[samples[:, 0]] + samples[:, 1]]
            features[target, self._place[key[1:]]] = values
            if len(set(key)) == 1:  # every atom counts as a neighbour of its own species
                n_rows[target] += 1
        if not (n_rows == 1).all():
            raise InputError(
                f"featomic returned {n_rows.sum()} rows for {atom.size} centres in"
                f" {len(batch)} structure(s). Check their species."
            )
        features *= self.columns["weight"]
        lost = np.flatnonzero(~np.isfinite(features).all(axis=1))
        if lost.size:
            where = int(np.searchsorted(offset, atom[lost[0]], side="right")) - 1
            raise InputError(
                f"the features of atom {atom[lost[0]] - offset[where]} of structure {batch[where]}"
                f" of this call are not finite, as are those of {lost.size} atom(s) in all."
                " Check the distances between atoms."
            )


def _centres(piece: Piece) -> NDArray[np.int64]:
    return np.arange(len(piece.species)) if piece.centre is None else piece.centre


def _batches(pieces: Sequence[Piece], centres: Sequence[NDArray[np.int64]]) -> Iterator[list[int]]:
    """Group pieces with centres, in order, into calls of at most BATCH atoms or one piece."""
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
