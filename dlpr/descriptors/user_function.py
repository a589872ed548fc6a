"""Features from a Python function that the job names: code of the user, run as it is."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlpr.descriptors.columns import Columns
from dlpr.descriptors.hypers import nearest
from dlpr.descriptors.kind import DERIVED, Kind
from dlpr.descriptors.neighbours import CALL_NBYTES, DENSITY
from dlpr.descriptors.pieces import atoms_of, centres_of, chain_of, check_piece, sorted_species
from dlpr.descriptors.user_code import check_source, imported, source_digest
from dlpr.errors import InputError, JobError
from dlpr.structures.frames import Piece

_KEYS = ("call", "options", "cutoff", "n_features", "nbytes_per_atom", "folder", "source_sha256")
_log = logging.getLogger(__name__)


class UserFunction(Kind):
    """A function from structures to one array of features for each.

    ``function(list of ase.Atoms, **options)`` returns a list of arrays (n_atoms, n_features), rows
    in the order of the atoms. Where the job gives a cutoff, of a frame of many atoms the function
    sees open clusters: some atoms and all others within the cutoff of them, whose own rows are not
    used. Without a cutoff it sees whole structures.

    Parameters
    ----------
    options
        ``call``: "module:function". ``options``: keywords of the function. ``cutoff``: Å, or None.
        ``n_features``: its columns; None: those for a chain of one atom of each species.
        ``nbytes_per_atom``: memory that the function needs for each atom of a call. ``folder``:
        where its module is, if not among the installed ones. ``source_sha256``: of the module's
        file, and of files that options name, when a plan was made with them.
    species
        Atomic numbers of all atoms of the job.

    Raises
    ------
    JobError
        If a key is unknown, the function cannot be imported, or such a file has changed since the
        plan.
    """

    kind = "python"
    underived = dict.fromkeys(DERIVED, "the function returns rows alone")

    def __init__(self, options: Mapping[str, Any], species: Sequence[int]) -> None:
        for key in options:
            if key not in _KEYS:
                raise JobError(f"unknown key {key!r} in descriptor.python; {nearest(key, _KEYS)}")
        self.species = sorted_species(species)
        self._call = str(options.get("call"))
        self._options = dict(options.get("options") or {})
        self._cutoff, self._folder = options.get("cutoff"), options.get("folder")
        self._given = options.get("n_features")
        self._nbytes_per_atom = int(options.get("nbytes_per_atom") or 0)
        self._source = source_digest(self._function, self._options, self._folder)
        check_source(self._call, self._source, options.get("source_sha256"), "features")

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the function: who unpickles imports it."""
        return {name: value for name, value in self.__dict__.items() if name != "_function"}

    @cached_property
    def _function(self) -> Callable[..., Any]:
        return imported(self._call, self._folder, "descriptor.python.call")

    @property
    def cutoff(self) -> float:
        """Å; infinite where a whole structure is needed."""
        return math.inf if self._cutoff is None else float(self._cutoff)

    @cached_property
    def n_features(self) -> int:
        """Number of columns."""
        if self._given is not None:
            return int(self._given)
        try:
            (found,) = self._call_it([chain_of(self.species)])
        except InputError as error:
            raise JobError(
                f"the number of columns was asked for with a chain of {len(self.species)} atom(s):"
                f" {error} Give descriptor.python.n_features if the function cannot serve such a"
                " structure."
            ) from error
        return int(found.shape[1])

    @property
    def columns(self) -> Columns:
        """The columns, arrays (n_features,): column."""
        return {"column": np.arange(self.n_features, dtype=np.int32)}

    def settings(self) -> dict[str, Any]:
        """Return what is called, with what, and a digest of its files, as JSON can hold it."""
        options = {
            "call": self._call,
            "options": self._options,
            "cutoff": self._cutoff,
            "n_features": self.n_features,
            "nbytes_per_atom": self._nbytes_per_atom,
            "folder": self._folder,
            "source_sha256": self._source,
        }
        return {"python": options, "species": list(self.species)}

    def compute(self, pieces: Sequence[Piece]) -> NDArray[np.float64]:
        """Call the function with all pieces that have centres.

        Returns
        -------
        ndarray
            (total number of centres, n_features), rows in the order of the pieces and of each
            piece's ``centre``. As much as the function's own, a row does not depend on what else
            is in the call.

        Raises
        ------
        InputError
            If the function raises, or returns anything but one finite array for each structure.
        """
        for index, piece in enumerate(pieces):
            check_piece(piece, index, self.species)
        chosen = [piece for piece in pieces if len(centres_of(piece))]
        rows = [np.empty((0, self.n_features))]
        for index, (piece, found) in enumerate(zip(chosen, self._call_it(chosen), strict=True)):
            own = found[centres_of(piece)]
            if found.shape[1] != self.n_features:
                raise InputError(
                    f"{self._call} returned {found.shape[1]} columns for structure {index} of a"
                    f" call; needed are {self.n_features}, as for all others. Correct the function,"
                    " or descriptor.python.n_features."
                )
            lost = np.flatnonzero(~np.isfinite(own).all(axis=1))
            if lost.size:
                raise InputError(
                    f"{self._call} returned features that are not finite for {lost.size} atom(s)"
                    f" of structure {index} of a call, such as atom"
                    f" {centres_of(piece)[lost[0]]}. Correct the function or the structure."
                )
            rows.append(own)
        return np.concatenate(rows)

    def _call_it(self, pieces: Sequence[Piece]) -> list[NDArray[np.float64]]:
        """One array (n_atoms, columns) for each piece."""
        if not pieces:
            return []
        atoms = [atoms_of(piece) for piece in pieces]
        try:
            returned = list(self._function(atoms, **self._options))
            found = [np.asarray(one, np.float64) for one in returned]
        except Exception as error:
            _log.debug("calling %s", self._call, exc_info=True)
            raise InputError(
                f"{self._call} raised {type(error).__name__}: {error}, for {len(pieces)}"
                f" structure(s) of {sum(len(one) for one in atoms)} atoms in all. Correct the"
                " function or descriptor.python.options."
            ) from error
        shapes = [one.shape for one in found]
        needed = [(len(one),) for one in atoms]
        if len(found) != len(atoms) or any(
            len(shape) != 2 or shape[:1] != n for shape, n in zip(shapes, needed, strict=True)
        ):
            raise InputError(
                f"{self._call} returned {len(found)} array(s) of the shapes {shapes[:3]};"
                f" needed are {len(atoms)}, each (n_atoms, n_features), here with"
                f" {[n for (n,) in needed[:3]]} rows. Correct the function."
            )
        return found

    def compute_nbytes(
        self,
        n_environments: int,
        n_atoms: int | None = None,
        density: float = DENSITY,
        volume: float | None = None,
    ) -> int:
        """Bound the memory of a call of `compute`, see `dlpr.descriptors.Descriptor`.

        The function's own need is what the job says with ``nbytes_per_atom``.
        """
        atoms = max(n_environments, n_atoms or 0)
        per_atom = self._nbytes_per_atom + 16 * self.n_features + 200
        return 8 * n_environments * self.n_features + atoms * per_atom + CALL_NBYTES
