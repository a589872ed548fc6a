"""Models: which columns a row has, and how features and their sums become rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dlpr.core.rows import Blocks, FloatArray, IntArray, Layout, merge_blocks, row_factor


class Model(Protocol):
    """A feature map, linear in its weights: what folds and factors ask of a model."""

    @property
    def layout(self) -> Layout:
        """Columns of the model's rows, in blocks of weights."""

    @property
    def sums(self) -> Blocks:
        """Columns of the stored sums over a structure, a block per central species."""

    def environments(
        self, features: FloatArray, species: IntArray
    ) -> Iterator[tuple[int, slice | NDArray[np.bool_], FloatArray]]:
        """Rows of environments, block by block.

        Parameters
        ----------
        features : (n, n_features) float64
        species : (n,) int
            Central species, as an index into the descriptor's.

        Yields
        ------
        block : int
            The block of columns in which all these rows live.
        which : slice or (n,) bool
            The environments.
        rows : (m, width of the block) float64
        """

    def structures(
        self, sums: FloatArray, n_atoms: IntArray, columns: slice = slice(None)
    ) -> tuple[FloatArray, FloatArray]:
        """Rows of structures from stored sums, not copied where that can be.

        Parameters
        ----------
        sums : (n, sums.n_columns) float64
        n_atoms : (n,) int
        columns : slice
            Which of the model's columns are wanted.

        Returns
        -------
        rows : (n, len of columns) float64
        factor : (n,) float64
            By which the rows are to be multiplied.
        """


@dataclass(frozen=True)
class Linear:
    """Ridge regression on the descriptor, ``phi_i = x_i`` (JCTC23 eq. 12-14).

    Attributes
    ----------
    n_features, n_species : int
        Of the descriptor.
    rows : {"mean", "sum", "sqrt"}
        See `row_factor`.
    shared : bool
        Whether all central species share their weights.
    """

    n_features: int
    n_species: int
    rows: str
    shared: bool

    @property
    def layout(self) -> Layout:
        """Columns of the model's rows."""
        return Layout((self.n_features,) * (1 if self.shared else self.n_species))

    @property
    def sums(self) -> Blocks:
        """Columns of the stored sums."""
        return Blocks(self.n_features, self.n_species)

    def environments(
        self, features: FloatArray, species: IntArray
    ) -> Iterator[tuple[int, slice | NDArray[np.bool_], FloatArray]]:
        """Features as they are, by central species unless these share their weights."""
        for number in (0,) if self.shared else np.unique(species):
            own = species == number
            if self.shared or own.all():
                yield int(number), slice(None), features
            else:
                yield int(number), own, features[own]

    def structures(
        self, sums: FloatArray, n_atoms: IntArray, columns: slice = slice(None)
    ) -> tuple[FloatArray, FloatArray]:
        """Sums as they are, or over the central species where these share their weights."""
        rows = merge_blocks(sums, self.sums) if self.shared else sums
        return rows[:, columns], row_factor(n_atoms, self.rows)


MODELS: dict[str, Callable[[Mapping[str, Any], int, int], Model]] = {
    "linear": lambda settings, n_features, n_species: Linear(
        n_features, n_species, settings["rows"], settings["centre_species"] == "shared"
    ),
}
"""Models by the name they have in a job file: from its section, and the descriptor's sizes."""
