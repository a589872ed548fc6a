"""Counts and distributions per group and species, merged exactly from those of parts of a set."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlpr.core.fit import UNSEEN_CENTRE, UNSEEN_NEIGHBOUR
from dlpr.core.quantiles import QuantileSketch, pack, unpack
from dlpr.core.rows import FloatArray
from dlpr.store.files import Json

QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)
STRUCTURE_LEVELS = (0.0, 0.05, 0.5)
"""What is kept of the environments of one structure."""


@dataclass
class Distribution:
    """The rigidities of environments of one group and central species."""

    lpr: QuantileSketch = field(default_factory=QuantileSketch)
    prior_ratio: QuantileSketch = field(default_factory=QuantileSketch)
    unseen: NDArray[np.int64] = field(default_factory=lambda: np.zeros(3, np.int64))
    """Environments of an unseen centre, with an unseen neighbour, with any flag at all."""


Summary = dict[tuple[str, int], Distribution]
"""By group and atomic number."""


def summarize(
    groups: Sequence[str],
    group: NDArray[np.int64],
    species: NDArray[np.uint8],
    lpr: FloatArray,
    prior_ratio: FloatArray,
    unseen: NDArray[np.uint8],
) -> Summary:
    """Summarize some environments.

    Parameters
    ----------
    groups : sequence of str
    group, species : (n,)
        Index into ``groups``, atomic number.
    lpr, prior_ratio, unseen : (n,)
    """
    found: Summary = {}
    label = label_of(group, species)
    for key in np.unique(label):
        own = label == key
        number, z = divmod(int(key), 256)
        one = found[groups[number], z] = Distribution()
        one.lpr.add(lpr[own])
        one.prior_ratio.add(prior_ratio[own])
        flags = unseen[own]
        one.unseen += [
            np.count_nonzero(flags & UNSEEN_CENTRE),
            np.count_nonzero(flags & UNSEEN_NEIGHBOUR),
            np.count_nonzero(flags),
        ]
    return found


def label_of(group: Any, species: Any) -> Any:
    """One number for group and species."""
    return group * 256 + species


def summary_arrays(summary: Summary) -> dict[str, NDArray[Any]]:
    """Arrays that hold a summary exactly: what `merged` takes back."""
    own = list(summary.values())
    arrays = {
        "group": np.array([group for group, _ in summary], np.str_),
        "species": np.array([z for _, z in summary], np.uint8),
        "unseen": np.array([one.unseen for one in own]).reshape(-1, 3),
    }
    for name in ("lpr", "prior_ratio"):
        packed = pack([getattr(one, name) for one in own])
        arrays |= {f"{name}.{array}": values for array, values in packed.items()}
    return arrays


def merged(parts: Iterable[Mapping[str, NDArray[Any]]]) -> Summary:
    """Several summaries as one, of the arrays that hold them; in the order of its keys."""
    found: defaultdict[tuple[str, int], Distribution] = defaultdict(Distribution)
    for part in parts:
        lpr, ratio = (
            unpack({k.removeprefix(head): v for k, v in part.items() if k.startswith(head)})
            for head in ("lpr.", "prior_ratio.")
        )
        keys = zip(part["group"].tolist(), part["species"].tolist(), strict=True)
        for k, key in enumerate(keys):
            found[key].lpr.merge(lpr[k])
            found[key].prior_ratio.merge(ratio[k])
            found[key].unseen += part["unseen"][k]
    return dict(sorted(found.items()))


def summary_rows(summary: Summary) -> list[Json]:
    """What people read of a summary: counts and quantiles of each group and species."""
    return [
        {
            "group": group,
            "species": z,
            "n_environments": one.lpr.n,
            "n_inf": one.lpr.n_inf,
            "n_unseen_centre": int(one.unseen[0]),
            "n_unseen_neighbour": int(one.unseen[1]),
            "n_unseen": int(one.unseen[2]),
            "lpr": quantiles(one.lpr),
            "prior_ratio": quantiles(one.prior_ratio),
        }
        for (group, z), one in summary.items()
    ]


def quantiles(sketch: QuantileSketch) -> list[float] | None:
    """`QUANTILES` of the finite values; None where there are none."""
    if sketch.n == sketch.n_inf:
        return None
    return [sketch.quantile(q) for q in QUANTILES]


def structure_levels(lpr: FloatArray, count: NDArray[np.int64]) -> FloatArray:
    """`STRUCTURE_LEVELS` of the finite LPR of each structure; NaN where none is finite.

    Parameters
    ----------
    lpr : (n,) float64
        Of whole structures, one after another.
    count : (n_structures,) int64
        Environments of each, at least 1.

    Returns
    -------
    (n_structures, n_levels) float64
    """
    structure = np.repeat(np.arange(len(count)), count)
    ordered = lpr[np.lexsort((lpr, structure))]
    n_finite = np.bincount(structure[ordered < np.inf], minlength=len(count))
    rank = np.maximum(np.ceil(np.outer(n_finite, STRUCTURE_LEVELS)).astype(np.int64), 1)
    found: FloatArray = ordered[(np.cumsum(count) - count)[:, None] + rank - 1]
    found[n_finite == 0] = np.nan
    return found
