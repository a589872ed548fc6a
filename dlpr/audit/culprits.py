"""The environments behind a check that does not hold."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dlpr.audit.errors import structure_errors, worst_forces
from dlpr.audit.figures import read
from dlpr.audit.record import FlaggedEnvironment
from dlpr.audit.spec import FINDINGS, HELD_OUT, OF_QUANTITIES
from dlpr.audit.tonight import CERTAINTY, Target, Tonight
from dlpr.audit.worst import Chunk
from dlpr.core.rows import FloatArray

Score = Callable[[Chunk], FloatArray]


def least_rigid(chunk: Chunk) -> FloatArray:
    """LPR."""
    return chunk["lpr"]


def _unseen(chunk: Chunk) -> FloatArray:
    return np.where(chunk["unseen"] > 0, chunk["lpr"], np.inf)


SCORES: dict[str, Score] = {
    "lpr": least_rigid,
    "drift": least_rigid,
    "prior_ratio": lambda chunk: chunk["prior_ratio"],
    "uncertainty": lambda chunk: chunk[CERTAINTY],
    "unseen": _unseen,
}
"""By measure: what is lowest where to look first."""


class Flagged:
    """The environments that an audit shows, each once, and no more than the spec says."""

    def __init__(self, tonight: Tonight) -> None:
        self._tonight = tonight
        self._index: dict[tuple[str, int], int] = {}
        self.environments: list[FlaggedEnvironment] = []

    @property
    def room(self) -> int:
        """How many more can be shown."""
        return self._tonight.spec.flag.count - len(self.environments)

    def new(self, name: str, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of a set that are not shown yet."""
        return np.array([p for p in places.tolist() if (name, p) not in self._index], np.int64)

    def add(self, name: str, places: NDArray[np.int64]) -> list[int]:
        """Indices of environments of a set, given by their places in it, while there is room."""
        if not len(places):
            return []
        fresh = self.new(name, places)[: self.room]
        found = self._tonight.environments[name].describe(fresh, self._tonight.view.scale)
        for place in fresh.tolist():
            if place in found:
                self._index[name, place] = len(self.environments)
                self.environments.append(found[place])
        known = ((name, place) for place in places.tolist())
        return [self._index[one] for one in known if one in self._index]


def culprits(
    tonight: Tonight, target: Target, n: int, structures: NDArray[np.int64] | None
) -> NDArray[np.int64]:
    """The environments to look at, by their places in the set: worst first, at most ``n``.

    None where the set has no rigidities, or the check is about what is not there.

    Parameters
    ----------
    tonight : Tonight
    target : Target
    n : int
    structures : (m,) int64, optional
        Of a check that names structures.
    """
    of = target.check.of
    environments = tonight.environments.get(target.set)
    if environments is None or of in ("lost", *HELD_OUT):
        return np.empty(0, np.int64)
    if of in SCORES:
        return environments.worst(n, SCORES[of], target.group, target.species)
    if structures is not None:
        return environments.weakest_of(structures[:n])
    if of in OF_QUANTITIES and target.check.quantity.startswith("force"):
        store = tonight.structures[target.set]
        return worst_forces(tonight.results[target.set], store, n, target.group)
    score = _structure_scores(tonight, target)
    order = np.argsort(score, kind="stable")[:n]
    return environments.weakest_of(order[score[order] < np.inf])


def _structure_scores(tonight: Tonight, target: Target) -> FloatArray:
    """(n_structures,) lowest for those to look at first; inf for those that are not meant."""
    store, result = tonight.structures[target.set], tonight.results[target.set]
    score: FloatArray = read(result, "structure_pr")
    if target.check.of in (*OF_QUANTITIES, *FINDINGS):
        errors = np.abs(structure_errors(result)) / np.diff(store.structure_offset)
        score = np.where(np.isfinite(errors), -errors, np.inf)
    if target.group is not None:
        score[np.array(store.group_names)[store.group] != target.group] = np.inf
    return score
