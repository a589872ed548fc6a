"""One decomposition of what a loss folds: it serves every regularizer (JCTC23 SI sec. 2)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from dlpr.core.baseline import Baseline, Folded, fitted, given
from dlpr.core.decomposition import Decomposition
from dlpr.core.factor import EPS
from dlpr.core.folds import Gram
from dlpr.core.models import Model
from dlpr.stages.fold import all_rows, combined, tiling_of
from dlpr.stages.loss import isolated_energies, scale_square_of, weights_of
from dlpr.stages.model import open_model
from dlpr.stages.sources import kinds_of, off_diagonals_of, sources_of
from dlpr.store.files import Json
from dlpr.store.folder import StageFolder

GRAM_ERROR = 1e-9
"""eps cond(H) beyond which triangles take the place of a Hessian, as for `solver: auto`."""


def plan(
    work: Path,
    of: StageFolder | None,
    inputs: Mapping[str, StageFolder],
    model: Json,
    loss: Json,
    numerics: Json,
) -> StageFolder:
    """Decompose ``G``, energies per atom taken out of it, in one task.

    Parameters
    ----------
    of : StageFolder, optional
        A finished "hessian" (in tiles or not) or "triangle"; none: the rows, where they are few.
    inputs : mapping of str to StageFolder
        See `dlpr.stages.sources`.
    model, loss, numerics : dict
        As for `dlpr.stages.factor.plan`; the model's regularizer has no part in it.
    """
    rows = inputs["rows"]
    settings = {
        "features": rows.settings["features"],
        "map": rows.settings["map"],
        "model": {name: value for name, value in model.items() if name != "regularizer"},
        "loss": loss,
        "numerics": {"threads": numerics["factor_threads"], "kernel": numerics["kernel"]},
    }
    if of is not None:
        inputs = {**inputs, "fold": of}
    return StageFolder.create(work, "decomposition", settings, inputs, 1)


def run(folder: StageFolder, task: int) -> tuple[dict[str, Any], Json]:
    """Take the energies per atom out of the fold or of the rows, and decompose what is left."""
    settings = folder.settings
    rows = folder.input("rows")
    loss = settings["loss"]
    sources = sources_of(folder.inputs(), kinds_of(loss), off_diagonals_of(loss)).values()
    n_rows = sum(source.n_rows for source in sources)
    # with 1 in the columns of energies per atom, the model has all that are folded
    model = open_model(rows, settings["model"], 1.0)
    reduced, baseline = _reduced(folder, model, _folded(folder, model))
    if isinstance(reduced, np.ndarray):
        found = Decomposition.of_rows(reduced[:, :-1], reduced[:, -1], n_rows)
    else:
        found = Decomposition.of_fold(
            reduced, model.layout.n_columns - len(model.constants), n_rows
        )
    least = EPS * float(found.sigma[0]) ** 2 / GRAM_ERROR if isinstance(reduced, Gram) else 0.0
    arrays = {"basis": found.basis, "sigma": found.sigma, "target": found.target}
    arrays |= {"share": baseline.share, "energy": baseline.energy}
    if baseline.root is not None:
        arrays["root"] = baseline.root
    facts: Json = {
        "scale_square": scale_square_of(rows, settings["model"]),
        "n_rows": n_rows,
        "shape": list(found.basis.shape),
        "rest": found.rest,
        "rank": found.rank,
        "resolved_mu": least,
        "nu": baseline.regularizer,
    }
    return folder.write_part(task, arrays), facts


def _folded(folder: StageFolder, model: Model) -> Folded:
    """The fold or the rows: all columns and the target."""
    inputs, weights = folder.inputs(), weights_of(folder.settings["loss"])
    if "fold" not in inputs:
        none = np.zeros(len(model.constants))
        loss = folder.settings["loss"]
        sources = sources_of(inputs, kinds_of(loss), off_diagonals_of(loss))
        return all_rows(sources, model, weights, none)
    fold, n_columns = inputs["fold"], model.layout.n_columns + 1
    tiling = tiling_of(model, fold.settings)
    if len(tiling.pairs()) == 1:
        return combined(fold, 0, weights)
    matrix = np.zeros((n_columns, n_columns), order="F")
    for number, (i, j) in enumerate(tiling.pairs()):
        matrix[tiling.slice(i), tiling.slice(j)] = combined(fold, number, weights).matrix
    return Gram(matrix)


def _reduced(folder: StageFolder, model: Model, folded: Folded) -> tuple[Folded, Baseline]:
    """Take the energies per atom out: given ones, or those that the fit is to find."""
    composition = folder.settings["model"]["baseline"].get("composition")
    if composition:
        return fitted(folded, model.constants, composition["regularizer"])
    return given(folded, model.constants, isolated_energies(folder))


@lru_cache(maxsize=1)
def _open(path: str, digest: str) -> tuple[Decomposition, Baseline]:
    folder = StageFolder(Path(path), digest)
    facts, part = folder.receipts()[0].facts, folder.read_part(0)
    found = Decomposition(
        part["basis"], part["sigma"], part["target"], facts["rest"], facts["rank"], facts["n_rows"]
    )
    return found, Baseline(part["share"], part["energy"], part.get("root"), facts["nu"])


def open_decomposition(folder: StageFolder) -> tuple[Decomposition, Baseline]:
    """A finished decomposition and what energies per atom leave, read once per process."""
    return _open(str(folder.path), folder.output_digest())
