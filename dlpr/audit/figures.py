"""Distributions of rigidities by set, group and species, of which all figures are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr
from numpy.typing import NDArray

from dlpr.audit.record import GroupRecord, OutlineRecord, Quantiles
from dlpr.core.density import outline
from dlpr.core.quantiles import QuantileSketch, pack, unpack
from dlpr.stages.summary import Summary, merged
from dlpr.store.files import write_arrays
from dlpr.store.folder import StageFolder

LEVELS = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
MILLI = 1e3
"""meV of an eV."""


class Key(NamedTuple):
    """What a distribution is of."""

    set: str
    measure: str
    group: str
    species: int
    """0: of all, where structures are meant"""


@dataclass
class Distributions:
    """Sketches by set, measure, group and species; unions of groups and species are merged."""

    sketches: dict[Key, QuantileSketch] = field(default_factory=dict)

    def of(
        self, name: str, measure: str, group: str | None = None, species: int | None = None
    ) -> QuantileSketch:
        """The distribution of one measure over a set, or over a group or a species of it."""
        found = QuantileSketch()
        for key, sketch in self.sketches.items():
            if (
                key[:2] == (name, measure)
                and group in (None, key.group)
                and species in (None, key.species)
            ):
                found.merge(sketch)
        return found

    def groups(self, name: str, measure: str) -> list[str]:
        """Groups of a set in which there is anything."""
        return sorted({key.group for key in self.sketches if key[:2] == (name, measure)})

    def species(self, name: str, measure: str, group: str | None = None) -> list[int]:
        """Species of a set, or of a group of it."""
        own = [key for key in self.sketches if key[:2] == (name, measure)]
        return sorted({key.species for key in own if group in (None, key.group)})

    def save(self, path: Path) -> None:
        """Write them, exactly."""
        keys = list(self.sketches)
        names = {
            "set": np.array([key.set for key in keys], np.str_),
            "measure": np.array([key.measure for key in keys], np.str_),
            "group": np.array([key.group for key in keys], np.str_),
            "species": np.array([key.species for key in keys], np.int64),
        }
        write_arrays(path, {**names, **pack(list(self.sketches.values()))})

    @classmethod
    def load(cls, path: Path) -> Distributions:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            found: Mapping[str, NDArray[Any]] = dict(arrays)
        columns = (found[name].tolist() for name in ("set", "measure", "group", "species"))
        keys = [Key(*row) for row in zip(*columns, strict=True)]
        return cls(dict(zip(keys, unpack(found), strict=True)))


def summary_of(result: StageFolder, name: str) -> Summary:
    """What the tasks of a result say of one set: no environment is read again."""
    tasks = enumerate(result.settings["tasks"])
    own = [task for task, (set_, chunk) in tasks if set_ == name and chunk is not None]
    return merged(map(result.read_part, own))


def distributions_of(name: str, summary: Summary, group: zarr.Group) -> dict[Key, QuantileSketch]:
    """Distributions of LPR, prior ratio and the PR of structures.

    Parameters
    ----------
    name : str
        Of the set.
    summary : Summary
    group : zarr.Group
        Its result.
    """
    found = {}
    for (of_group, species), one in summary.items():
        found[Key(name, "lpr", of_group, species)] = one.lpr
        found[Key(name, "prior_ratio", of_group, species)] = one.prior_ratio
    pr, number = (read(group, array) for array in ("structure_pr", "structure_group"))
    names: Any = group["structure_group"].attrs["names"]
    for k, of_group in enumerate(names):
        sketch = found[Key(name, "structure_pr", of_group, 0)] = QuantileSketch()
        sketch.add(pr[number == k])
    return found


@dataclass(frozen=True)
class Scale:
    """How rigidities become uncertainties ``a / sqrt(R)``."""

    a: float
    """eV, times the root of the rigidity's unit"""
    measure: str
    """what R is: "lpr", or "certainty" of a kernel, with what its references do not see"""

    def sigma(self, rigidity: float) -> float:
        """meV; inf where nothing constrains the environment."""
        return MILLI * self.a / float(np.sqrt(rigidity)) if rigidity > 0.0 else float("inf")

    def quantile(self, rigidities: QuantileSketch, q: float) -> float:
        """What a part q of the uncertainties does not exceed, in meV."""
        return self.sigma(rigidities.quantile(1.0 - q))

    def share_below(self, rigidities: QuantileSketch, bound: float) -> float:
        """The part of the uncertainties below a bound in meV."""
        return 1.0 - rigidities.share_below((MILLI * self.a / bound) ** 2)


def quantiles(sketch: QuantileSketch) -> Quantiles:
    """`LEVELS` and outline of the finite values."""
    if not sketch.n_finite:
        return Quantiles(levels=list(LEVELS), values=[])
    values = [sketch.quantile(q) for q in LEVELS]
    return Quantiles(levels=list(LEVELS), values=values, outline=_outline(sketch))


def _outline(sketch: QuantileSketch) -> OutlineRecord | None:
    found = outline(sketch)
    if found is None:
        return None
    height = np.round(found.height, 3).tolist()
    return OutlineRecord(low=found.low, high=found.high, height=height)


def uncertainties(scale: Scale, rigidities: QuantileSketch) -> Quantiles:
    """`LEVELS` of the uncertainties, but for those that are infinite."""
    found = {q: scale.quantile(rigidities, q) for q in LEVELS if rigidities.n_finite}
    finite = {q: value for q, value in found.items() if value < np.inf}
    return Quantiles(levels=list(finite), values=list(finite.values()))


def group_records(
    distributions: Distributions, name: str, summary: Summary, scale: Scale | None
) -> list[GroupRecord]:
    """A set's environments: of all, of each group, of each species, of each of both."""
    groups = sorted({group for group, _ in summary})
    species = sorted({z for _, z in summary})
    wanted: list[tuple[str | None, int | None]] = [
        (None, None),
        *((group, None) for group in groups),
        *((None, z) for z in species),
        *summary,
    ]
    return [_group_record(distributions, name, summary, group, z, scale) for group, z in wanted]


def _group_record(
    distributions: Distributions,
    name: str,
    summary: Summary,
    group: str | None,
    species: int | None,
    scale: Scale | None,
) -> GroupRecord:
    lpr = distributions.of(name, "lpr", group, species)
    own = [one for (g, z), one in summary.items() if group in (None, g) and species in (None, z)]
    uncertainty = None
    if scale is not None:
        rigidities = distributions.of(name, scale.measure, group, species)
        uncertainty = uncertainties(scale, rigidities)
    return GroupRecord(
        group=group,
        species=species,
        n_environments=lpr.n,
        n_inf=lpr.n_inf,
        n_unseen=sum(int(one.unseen[2]) for one in own),
        lpr=quantiles(lpr),
        prior_ratio=quantiles(distributions.of(name, "prior_ratio", group, species)),
        uncertainty=uncertainty,
    )


def read(group: zarr.Group, name: str) -> NDArray[Any]:
    """A whole array over structures."""
    array = group[name]
    assert isinstance(array, zarr.Array)
    return np.asarray(array[:])
