"""Rows of the structures of a set, in the model's convention and whitened by the factor.

Products of these rows are ``g^T H^-1 g'``: the reciprocal of a row's square is the structure's PR,
and what a label of one structure does for another follows from rows alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dlpr.stages.factor import open_factors
from dlpr.stages.model import open_model
from dlpr.stages.rows import open_rows
from dlpr.store.files import Json
from dlpr.store.folder import StageFolder

RUN_NBYTES = 1 << 24
"""Bytes of the rows of a task: few enough to be held, enough for the BLAS."""


def plan(work: Path, factor: StageFolder, rows: StageFolder, numerics: Json) -> StageFolder:
    """A task for each run of rows; those that a set has had before are adopted.

    Parameters
    ----------
    factor : StageFolder
        A finished "factor" or "cholesky".
    rows : StageFolder
        A finished "rows" of any set, in the columns of the factor's own.
    """
    model = open_model(factor.input("rows"), factor.settings["model"])
    settings: Json = {
        "run_rows": max(1, RUN_NBYTES // (8 * model.layout.n_columns)),
        "numerics": {name: numerics[name] for name in ("threads", "kernel")},
    }
    source = open_rows(rows)
    tasks = [
        {
            "settings": settings["numerics"],
            "factor": factor.output_digest(),
            "first": int(source.members(one)[0]),
            "group": one.group,
            "rows": source.contents(one),
        }
        for one in source.runs(settings["run_rows"])
    ]
    return StageFolder.create(work, "whitened", settings, {"factor": factor, "rows": rows}, tasks)


def run(folder: StageFolder, task: int) -> tuple[dict[str, Any], Json]:
    """Whiten the rows of the structures of one run."""
    source, fit = open_rows(folder.input("rows")), open_factors(folder.input("factor")).fit
    assert fit.whole is not None
    one = source.runs(folder.settings["run_rows"])[task]
    rows, structure = [np.empty((0, fit.model.layout.n_columns))], [np.empty(0, np.int64)]
    for found in source.read(one):
        rows.append(fit.model.structures(found.sums, found.count)[0])
        structure.append(found.structure)
    whitened = fit.whole.whiten(np.concatenate(rows))
    arrays = {"place": np.concatenate(structure), "rows": whitened}
    return folder.write_part(task, arrays), {"group": one.group, "n_rows": len(whitened)}
