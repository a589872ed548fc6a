"""What descriptors out of torch modules have in common: their identity, batches, memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dlpr.descriptors.columns import Columns
from dlpr.descriptors.hypers import nearest
from dlpr.descriptors.kind import DERIVED, Kind
from dlpr.descriptors.neighbours import CALL_NBYTES, DENSITY
from dlpr.descriptors.pieces import centres_of, chain_of, compute_in_batches, sorted_species
from dlpr.descriptors.torch_work import check_made_by, computing, made_by
from dlpr.errors import InputError, JobError
from dlpr.structures.frames import Piece

BATCH_ATOMS = 256
"""Atoms that go through a model at once, but for a structure that has more."""


class TorchKind(Kind):
    """Rows out of a torch module.

    Parameters
    ----------
    options
        The job's section, paths absolute; after a plan, with what `settings` adds to it: the
        number of columns, digests, and what torch it was.
    species
        Atomic numbers of all atoms of the job.

    Raises
    ------
    JobError
        If a key is unknown, torch is absent or another than in the plan, or a file or layer
        cannot be used.
    """

    underived = dict.fromkeys(DERIVED, "rows of a network are not differentiated again")
    keys: ClassVar[tuple[str, ...]]
    """Of the job's section."""
    added: ClassVar[tuple[str, ...]] = ("n_features", "made_by")
    """Of a plan's settings beside those."""
    packages: ClassVar[tuple[str, ...]] = ("torch",)
    """Whose versions decide the rows."""
    process_nbytes: ClassVar[int]
    """Memory of the libraries, beside torch itself."""

    def __init__(self, options: Mapping[str, Any], species: Sequence[int]) -> None:
        known = (*self.keys, *self.added)
        for key in options:
            if key not in known:
                raise JobError(
                    f"unknown key {key!r} in descriptor.{self.kind}; {nearest(key, self.keys)}"
                )
        self.species = sorted_species(species)
        self._options: dict[str, Any] = {key: options.get(key) for key in self.keys}
        self._planned: dict[str, Any] = {key: options.get(key) for key in self.added}
        self._made_by = made_by(self.packages)
        if self._planned["made_by"] is not None:
            check_made_by(self._planned["made_by"], self._made_by)

    def _rows(self, pieces: list[Piece], centres: list[NDArray[np.int64]]) -> NDArray[np.float64]:
        """Rows (n_centres, n_features) of the centres of some pieces."""
        raise NotImplementedError

    def _identity(self) -> dict[str, Any]:
        """Digests of all that the rows follow from."""
        raise NotImplementedError

    @cached_property
    def n_features(self) -> int:
        """Number of columns; where a plan does not say, those for a chain of atoms."""
        if self._planned["n_features"] is not None:
            return int(self._planned["n_features"])
        chain = chain_of(self.species)
        try:
            with computing():
                return int(self._rows([chain], [centres_of(chain)]).shape[1])
        except InputError as error:
            raise JobError(
                f"descriptor.{self.kind}: the number of columns was asked for with a chain of"
                f" {len(self.species)} atom(s): {error}"
            ) from error

    @property
    def columns(self) -> Columns:
        """The columns, arrays (n_features,): column."""
        return {"column": np.arange(self.n_features, dtype=np.int32)}

    def settings(self) -> dict[str, Any]:
        """Return the section, and what the model and torch are, as JSON can hold it."""
        planned = {"n_features": self.n_features, "made_by": self._made_by, **self._identity()}
        return {self.kind: {**self._options, **planned}, "species": list(self.species)}

    def compute(self, pieces: Sequence[Piece]) -> NDArray[np.float64]:
        """Compute the rows of the centres of some pieces, batch by batch, in one thread.

        Returns
        -------
        ndarray
            (total number of centres, n_features), rows in the order of the pieces and of each
            piece's ``centre``. Bits follow from the call.

        Raises
        ------
        InputError
            If a structure cannot be used, the model raises, or a row is not finite.
        """
        with computing():
            return compute_in_batches(
                pieces, self.species, self.n_features, BATCH_ATOMS, self._fill
            )

    def _fill(
        self,
        features: NDArray[np.float64],
        pieces: list[Piece],
        centres: list[NDArray[np.int64]],
    ) -> None:
        rows = self._rows(pieces, centres)
        if rows.shape != features.shape:
            raise InputError(
                f"descriptor.{self.kind}: the model gave rows {rows.shape}; needed are"
                f" {features.shape}, as in the plan. Run the job again."
            )
        features[:] = rows

    def compute_nbytes(
        self,
        n_environments: int,
        n_atoms: int | None = None,
        density: float = DENSITY,
        volume: float | None = None,
    ) -> int:
        """Bound the memory of a call of `compute`, see `dlpr.descriptors.Descriptor`.

        The model's own need is what the job says with ``nbytes_per_atom``.
        """
        atoms = max(BATCH_ATOMS, n_environments if n_atoms is None else n_atoms)
        rows = 8 * self.n_features * (n_environments + 3 * atoms)
        model = int(self._options["nbytes_per_atom"]) * atoms
        return rows + model + self.process_nbytes + CALL_NBYTES


def rows_of_centres(
    rows: NDArray[np.float64], pieces: Sequence[Piece], centres: Sequence[NDArray[np.int64]]
) -> NDArray[np.float64]:
    """Pick the centres' rows out of those of all atoms of some pieces."""
    sizes = np.array([len(piece.species) for piece in pieces])
    first = np.cumsum(sizes) - sizes
    chosen = np.concatenate([f + own for f, own in zip(first, centres, strict=True)])
    found: NDArray[np.float64] = rows[chosen]
    return found
