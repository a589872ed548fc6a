"""The least rigid environments of a set, their rows whitened by the factor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlpr.core.models import Model
from dlpr.core.rows import FloatArray
from dlpr.stages.factor import open_factors
from dlpr.stages.features import FeatureSource
from dlpr.store.files import Json
from dlpr.store.folder import StageFolder

BATCH = 128
"""Environments whose features are held at once."""


def plan(work: Path, rigidity: StageFolder, count: int, numerics: Json) -> StageFolder:
    """One task: the ``count`` environments of least LPR of a finished "rigidity".

    Not among them are those without features, and those unlike all references of a kernel, which
    no label makes more rigid.
    """
    settings = {
        "count": count,
        "numerics": {name: numerics[name] for name in ("threads", "kernel")},
    }
    return StageFolder.create(work, "targets", settings, {"rigidity": rigidity}, 1)


def run(folder: StageFolder, task: int) -> tuple[dict[str, Any], Json]:
    """Choose environments by their LPR, compute their features anew, and whiten their rows."""
    rigidity = folder.input("rigidity")
    fit = open_factors(rigidity.input("factor")).fit
    assert fit.whole is not None
    source = FeatureSource(rigidity.input("structures"), rigidity.settings["features"])
    place = _least_rigid(rigidity, source, folder.settings["count"])
    rows = np.concatenate(
        [np.empty((0, fit.model.layout.n_columns)), *_rows(fit.model, source, place)]
    )
    return folder.write_part(task, {"place": place, "rows": fit.whole.whiten(rows)}), {}


def _least_rigid(rigidity: StageFolder, source: FeatureSource, count: int) -> NDArray[np.int64]:
    """Numbers of the environments, ascending; of equal LPR the first ones."""
    lowest, place = np.empty(0), np.empty(0, np.int64)
    for part, start in enumerate(source.edges[:-1].tolist()):
        lpr = rigidity.read_part(part, ("environment_lpr",))["environment_lpr"]
        usable = np.flatnonzero((lpr > 0.0) & (lpr < np.inf))
        lowest, place = np.append(lowest, lpr[usable]), np.append(place, start + usable)
        order = np.argsort(lowest, kind="stable")[:count]
        lowest, place = lowest[order], place[order]
    return np.sort(place)


def _rows(model: Model, source: FeatureSource, place: NDArray[np.int64]) -> Iterator[FloatArray]:
    """Rows of environments in all columns of the model, (n, layout.n_columns)."""
    for start in range(0, len(place), BATCH):
        features, species = source.some(place[start : start + BATCH])
        rows = np.zeros((len(features), model.layout.n_columns))
        for number, which, mapped in model.mapped(features, species):
            block, own = model.placed(number, mapped)
            rows[which, model.layout.slice(block)] = own
        yield rows
