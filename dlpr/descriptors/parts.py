"""Descriptors side by side, each a component with a name, in the order of their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dlpr.descriptors.columns import Columns
from dlpr.descriptors.gradient_batches import GradientBlock, Gradients
from dlpr.descriptors.neighbours import DENSITY
from dlpr.descriptors.pieces import sorted_species
from dlpr.errors import JobError
from dlpr.structures.frames import Piece

if TYPE_CHECKING:
    from dlpr.descriptors import Descriptor


class Parts:
    """Columns of several descriptors, one after the other in the order of their names.

    Parameters
    ----------
    parts
        By the name of the component, ``{kind: hyperparameters}``.
    species
        Atomic numbers of all atoms of the job.
    make
        Makes a descriptor of such a section.

    Raises
    ------
    JobError
        If there are no parts, or one cannot be made.
    """

    def __init__(
        self,
        parts: Mapping[str, Mapping[str, Any]],
        species: Sequence[int],
        make: Callable[[Mapping[str, Any], Sequence[int]], Descriptor],
    ) -> None:
        self.species = sorted_species(species)
        self.parts: dict[str, Descriptor] = {}
        for name, settings in sorted(parts.items()):
            try:
                self.parts[name] = make(settings, self.species)
            except JobError as error:
                raise JobError(f"in descriptor.parts.{name}: {error}") from None
        if not self.parts:
            raise JobError("descriptor.parts is empty; it must have one part. Correct the job.")

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the columns, which are quickly put together again."""
        return {name: value for name, value in self.__dict__.items() if name != "columns"}

    @property
    def n_features(self) -> int:
        """Number of columns."""
        return sum(part.n_features for part in self.parts.values())

    @property
    def cutoff(self) -> float:
        """The longest of the parts' in Å."""
        return max(part.cutoff for part in self.parts.values())

    @property
    def reads_rows(self) -> bool:
        """Whether a part follows from `Piece.row`."""
        return any(part.reads_rows for part in self.parts.values())

    @property
    def components(self) -> dict[str, slice]:
        """Columns of each part by its name."""
        found, stop = {}, 0
        for name, part in self.parts.items():
            start, stop = stop, stop + part.n_features
            found[name] = slice(start, stop)
        return found

    @cached_property
    def columns(self) -> Columns:
        """The columns, arrays (n_features,): part, and all that the parts' columns have.

        ``part`` is the index of the part; whole numbers are -1 and others NaN where a part lacks
        them.
        """
        found: Columns = {"part": np.empty(self.n_features, np.int32)}
        for index, (name, own) in enumerate(self.components.items()):
            found["part"][own] = index
            for key, values in self.parts[name].columns.items():
                fill = -1 if np.issubdtype(values.dtype, np.integer) else np.nan
                whole = np.full(self.n_features, fill, values.dtype)
                found.setdefault(key, whole)[own] = values
        return found

    def settings(self) -> dict[str, Any]:
        """Return the settings of all parts, as JSON can hold them."""
        found: dict[str, Any] = {"parts": {}, "species": list(self.species)}
        for name, part in self.parts.items():
            settings = part.settings()
            if "featomic" in settings:
                found["featomic"] = settings["featomic"]
            kept = {k: v for k, v in settings.items() if k not in ("species", "featomic")}
            found["parts"][name] = kept
        return found

    def columns_with(self, species: int) -> NDArray[np.bool_]:
        """Mark the columns, (n_features,), in which a neighbour species takes part."""
        return np.concatenate([part.columns_with(species) for part in self.parts.values()])

    def compute(self, pieces: Sequence[Piece]) -> NDArray[np.float64]:
        """Compute the features of the centres of some pieces, part by part.

        Returns
        -------
        ndarray
            (total number of centres, n_features), rows in the order of the pieces and of each
            piece's ``centre``.

        Raises
        ------
        InputError
            As the parts do.
        """
        return np.concatenate([part.compute(pieces) for part in self.parts.values()], axis=1)

    def lacks(self, rows: str) -> str | None:
        """Why there are no rows of "forces" or "stress", if a part lacks them; None: there are."""
        for name, part in self.parts.items():
            reason = part.lacks(rows)
            if reason is not None:
                return f"parts.{name}.{reason}"
        return None

    def gradients(
        self, piece: Piece, centres: NDArray[np.int64], *, forces: bool, stress: bool
    ) -> Gradients:
        """Give derivatives of the features of some centres, see `dlpr.descriptors.Descriptor`."""
        own = [
            part.gradients(piece, centres, forces=forces, stress=stress)
            for part in self.parts.values()
        ]
        return _Together([columns.start for columns in self.components.values()], own)

    def gradient_nbytes(self, n_atoms: int, density: float, *, forces: bool, stress: bool) -> float:
        """Bound what derivatives of one centre take, see `dlpr.descriptors.Descriptor`."""
        return sum(
            part.gradient_nbytes(n_atoms, density, forces=forces, stress=stress)
            for part in self.parts.values()
        )

    def compute_nbytes(
        self,
        n_environments: int,
        n_atoms: int | None = None,
        density: float = DENSITY,
        volume: float | None = None,
    ) -> int:
        """Bound the memory of a call of `compute`, see `dlpr.descriptors.Descriptor`."""
        needs = [
            part.compute_nbytes(n_environments, n_atoms, density, volume)
            for part in self.parts.values()
        ]
        return 16 * n_environments * self.n_features + max(needs)


class _Together:
    """Derivatives of several descriptors: columns behind those of the parts before."""

    def __init__(self, start: Sequence[int], parts: Sequence[Gradients]) -> None:
        self._start, self._parts = start, parts

    def nbytes(self, start: int, stop: int) -> NDArray[np.float64]:
        """Bound the memory that each of the centres ``start:stop`` takes, in bytes."""
        found: NDArray[np.float64] = np.sum([p.nbytes(start, stop) for p in self._parts], axis=0)
        return found

    def blocks(self, start: int, stop: int) -> list[GradientBlock]:
        """Derivatives of centres ``start:stop``, some of those that `nbytes` was last asked of."""
        found = []
        for first, part in zip(self._start, self._parts, strict=True):
            for block in part.blocks(start, stop):
                columns = slice(first + block.columns.start, first + block.columns.stop)
                found.append(block._replace(columns=columns))
        return found
