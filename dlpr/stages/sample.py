"""A few environments that stand for all test sets, and a map of them: one task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlpr.core.models import FeatureMap
from dlpr.core.principal import principal_coordinates
from dlpr.core.rows import FloatArray, Layout
from dlpr.core.sampling import farthest_points, find_usable
from dlpr.stages.features import FeatureSource
from dlpr.stages.model import open_map
from dlpr.store.files import Json
from dlpr.store.folder import StageFolder

IntArray = NDArray[np.int64]
DRAWN = 2000
"""Environments of all test sets together that are looked at, and as many of the training set; fewer
where their features are more than `DRAWN_NBYTES`."""
DRAWN_NBYTES = 1 << 27
BATCH = 128
"""Of these, those whose features are computed at once."""
AXES = 3
TRAIN = "train"


def structures_of(name: str) -> str:
    """The input that has the structures of a set; no set has such a name."""
    return f"structures of {name}"


def plan(
    work: Path,
    sets: Mapping[str, StageFolder],
    features: Mapping[str, Json],
    rows: StageFolder,
    count: int,
    numerics: Json,
) -> StageFolder:
    """Draw environments, pick the farthest of them, and map these.

    Parameters
    ----------
    sets : mapping of str to StageFolder
        Structures of the test sets, and of "train".
    features : mapping of str to dict
        Of each.
    rows : StageFolder
        Of the training set: says what the feature map is.
    count : int
        Environments of all test sets that are picked, and of the training set.
    numerics : dict
        ``threads`` and ``kernel``.
    """
    settings = {
        "sets": list(sets),
        "of_sets": dict(features),
        "count": count,
        "drawn": DRAWN,
        "numerics": {name: numerics[name] for name in ("threads", "kernel")},
    }
    inputs = {structures_of(name): structures for name, structures in sets.items()}
    return StageFolder.create(work, "sample", settings, {**inputs, "rows": rows}, 1)


def drawn_count(n_features: int) -> int:
    """Environments whose features are held."""
    return max(1, min(DRAWN, DRAWN_NBYTES // (8 * n_features)))


def run(folder: StageFolder, task: int) -> tuple[dict[str, Any], Json]:
    """Pick and map environments of the test sets and of the training set."""
    settings, mapping = folder.settings, open_map(folder.input("rows"))
    names = [name for name in settings["sets"] if name != TRAIN]
    count = settings["count"]
    tested, trained = (_farthest(_drawn(folder, own), count) for own in (names, [TRAIN]))
    rows = np.concatenate([_rows(mapping, one) for one in (tested, trained)])
    coordinates, explained = principal_coordinates(rows, AXES)
    n = len(tested.place)
    arrays = {
        "set": tested.number,
        "environment": tested.place,
        "coordinates": coordinates[:n],
        "training": coordinates[n:],
        "explained": explained,
    }
    return folder.write_part(task, arrays), {"sets": names}


@dataclass(frozen=True)
class _Drawn:
    """Some environments."""

    features: FloatArray
    species: IntArray
    number: IntArray
    """of their sets"""
    place: IntArray
    """in their sets, in the order of the source"""


def _drawn(folder: StageFolder, names: list[str]) -> _Drawn:
    """Environments of some sets, of each alike."""
    found = [_draw(folder, name, len(names)) for name in names]
    features, species, place = (np.concatenate(one) for one in zip(*found, strict=True))
    number = np.repeat(np.arange(len(names)), [len(one[2]) for one in found])
    return _Drawn(features, species, number, place)


def _farthest(drawn: _Drawn, count: int) -> _Drawn:
    """The farthest points in the order of the picks, so that each beginning is a sample."""
    usable = find_usable([drawn.features], normalize=False)
    picks, _ = farthest_points([drawn.features], count, 0, usable)
    return _Drawn(*(getattr(drawn, field.name)[picks] for field in fields(_Drawn)))


def _rows(mapping: FeatureMap, drawn: _Drawn) -> FloatArray:
    """As they are compared on the map: features, or a kernel's rows in blocks of species."""
    if not mapping.is_sparse:
        return drawn.features
    layout = Layout(mapping.widths)
    rows = np.zeros((len(drawn.features), layout.n_columns))
    for number in np.unique(drawn.species).tolist():
        own = drawn.species == number
        rows[own, layout.slice(number)] = mapping.map(number, drawn.features[own])
    return rows


def _draw(folder: StageFolder, name: str, n_sets: int) -> tuple[FloatArray, IntArray, IntArray]:
    """Features, species and places of environments drawn from a set."""
    source = FeatureSource(folder.input(structures_of(name)), folder.settings["of_sets"][name])
    store = source.structures
    n = -(-drawn_count(source.descriptor.n_features) // n_sets)
    bits = np.random.Philox(key=0).random_raw(n)
    chosen = np.unique((bits % np.uint64(store.n_environments)).astype(np.int64))
    found = [source.some(chosen[start : start + BATCH]) for start in range(0, len(chosen), BATCH)]
    features, species = (np.concatenate(one) for one in zip(*found, strict=True))
    begin = store.structure_offset[np.searchsorted(store.structure_offset, chosen, "right") - 1]
    atom = [store.read("source_atom", one, one + 1) for one in chosen.tolist()]
    return features, species, begin + np.concatenate(atom)
