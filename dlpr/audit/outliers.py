"""Labels that do not fit in: errors of energies far beyond what is usual in their group."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr
from numpy.typing import NDArray

from dlpr.audit.errors import structure_errors
from dlpr.audit.figures import MILLI, read
from dlpr.core.factor import reciprocal
from dlpr.core.rows import row_factor
from dlpr.core.validation import robust_scores, without_own_label
from dlpr.stages.loss import weights_of
from dlpr.stages.structures import StructureStore
from dlpr.store.files import Json

BEYOND = 10.0
"""Usual spreads beyond which an error is that of an outlier: fits of good labels have errors of up
to eight, for errors have long tails and few structures may be unlike all others."""
FEWEST = 20
"""Structures of a group that has a median and a spread of its own."""
SHOWN = 3


@dataclass(frozen=True)
class Outliers:
    """Structures of a set whose energies do not fit in."""

    structures: NDArray[np.int64]
    """(n,) the worst first"""
    text: str
    """the first of them, as people read it"""


def outliers(
    group: zarr.Group,
    structures: StructureStore,
    *,
    is_fitted: bool,
    beyond: float,
    of_group: str | None = None,
) -> Outliers:
    """Structures whose errors of energy are many times what the rigidity lets expect.

    Errors e, in the convention of the model's rows, have the variance ``sigma^2 (1 + w / PR)``:
    that of labels, and that of a prediction, with the weight w of energies in the loss. Of a
    structure of the training set e is that of a fit without it, see `without_own_label`. What is
    left, ``e / sqrt(1 + w / PR)``, is held against the errors of the structure's group and of the
    set, see `robust_scores`. Of an energy whose loss is not squared the fit's own errors count.

    Parameters
    ----------
    group : zarr.Group
        The result of a set.
    structures : StructureStore
        The same set.
    is_fitted : bool
        Whether it is the training set.
    beyond : float
        Multiples of the usual spread.
    of_group : str, optional
        Only those of one group are meant.
    """
    total = structure_errors(group)
    n_atoms = np.diff(structures.structure_offset)
    attributes: Json = dict(group.attrs)
    factor = row_factor(n_atoms, attributes["model"]["rows"])
    names = np.array(structures.group_names)[structures.group]
    loss = attributes["loss"]
    is_squared = not isinstance(loss["energy"], dict)
    weight = np.zeros(len(total))
    if is_squared:
        own = {name: weights_of(loss)("energy", name) for name in structures.group_names}
        weight = np.array([own[name] for name in names])
    variance = weight * reciprocal(read(group, "structure_pr"))
    error, spread = factor * total, np.sqrt(1.0 + variance)
    if is_fitted:
        error, spread = without_own_label(error, structures.weight * variance)
    score = robust_scores(error / spread, structures.group, FEWEST)
    size = np.abs(score)
    if of_group is not None:
        size[names != of_group] = np.nan
    found = np.flatnonzero(size > beyond)
    found = found[np.argsort(-size[found], kind="stable")]
    file, files = structures.sources()
    per_atom = MILLI * np.abs(error) / (factor * n_atoms)
    told = [
        f"frame {structures.structure('source_frame', k)} of {Path(files[file[k]]).name} is off by "
        f"{per_atom[k]:.3g} meV/atom, {size[k]:.3g} times what is usual"
        for k in found[:SHOWN].tolist()
    ]
    more = f" and {len(found) - SHOWN} more" * (len(found) > SHOWN)
    return Outliers(found, "; ".join(told) + more)
