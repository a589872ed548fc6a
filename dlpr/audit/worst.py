"""The environments behind a figure: found chunk by chunk, told by file, frame and atom."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from dlpr.audit.figures import Scale, read
from dlpr.audit.record import FlaggedEnvironment
from dlpr.core.rows import FloatArray
from dlpr.stages.result import CHUNK_ROWS

Chunk = dict[str, NDArray[Any]]
RESIDUAL = "environment_residual"
_NAMES = ("lpr", "prior_ratio", "species", "unseen")


class Environments:
    """The environments of one set of a result.

    Parameters
    ----------
    name : str
        Of the set.
    group : zarr.Group
        Its result.
    mu : float
        The regularizer, in which a kernel's residuals are measured.
    """

    def __init__(self, name: str, group: zarr.Group, mu: float) -> None:
        self.name, self._group, self._mu = name, group, mu
        self.offset: NDArray[np.int64] = read(group, "structure_offset")
        self.number: NDArray[np.int32] = read(group, "structure_group")
        self.groups: list[str] = self._attribute("structure_group", "names")
        self.n = int(self.offset[-1])
        flags = ("environment_unseen", "flag_masks"), ("environment_unseen", "flag_meanings")
        masks, meanings = (self._attribute(*one) for one in flags)
        self._flags: list[tuple[int, str]] = list(zip(masks, meanings.split(), strict=True))

    def _attribute(self, array: str, name: str) -> Any:
        return self._group[array].attrs[name]

    def chunks(self, *wanted: int) -> Iterator[tuple[int, Chunk]]:
        """First environment and arrays of chunks; of all, if none are wanted."""
        for chunk in wanted or range(-(-self.n // CHUNK_ROWS)):
            start = chunk * CHUNK_ROWS
            stop = min(start + CHUNK_ROWS, self.n)
            found = {name: self._rows(f"environment_{name}", start, stop) for name in _NAMES}
            found["certainty"] = found["lpr"]
            if RESIDUAL in self._group:
                with np.errstate(divide="ignore", invalid="ignore"):
                    unseen = self._rows(RESIDUAL, start, stop) / self._mu
                    found["certainty"] = 1.0 / (1.0 / found["lpr"] + unseen)
            yield start, found

    def _rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        array = self._group[name]
        assert isinstance(array, zarr.Array)
        return np.asarray(array[start:stop])

    def structure_of(self, at: NDArray[np.int64]) -> NDArray[np.int64]:
        """The structures of some environments."""
        return np.searchsorted(self.offset, at, side="right") - 1

    def worst(
        self,
        n: int,
        score: Callable[[Chunk], FloatArray],
        group: str | None = None,
        species: int | None = None,
    ) -> NDArray[np.int64]:
        """The ``n`` environments of the lowest score, lowest first, where it is finite.

        One chunk is held at a time; of equal scores the first environment comes first.

        Parameters
        ----------
        n : int
        score : callable
            Of the arrays of a chunk; inf for environments that are not meant.
        group, species : optional
            Those of one group, or one atomic number.
        """
        best, place = np.empty(0), np.empty(0, np.int64)
        for start, chunk in self.chunks() if n else ():
            values = np.array(score(chunk), np.float64)
            at = np.arange(start, start + len(values))
            if species is not None:
                values[chunk["species"] != species] = np.inf
            if group is not None:
                own = self.groups.index(group) if group in self.groups else -1
                values[self.number[self.structure_of(at)] != own] = np.inf
            keep = np.flatnonzero(values < (best[-1] if len(best) == n else np.inf))
            best = np.concatenate([best, values[keep]])
            place = np.concatenate([place, at[keep]])
            order = np.argsort(best, kind="stable")[:n]
            best, place = best[order], place[order]
        return place

    def weakest_of(self, structures: NDArray[np.int64]) -> NDArray[np.int64]:
        """The environment of least LPR of each structure."""
        found = []
        for structure in structures.tolist():
            start, stop = self.offset[structure : structure + 2].tolist()
            found.append(start + int(np.argmin(self._rows("environment_lpr", start, stop))))
        return np.array(found, np.int64)

    def describe(
        self, places: NDArray[np.int64], scale: Scale | None
    ) -> dict[int, FlaggedEnvironment]:
        """Environments by their place in the set, but for those without features."""
        source = read(self._group, "structure_source_file")
        frame = read(self._group, "structure_source_frame")
        files = self._attribute("structure_source_file", "names")
        found = {}
        wanted = np.unique(places // CHUNK_ROWS).tolist()
        for start, chunk in self.chunks(*wanted) if wanted else ():
            for place in places[places // CHUNK_ROWS == start // CHUNK_ROWS].tolist():
                structure = int(self.structure_of(np.array(place)))
                one = {name: values[place - start] for name, values in chunk.items()}
                if one["lpr"] == np.inf:
                    continue
                sigma = scale.sigma(float(one["certainty"])) if scale else np.inf
                found[place] = FlaggedEnvironment(
                    set=self.name,
                    file=files[source[structure]],
                    frame=int(frame[structure]),
                    atom=int(place - self.offset[structure]),
                    species=int(one["species"]),
                    group=self.groups[self.number[structure]],
                    lpr=float(one["lpr"]),
                    prior_ratio=float(ratio) if np.isfinite(ratio := one["prior_ratio"]) else None,
                    uncertainty=sigma if sigma < np.inf else None,
                    flags=[name for mask, name in self._flags if one["unseen"] & mask],
                )
        return found
