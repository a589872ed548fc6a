"""Users' own features, a row of a file for each environment of a set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlpr.descriptors.columns import Columns
from dlpr.descriptors.hypers import nearest
from dlpr.descriptors.kind import DERIVED, Kind
from dlpr.descriptors.neighbours import CALL_NBYTES, DENSITY
from dlpr.descriptors.pieces import sorted_species
from dlpr.descriptors.row_files import RowFile, fingerprint, open_rows
from dlpr.errors import InputError, JobError
from dlpr.structures.frames import Piece

_KEYS = ("file", "fingerprint")


class UserFeatures(Kind):
    """Rows of one file for one set of structures.

    Row k belongs to environment k of the set: structures in the order of the source files, without
    those that the job leaves out, atoms in the order of their structure.

    Parameters
    ----------
    options
        ``file``: its absolute path, see `dlpr.descriptors.row_files.open_rows`. ``fingerprint``:
        what the file was when a plan was made with it.
    species
        Atomic numbers of all atoms of the job.

    Raises
    ------
    JobError
        If a key is unknown or missing.
    InputError
        If the file cannot be used, or has changed since the plan.
    """

    kind = "features"
    underived = dict.fromkeys(DERIVED, "its rows come from files")

    def __init__(self, options: Mapping[str, Any], species: Sequence[int]) -> None:
        for key in options:
            if key not in _KEYS:
                raise JobError(f"unknown key {key!r} in descriptor.features; {nearest(key, _KEYS)}")
        if "file" not in options:
            raise JobError("descriptor.features names no file for this set. Add it to the job file")
        self.species = sorted_species(species)
        self.path = Path(options["file"])
        self._shape = self._rows.shape
        self._fingerprint = fingerprint(self.path)
        planned = options.get("fingerprint")
        if planned is not None and planned != self._fingerprint:
            raise InputError(
                f"{self.path} has changed since its features were planned: {planned['size']} bytes"
                f" then, {self._fingerprint['size']} now. Run the job again."
            )

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the open file and the columns."""
        cached = ("columns", "_rows")
        return {name: value for name, value in self.__dict__.items() if name not in cached}

    @cached_property
    def _rows(self) -> RowFile:
        return open_rows(self.path)

    @property
    def n_rows(self) -> int:
        """Rows of the file."""
        return self._shape[0]

    @property
    def n_features(self) -> int:
        """Number of columns."""
        return self._shape[1]

    @property
    def cutoff(self) -> float:
        """Zero: no neighbours are needed."""
        return 0.0

    @cached_property
    def columns(self) -> Columns:
        """The columns, arrays (n_features,): column, or a TensorMap's properties."""
        return self._rows.columns

    @property
    def reads_rows(self) -> bool:
        """True: rows follow from `Piece.row`."""
        return True

    def settings(self) -> dict[str, Any]:
        """Return the file and what tells whether it is still the same, as JSON can hold it."""
        options = {"file": str(self.path), "fingerprint": self._fingerprint}
        return {"features": options, "species": list(self.species)}

    def check_rows(self, n_environments: int, name: str) -> None:
        """Refuse a file that has not one row for each environment of a set.

        Raises
        ------
        InputError
            With both numbers.
        """
        if self.n_rows != n_environments:
            raise InputError(
                f"{self.path} has {self.n_rows} rows; the set {name} has {n_environments}"
                " environments. Needed is a row for each, structures in the order of the source"
                " files without those that `where` leaves out. Correct descriptor.features or the"
                " file."
            )

    def compute(self, pieces: Sequence[Piece]) -> NDArray[np.float64]:
        """Read the rows of the centres of some pieces.

        Parameters
        ----------
        pieces
            With ``row``.

        Returns
        -------
        ndarray
            (total number of centres, n_features)

        Raises
        ------
        InputError
            If a row is beyond the file or not finite.
        """
        numbers = [np.empty(0, np.int64)]
        for piece in pieces:
            if piece.row is None:
                raise ValueError("features of a file need Piece.row")
            numbers.append(piece.row)
        rows = np.concatenate(numbers)
        if len(rows) and rows.max() >= self.n_rows:
            raise InputError(
                f"{self.path} has {self.n_rows} rows; needed is row {rows.max()}, counted from 0."
                " Write a row for each environment."
            )
        features = self._rows.read(rows)
        lost = np.flatnonzero(~np.isfinite(features).all(axis=1))
        if lost.size:
            raise InputError(
                f"row {rows[lost[0]]} of {self.path}, counted from 0, is not finite, as are"
                f" {lost.size} of the {len(rows)} rows of this block. Correct the file."
            )
        return features

    def compute_nbytes(
        self,
        n_environments: int,
        n_atoms: int | None = None,
        density: float = DENSITY,
        volume: float | None = None,
    ) -> int:
        """Bound the memory of a call of `compute`, see `dlpr.descriptors.Descriptor`."""
        rows = 8 * n_environments * self.n_features
        return 5 * rows + self._rows.resident_nbytes + CALL_NBYTES
