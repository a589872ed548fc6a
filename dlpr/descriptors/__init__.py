"""From pieces of structures to rows of features.

A job names one descriptor and its settings, ``{"soap": {...}}``; further kinds join `KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dlpr.descriptors.hypers import nearest
from dlpr.descriptors.soap import Soap
from dlpr.errors import JobError
from dlpr.structures.frames import Piece

__all__ = ["KINDS", "Descriptor", "Soap", "descriptor"]


class Descriptor(Protocol):
    """What the rest of the program asks of a descriptor. It pickles, and is cheap to pickle."""

    @property
    def n_features(self) -> int:
        """Number of columns, the same in every call."""

    @property
    def cutoff(self) -> float:
        """Distance in Å beyond which atoms do not enter an environment."""

    @property
    def species(self) -> tuple[int, ...]:
        """Atomic numbers of the whole job, ascending."""

    @property
    def columns(self) -> dict[str, NDArray[Any]]:
        """Arrays (n_features,) by name: what each column is."""

    def settings(self) -> dict[str, Any]:
        """Return all that decides the rows, as JSON can hold it; `descriptor` takes it back."""

    def columns_with(self, species: int) -> NDArray[np.bool_]:
        """Mark the columns, (n_features,), in which a neighbour species takes part."""

    def compute(self, pieces: Sequence[Piece]) -> NDArray[np.float64]:
        """Return one row for each centre, in order, (n_centres, n_features)."""

    def compute_nbytes(
        self, n_environments: int, n_atoms: int | None = None, n_neighbours: float = 200.0
    ) -> int:
        """Bound the memory of a call of `compute` in bytes, the returned rows included."""


KINDS: dict[str, Callable[[Mapping[str, Any], Sequence[int]], Descriptor]] = {"soap": Soap}
"""Descriptors by the name they have in a job file."""


def descriptor(settings: Mapping[str, Any], species: Sequence[int] | None = None) -> Descriptor:
    """Make the descriptor of a job, or the one whose settings a store has kept.

    Parameters
    ----------
    settings
        The job's section ``descriptor``, ``{kind: hyperparameters}``, or what `Descriptor.settings`
        returned, which has the species and the version of featomic beside the kind.
    species
        Atomic numbers of all structures of the job. None: those in the settings.

    Raises
    ------
    JobError
        If the kind is unknown or not one, a hyperparameter cannot be used, or the settings were
        made with other species or another version of featomic.
    """
    kinds = [key for key in settings if key not in ("species", "featomic")]
    for kind in kinds:
        if kind not in KINDS:
            raise JobError(
                f"unknown descriptor {kind!r}; {nearest(kind, KINDS)}. Correct the job file."
            )
    if len(kinds) != 1:
        raise JobError(
            f"the section descriptor has {len(kinds)} descriptors; it must have one"
            f" (known: {', '.join(KINDS)}). Correct the job file."
        )
    made_by, here = settings.get("featomic"), version("featomic")
    if made_by is not None and made_by != here:
        raise JobError(
            f"these descriptor settings belong to featomic {made_by}; installed is {here}."
            f" Install featomic=={made_by}, or compute the features anew."
        )
    stored = settings.get("species", species)
    wanted = stored if species is None else species
    if wanted is None or sorted(set(wanted)) != sorted(set(stored)):
        raise JobError(
            f"the descriptor settings are for the species {stored}; the structures have {wanted}."
            " Compute the features anew with the species of all structures."
        )
    return KINDS[kinds[0]](settings[kinds[0]], wanted)
