"""What descriptors of one kind have in common; `dlpr.descriptors.parts` puts several together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dlpr.descriptors.columns import Columns
from dlpr.descriptors.gradient_batches import Gradients
from dlpr.descriptors.hypers import check_hypers
from dlpr.descriptors.pieces import sorted_species
from dlpr.structures.frames import Piece

DERIVED = ("forces", "stress")
"""Rows that are derivatives of features, by positions and by strain."""


class Kind:
    """A descriptor with one component, named after its kind in a job file.

    Attributes
    ----------
    kind : str
    underived : mapping of str to str
        "forces" and "stress", where features have no derivatives by positions or by strain: why.
    species : tuple of int
        Atomic numbers of the whole job, ascending.
    """

    kind: ClassVar[str]
    underived: ClassVar[Mapping[str, str]]
    species: tuple[int, ...]

    @property
    def n_features(self) -> int:
        """Number of columns."""
        raise NotImplementedError

    @property
    def columns(self) -> Columns:
        """Arrays (n_features,) by name: what each column is."""
        raise NotImplementedError

    @property
    def components(self) -> dict[str, slice]:
        """One component, all columns."""
        return {self.kind: slice(0, self.n_features)}

    @property
    def reads_rows(self) -> bool:
        """False: rows follow from the atoms."""
        return False

    def lacks(self, rows: str) -> str | None:
        """Why there are no rows of "forces" or "stress"; None: there are."""
        reason = self.underived.get(rows)
        return None if reason is None else f"{self.kind}: {reason}"

    def gradients(
        self, piece: Piece, centres: NDArray[np.int64], *, forces: bool, stress: bool
    ) -> Gradients:
        """Give derivatives of the features, see `dlpr.descriptors.Descriptor`."""
        raise NotImplementedError

    def gradient_nbytes(self, n_atoms: int, density: float, *, forces: bool, stress: bool) -> float:
        """Bound what derivatives of one centre take, see `dlpr.descriptors.Descriptor`."""
        raise NotImplementedError

    def columns_with(self, species: int) -> NDArray[np.bool_]:
        """Mark the columns, (n_features,), in which a neighbour species is known to take part."""
        marked = np.zeros(self.n_features, np.bool_)
        for name, values in self.columns.items():
            if name.startswith("neighbour"):
                marked |= values == species
        return marked


class FeatomicKind(Kind):
    """A descriptor of featomic's: its hyperparameters, checked.

    Parameters
    ----------
    hypers
        featomic's hyperparameters.
    species
        Atomic numbers of all atoms of the job.

    Raises
    ------
    JobError
        If a hyperparameter is unknown, missing or out of range.
    """

    def __init__(self, hypers: Mapping[str, Any], species: Sequence[int]) -> None:
        self.hypers = check_hypers(hypers, self.kind)
        self.species = sorted_species(species)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is cached: tables of columns, which are quickly made again."""
        cached = {
            name
            for ancestor in type(self).__mro__
            for name, value in vars(ancestor).items()
            if isinstance(value, cached_property)
        }
        return {name: value for name, value in self.__dict__.items() if name not in cached}

    def settings(self) -> dict[str, Any]:
        """Return all that decides the columns and their values, as JSON can hold it."""
        return {
            self.kind: self.hypers,
            "species": list(self.species),
            "featomic": version("featomic"),
        }
