"""From pieces of structures to rows of features.

A job names one descriptor and its settings, ``{"soap": {...}}``, or several as ``parts``. The
invariants of one density of neighbours are two kinds: ``radial``, linear in it (the l = 0
coefficients of the spherical expansion), and ``soap``, quadratic (its power spectrum); ``lode`` is
quadratic in the potential of all atoms. ``features`` and ``python`` are the user's own.
``network``, ``metatomic`` and ``mace`` are latent features, or derivatives by weights, of networks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dlpr.descriptors.gradient_batches import Gradients
from dlpr.descriptors.hypers import nearest
from dlpr.descriptors.lode import Lode
from dlpr.descriptors.mace import Mace
from dlpr.descriptors.metatomic import Metatomic
from dlpr.descriptors.neighbours import DENSITY
from dlpr.descriptors.network import Network
from dlpr.descriptors.parts import Parts
from dlpr.descriptors.radial_spectrum import RadialSpectrum
from dlpr.descriptors.soap import Soap
from dlpr.descriptors.user_features import UserFeatures
from dlpr.descriptors.user_function import UserFunction
from dlpr.errors import JobError
from dlpr.structures.frames import Piece

__all__ = [
    "KINDS",
    "NETWORKS",
    "Descriptor",
    "Lode",
    "Mace",
    "Metatomic",
    "Network",
    "Parts",
    "RadialSpectrum",
    "Soap",
    "UserFeatures",
    "UserFunction",
    "check_sets",
    "descriptor",
    "gradient_refusal",
    "members",
]


class Descriptor(Protocol):
    """What the rest of the program asks of a descriptor. It pickles, and is cheap to pickle."""

    @property
    def n_features(self) -> int:
        """Number of columns, the same in every call."""

    @property
    def cutoff(self) -> float:
        """Distance in Å beyond which atoms do not enter an environment; infinite: all do."""

    @property
    def species(self) -> tuple[int, ...]:
        """Atomic numbers of the whole job, ascending."""

    @property
    def columns(self) -> dict[str, NDArray[Any]]:
        """Arrays (n_features,) by name: what each column is."""

    @property
    def components(self) -> dict[str, slice]:
        """Names of additive components and their columns; together they are all columns."""

    @property
    def reads_rows(self) -> bool:
        """Whether rows follow from `Piece.row`, the numbers of environments, not from atoms."""

    def settings(self) -> dict[str, Any]:
        """Return all that decides the rows, as JSON can hold it; `descriptor` takes it back."""

    def columns_with(self, species: int) -> NDArray[np.bool_]:
        """Mark the columns, (n_features,), in which a neighbour species takes part."""

    def compute(self, pieces: Sequence[Piece]) -> NDArray[np.float64]:
        """Return one row for each centre, in order, (n_centres, n_features)."""

    def lacks(self, rows: str) -> str | None:
        """Why there are no rows of "forces", derivatives of the features by positions, or of
        "stress", by strain; None: there are."""

    def gradients(
        self, piece: Piece, centres: NDArray[np.int64], *, forces: bool, stress: bool
    ) -> Gradients:
        """Give derivatives of the features of some centres, if there is nothing that `lacks` says.

        Parameters
        ----------
        piece
            A structure; its own ``centre`` is not asked for.
        centres : (n_centres,)
            Rows of its atoms.
        forces, stress
            Whether they are wanted by positions and by strain.

        Raises
        ------
        InputError
            If `compute` would refuse the structure.
        """

    def gradient_nbytes(self, n_atoms: int, density: float, *, forces: bool, stress: bool) -> float:
        """Bound what derivatives of one centre take, in bytes.

        Parameters
        ----------
        n_atoms
            Of the structure.
        density
            Atoms per Å³ around the centre.
        forces, stress
            As for `gradients`.
        """

    def compute_nbytes(
        self,
        n_environments: int,
        n_atoms: int | None = None,
        density: float = DENSITY,
        volume: float | None = None,
    ) -> int:
        """Bound the memory of a call of `compute`.

        Parameters
        ----------
        n_environments
            Centres of all pieces of the call.
        n_atoms
            Atoms of the largest piece, halo included. None: all environments are of one piece.
        density
            Atoms per Å³, of the densest structure.
        volume
            Å³ of the largest cell; asked for where the cutoff is infinite. None: that of so many
            atoms at the given density.

        Returns
        -------
        int
            Bytes, the returned rows included.
        """


Maker = Callable[[Mapping[str, Any], Sequence[int]], Descriptor]

KINDS: dict[str, Maker] = {
    "soap": Soap,
    "radial": RadialSpectrum,
    "lode": Lode,
    "features": UserFeatures,
    "python": UserFunction,
    "network": lambda options, species: Network(options, species, _input),
    "metatomic": Metatomic,
    "mace": Mace,
    "parts": lambda parts, species: Parts(parts, species, _part),
}
"""Descriptors by the name they have in a job file."""

INPUTS = ("soap", "radial", "lode", "features", "python")
"""Those whose rows a network may take."""
NETWORKS = ("network", "metatomic", "mace")
"""Those that need torch, and run programs that come with a model."""


def _one(
    settings: Mapping[str, Any], species: Sequence[int], known: Mapping[str, Maker]
) -> Descriptor:
    """Make the one descriptor that some settings have."""
    kinds = [key for key in settings if key not in ("species", "featomic")]
    for kind in kinds:
        if kind not in known:
            raise JobError(
                f"unknown descriptor {kind!r}; {nearest(kind, known)}. Correct the job file."
            )
    if len(kinds) != 1:
        raise JobError(
            f"the section descriptor has {len(kinds)} descriptors; it must have one"
            f" (known: {', '.join(known)}). Several go side by side in descriptor.parts."
            " Correct the job file."
        )
    return known[kinds[0]](settings[kinds[0]], species)


def _part(settings: Mapping[str, Any], species: Sequence[int]) -> Descriptor:
    return _one(settings, species, {k: make for k, make in KINDS.items() if k != "parts"})


def _input(settings: Mapping[str, Any], species: Sequence[int]) -> Descriptor:
    return _one(settings, species, {kind: KINDS[kind] for kind in INPUTS})


def members(calculator: Descriptor) -> Iterator[Descriptor]:
    """A descriptor, or the descriptors it is made of; for a network on rows, those of its input."""
    for one in calculator.parts.values() if isinstance(calculator, Parts) else (calculator,):
        yield one.input or one if isinstance(one, Network) else one


def gradient_refusal(calculator: Descriptor, rows: str) -> str | None:
    """Say what rows of "forces" or "stress" need that a descriptor lacks, and which have it."""
    reason = calculator.lacks(rows)
    if reason is None:
        return None
    along = {"forces": "the positions of atoms", "stress": "strain"}[rows]
    *some, last = [one.kind for one in (Soap, RadialSpectrum, Lode) if rows not in one.underived]
    return (
        f"derivatives of the features by {along}, and there are none (descriptor.{reason});"
        f" {', '.join(some)} and {last} have them, alone or as parts"
    )


def check_sets(calculators: Mapping[str, Descriptor], n_environments: Mapping[str, int]) -> None:
    """Check that users' files of features fit the sets, and one another.

    Parameters
    ----------
    calculators
        By the name of the set, the training set first.
    n_environments
        Of each set.

    Raises
    ------
    InputError
        If a file has not one row for each environment of its set.
    JobError
        If the sets' numbers of columns differ.
    """
    first = next(iter(calculators))
    for name, calculator in calculators.items():
        for member in members(calculator):
            if isinstance(member, UserFeatures):
                member.check_rows(n_environments[name], name)
        if calculator.n_features != calculators[first].n_features:
            raise JobError(
                f"the features of the set {name} have {calculator.n_features} columns, those of"
                f" the set {first} {calculators[first].n_features}; needed are the same. Correct"
                " the files in descriptor.features."
            )


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
    return _one(settings, wanted, KINDS)
