"""The weights of a committee's members, from stored rows or from the factored Hessian."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlpr.core.committee import draw
from dlpr.core.decomposition import Decomposition, solve_weights
from dlpr.core.models import Model
from dlpr.core.rows import FloatArray
from dlpr.errors import InputError
from dlpr.stages.factor import factor_facts, model_rows, open_factors
from dlpr.stages.loss import chosen_fold, factor_model
from dlpr.stages.sources import chosen_of
from dlpr.store.files import Json
from dlpr.store.folder import StageFolder

OF_VARIANCE: Json = {"units": "eV^2", "ddof": 1}
"""Of total energies and those of environments; the divisor is the number of members less ddof."""
GENERATOR = "numpy.random.Philox, key seed + 2^64 member; word k for structure or column k"


def plan(
    work: Path, factor: StageFolder, committee: Json, fold: StageFolder | None, numerics: Json
) -> StageFolder:
    """A task for each member that is fitted; one for all that are drawn.

    Parameters
    ----------
    factor : StageFolder
        A finished "factor", or "cholesky" if members are drawn: it says what model and loss are.
    committee : dict
        ``subsample`` or ``posterior``, as in the job.
    fold : StageFolder, optional
        The members' folds, where the factor was made of one.
    numerics : dict
        ``threads`` and ``kernel``.
    """
    names = ("features", "map", "model", "loss", "solver")
    settings = {
        **{name: factor.settings[name] for name in names},
        "committee": committee,
        "numerics": {name: numerics[name] for name in ("threads", "kernel")},
    }
    inputs = {**factor.inputs(), "factor": factor}
    if fold is not None:
        inputs["fold"] = fold
    n_tasks = committee["subsample"]["members"] if "subsample" in committee else 1
    return StageFolder.create(work, "committee", settings, inputs, n_tasks)


def run(folder: StageFolder, task: int) -> tuple[dict[str, Any], Json]:
    """Fit one member, or draw all of them: weights (n_members, n_columns)."""
    ((kind, spec),) = folder.settings["committee"].items()
    weights, facts = _MAKE[kind](folder, spec, task)
    return folder.write_part(task, {"weights": weights}), facts


def _drawn(folder: StageFolder, spec: Json, task: int) -> tuple[FloatArray, Json]:
    fit = open_factors(folder.input("factor")).fit
    assert fit.weights is not None
    assert fit.whole is not None
    return draw(fit.whole, fit.weights, spec["members"], spec["seed"], spec["scale"]), {}


def _fitted(folder: StageFolder, spec: Json, task: int) -> tuple[FloatArray, Json]:
    """Weights of one sub-sample, with the regularizer that the whole training set has."""
    chosen = chosen_of(folder.input("rows"), spec, task)
    facts = factor_facts(folder.input("factor"))
    model, mu = factor_model(folder, facts), float(facts["mu"])
    make = _of_rows if folder.settings["solver"] == "dual" else _of_fold
    n_structures = int(chosen.sum())
    weights = make(folder, model, mu, task, chosen)
    if weights is None:
        raise InputError(
            f"member {task} of the committee has {n_structures} of {len(chosen)} structures, and "
            f"none with a label of the loss. Raise committee.subsample.fraction from "
            f"{spec['fraction']:g}, take another seed, or give more structures."
        )
    return weights[None], {"n_structures": n_structures}


def _of_fold(
    folder: StageFolder, model: Model, mu: float, member: int, chosen: NDArray[np.bool_]
) -> FloatArray | None:
    fold = chosen_fold(folder, model, lambda own, _: own == member)
    n = model.layout.n_columns
    if not fold.matrix.any():
        return None
    if mu == 0.0 or folder.settings["solver"] == "eigh":
        n_rows = folder.input("factor").receipts()[-1].facts["n_rows"]
        return Decomposition.of_fold(fold, n, n_rows).weights(np.array([mu]))[:, 0]
    return solve_weights(fold, n, mu)


def _of_rows(
    folder: StageFolder, model: Model, mu: float, member: int, chosen: NDArray[np.bool_]
) -> FloatArray | None:
    rows = model_rows(folder, model, chosen)
    if not len(rows):
        return None
    decomposition = Decomposition.of_rows(rows[:, :-1], rows[:, -1], len(rows))
    return decomposition.weights(np.array([mu]))[:, 0]


_MAKE: dict[str, Callable[[StageFolder, Json, int], tuple[FloatArray, Json]]] = {
    "subsample": _fitted,
    "posterior": _drawn,
}


def open_members(folder: StageFolder) -> FloatArray:
    """Weights (n_members, n_columns) of a finished stage."""
    parts = [folder.read_part(task, ("weights",))["weights"] for task in range(folder.n_tasks)]
    members: FloatArray = np.concatenate(parts)
    return members


def describe_committee(folder: StageFolder) -> Json:
    """What a reader of a finished stage's variances should know."""
    ((kind, spec),) = folder.settings["committee"].items()
    about: Json = {
        "kind": kind,
        **spec,
        **OF_VARIANCE,
        "generator": GENERATOR,
    }
    if kind == "subsample":
        about["n_structures"] = [receipt.facts["n_structures"] for receipt in folder.receipts()]
        about["regularizer"] = "mu of the whole training set"
    return about
