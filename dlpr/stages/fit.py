"""One fit of a loss that is not squared: a step of iteratively reweighted least squares."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dlpr.core.decomposition import Decomposition, solve_weights
from dlpr.core.factorize import factorize, refusal
from dlpr.core.folds import Gram, Triangle
from dlpr.core.losses import extrapolated, left_to_go
from dlpr.core.rows import FloatArray
from dlpr.errors import NumericsError
from dlpr.stages.loss import (
    chosen_fold,
    factor_model,
    isolated_energies,
    regularizer_of,
    weights_of,
)
from dlpr.stages.sources import kinds_of, sources_of
from dlpr.store.files import Json
from dlpr.store.folder import StageFolder


def plan(
    work: Path,
    fold: StageFolder,
    inputs: Mapping[str, StageFolder],
    settings: Json,
    before: StageFolder | None = None,
) -> StageFolder:
    """Fit the rows of a fold.

    Parameters
    ----------
    fold : StageFolder
        A finished "hessian" or "triangle".
    inputs, settings
        As for `dlpr.stages.factor.plan`; ``solver``: "auto" also asks whether the fold is good
        enough.
    before : StageFolder, optional
        The fit at which the rows were weighed; none: they are those of squared losses.
    """
    rows = inputs["rows"]
    numerics = settings["numerics"]
    loss = {k: v for k, v in settings["loss"].items() if k not in ("tolerance", "iterations")}
    settings = {
        "features": rows.settings["features"],
        "map": rows.settings["map"],
        **settings,
        "loss": loss,
        "numerics": {"threads": numerics["factor_threads"], "kernel": numerics["kernel"]},
    }
    inputs = {**inputs, "fold": fold}
    if before is not None:
        inputs["fit"] = before
    return StageFolder.create(work, "fit", settings, inputs, 1)


def run(folder: StageFolder, task: int) -> tuple[dict[str, Any], Json]:
    """Solve for the weights, and say how far they are from those before."""
    settings = folder.settings
    facts = regularizer_of(folder.input("rows"), settings["model"])
    model, mu = factor_model(folder, facts), facts["mu"]
    fold = chosen_fold(folder, model)
    n = model.layout.n_columns
    inputs = folder.inputs()
    sources = sources_of(inputs, kinds_of(settings["loss"])).values()
    facts |= {"refused": None, "iteration": 0, "changes": [], "left": None}
    n_rows = sum(source.n_rows for source in sources)
    try:
        if settings["solver"] == "auto":
            data = type(fold)(fold.matrix[:n, :n])
            facts["refused"] = refusal(factorize(data, mu, n_rows, "cholesky")[1])
        weights = _fitted(fold, n, mu, n_rows)
    except NumericsError as error:
        if settings["solver"] != "auto":
            raise
        facts["refused"] = str(error)
    if facts["refused"]:
        return folder.write_part(task, {}), facts
    arrays = {"step": np.zeros(n)}
    if "fit" in inputs:
        before, told = inputs["fit"].read_part(0), inputs["fit"].receipts()[0].facts
        arrays["step"] = step = weights - before["weights"]

        def product(a: FloatArray, b: FloatArray) -> float:
            return _product(fold, mu, a, b)

        changes = [*told["changes"], _change(product(step, step), _square(folder))]
        left = left_to_go(changes)
        facts |= {"iteration": told["iteration"] + 1, "change": changes[-1], "changes": changes}
        facts["left"] = left if np.isfinite(left) else None
        if len(changes) == 2:  # the next two steps begin from where these two lead
            weights = extrapolated(weights, before["step"], step, product)
            facts["changes"] = []
    folded = np.zeros(model.folded.n_columns + 1)
    folded[model.columns] = weights * model.scale
    folded[model.constants] += isolated_energies(folder)
    folded[-1] = -1.0
    arrays |= {"weights": weights, "folded": folded}
    return folder.write_part(task, arrays), facts


def _fitted(fold: Gram | Triangle, n: int, mu: float, n_rows: int) -> FloatArray:
    if mu > 0.0:
        return solve_weights(fold, n, mu)
    return Decomposition.of_fold(fold, n, n_rows).weights(np.zeros(1))[:, 0]


def _square(folder: StageFolder) -> float:
    """``sum lambda l'(r) r`` over the rows whose loss is not squared, at the fit before."""
    weight = weights_of(folder.settings["loss"])
    facts = [receipt.facts for receipt in folder.input("fold").receipts()]
    found = [weight(f["kind"], f["group"]) * f["square"] for f in facts if "square" in f]
    return float(sum(found))


def _product(fold: Gram | Triangle, mu: float, a: FloatArray, b: FloatArray) -> float:
    """``a^T H b`` with the weights of a fit."""
    data = fold.matrix[: len(a), : len(a)]
    if isinstance(fold, Gram):
        upper = np.triu(data)
        found = a @ (upper @ b) + b @ (upper @ a) - a @ (np.diagonal(data) * b)
    else:
        upper = np.triu(data)
        found = (upper @ a) @ (upper @ b)
    return float(found + mu * (a @ b))


def _change(square: float, left: float) -> float:
    """Root of ``step^T H step``, by which the loss falls, over what was left of the loss."""
    if square <= 0.0:
        return 0.0
    return float(np.sqrt(square / left)) if left > 0.0 else float(np.finfo(float).max)
