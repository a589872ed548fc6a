"""Structures that are there twice: within a set, or in a test set and the training set."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dlpr.stages.structures import StructureStore


@dataclass(frozen=True)
class Repeats:
    """Structures of a set that repeat others, exactly or nearly."""

    structures: NDArray[np.int64]
    """(n,) those that repeat"""
    files: list[tuple[str, str, int]]
    """file that repeats, file that it repeats, how many structures; most first"""
    example: str
    """the first of them, by its frame"""

    @property
    def text(self) -> str:
        """The files, as people read it."""
        told = [
            f"{count} of {Path(file).name} repeat {Path(other).name}"
            if file != other
            else f"{count} within {Path(file).name}"
            for file, other, count in self.files[:3]
        ]
        more = f" and {len(self.files) - 3} more pairs of files" * (len(self.files) > 3)
        return ", ".join(told) + more + f" ({self.example})"


def repeats(own: StructureStore, of: StructureStore | None = None) -> Repeats:
    """Structures of a set that repeat earlier ones of it, or any of another set.

    Parameters
    ----------
    own : StructureStore
    of : StructureStore, optional
        The other set.
    """
    marks = digests(own)
    if of is None:
        _, first, inverse = np.unique(marks, return_index=True, return_inverse=True)
        original = first[inverse]
        found = np.flatnonzero(original != np.arange(len(marks)))
        original, other = original[found], own
    else:
        known, first = np.unique(digests(of), return_index=True)
        place = np.minimum(np.searchsorted(known, marks), len(known) - 1)
        found = np.flatnonzero(known[place] == marks)
        original, other = first[place[found]], of
    return told(own, other, found, original, "is")


def told(
    own: StructureStore,
    other: StructureStore,
    found: NDArray[np.int64],
    original: NDArray[np.int64],
    verb: str,
) -> Repeats:
    """Structures of a set, and what they repeat, by their files and frames.

    Parameters
    ----------
    own, other : StructureStore
    found, original : (n,) int64
        Structures of the one, and of the other.
    verb : str
        How the two of a pair are to each other.
    """
    if not len(found):
        return Repeats(found, [], "")
    (file, names), (other_file, other_names) = own.sources(), other.sources()
    pairs = Counter(zip(file[found].tolist(), other_file[original].tolist(), strict=True))
    files = [(names[a], other_names[b], count) for (a, b), count in pairs.most_common()]
    pair = [
        f"frame {store.structure('source_frame', index)} of {Path(path).name}"
        for store, index, path in (
            (own, int(found[0]), names[file[found[0]]]),
            (other, int(original[0]), other_names[other_file[original[0]]]),
        )
    ]
    return Repeats(found, files, f"the first: {pair[0]} {verb} {pair[1]}")


def digests(store: StructureStore) -> NDArray[np.void]:
    """(n_structures,) one comparable value for each."""
    found = np.ascontiguousarray(store.over_structures("digest"))
    return found.view([("high", ">u8"), ("low", ">u8")]).ravel()
