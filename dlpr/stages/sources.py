"""Where the rows of a loss come from: a store of rows for each kind of target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dlpr.core.committee import subsample
from dlpr.core.models import Targets
from dlpr.core.validation import k_folds, stratified_folds
from dlpr.stages.derivatives import open_derivatives
from dlpr.stages.rows import Run, open_rows
from dlpr.stages.structures import open_structures
from dlpr.store.files import Json
from dlpr.store.folder import StageFolder


class RowSource(Protocol):
    """Rows of one kind of target."""

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups that have rows, sorted."""

    @property
    def n_rows(self) -> int:
        """How many there are in all."""

    @property
    def is_labelled(self) -> bool:
        """Whether their labels are known."""

    def runs(self, n_rows: int) -> list[Run]:
        """Runs of about so many rows of one group each."""

    def contents(self, run: Run) -> list[object]:
        """All that decides the rows of a run, as JSON."""

    def members(self, run: Run) -> NDArray[np.int64]:
        """Numbers of the structures of a run's group in its tasks."""

    def targets(
        self, run: Run, convention: str, chosen: NDArray[np.bool_] | None = None
    ) -> Iterator[Targets]:
        """The rows of a run; of some structures, where (n_structures,) says which."""


KINDS = ("energy", "forces", "stress", "virial")
"""Kinds of targets, in the order of their partials."""


def kinds_of(loss: Json) -> list[str]:
    """Kinds of targets that have a weight in a loss."""
    return [kind for kind in KINDS if lambda_of(loss, kind) > 0.0]


def most_rows(kinds: Sequence[str], n_structures: int, n_environments: int) -> int:
    """Rows of a loss, if every structure has every label."""
    six = 6 * n_structures
    n_rows = {"energy": n_structures, "forces": 3 * n_environments, "stress": six, "virial": six}
    return sum(n_rows[kind] for kind in kinds)


def lambda_of(loss: Json, kind: str) -> float:
    """Weight of a kind of targets, whatever the shape of its loss."""
    term = loss.get(kind, 0.0)
    return float(term["weight"] if isinstance(term, dict) else term)


def off_diagonals_of(loss: Json) -> str:
    """How often a component off the diagonal of a stress or virial counts: "twice" or "once"."""
    return str(loss.get("off_diagonals", "twice"))


def sources_of(
    inputs: Mapping[str, StageFolder], kinds: Sequence[str], off_diagonals: str = "twice"
) -> dict[str, RowSource]:
    """Rows by the kind of their targets.

    Parameters
    ----------
    inputs : mapping of str to StageFolder
        ``rows``, and ``derivatives`` where the loss has forces or stresses.
    kinds : sequence of str
        Kinds of targets in the loss.
    off_diagonals : {"twice", "once"}
        See `dlpr.stages.derivatives.DerivativeStore`.
    """
    return {
        kind: open_rows(inputs["rows"])
        if kind == "energy"
        else open_derivatives(inputs["derivatives"], kind, off_diagonals)
        for kind in kinds
    }


def chosen_of(rows: StageFolder, spec: Json, member: int) -> NDArray[np.bool_]:
    """Structures of the training set that are in a member of a committee, or in a fold of a
    cross-validation, (n_structures,).

    Parameters
    ----------
    rows : StageFolder
        "rows", planned or finished.
    spec : dict
        ``fraction`` and ``seed``; or as for `folds_of`.
    member : int
    """
    structures = rows.input("structures")
    if "by" in spec:
        return np.equal(folds_of(structures, spec), member)
    n_structures = open_structures(structures).n_structures
    return subsample(spec["seed"], member, spec["fraction"], n_structures)


def folds_of(structures: StageFolder, spec: Json) -> NDArray[np.int64]:
    """Fold of a cross-validation in which each structure is, (n_structures,).

    Structures that are equal, but for their labels, share a fold, unless groups are left out.

    Parameters
    ----------
    structures : StageFolder
        Finished.
    spec : dict
        ``by``: "structure", "stratified" or "group", whose fold is its number; ``members``, how
        many folds there are, and ``seed``.

    Raises
    ------
    InputError
        If a fold is empty.
    """
    by, n_folds, seed = spec["by"], spec["members"], spec["seed"]
    return _folds_of(str(structures.path), structures.output_digest(), by, n_folds, seed)


@lru_cache(maxsize=2)
def _folds_of(path: str, digest: str, by: str, n_folds: int, seed: int) -> NDArray[np.int64]:
    store = open_structures(StageFolder(Path(path), digest))
    if by == "group":
        return store.group.astype(np.int64)
    keys = [row.tobytes() for row in store.over_structures("digest")]
    if by == "structure":
        return k_folds(keys, n_folds, seed)
    return stratified_folds(keys, [store.group_names[k] for k in store.group], n_folds, seed)
