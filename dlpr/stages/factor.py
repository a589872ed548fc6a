"""One factorization of the Hessian, kept on disk for the workers to read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlpr.core.decomposition import Decomposition, solve_weights
from dlpr.core.factor import HeldFactor
from dlpr.core.factorize import (
    Conditioning,
    factorize,
    factorize_automatically,
    factorize_decomposed,
    refusal,
    storage_error,
)
from dlpr.core.fit import Fit, load_fit
from dlpr.core.folds import Gram
from dlpr.core.models import Model
from dlpr.errors import NumericsError
from dlpr.stages.cholesky import tiled_factor
from dlpr.stages.fold import all_rows
from dlpr.stages.loss import (
    chosen_fold,
    factor_model,
    isolated_energies,
    regularizer_of,
    weights_of,
)
from dlpr.stages.sources import kinds_of, off_diagonals_of, sources_of
from dlpr.store.files import Json
from dlpr.store.folder import StageFolder


def plan(
    work: Path, of: StageFolder | None, inputs: Mapping[str, StageFolder], settings: Json
) -> StageFolder:
    """Factorize ``G^T G + mu 1``.

    Parameters
    ----------
    of : StageFolder, optional
        A finished "hessian" or "triangle"; none: the rows, where they are fewer than the columns.
    inputs : mapping of str to StageFolder
        See `dlpr.stages.sources`; ``fit`` where the loss is not squared.
    settings : dict
        ``model`` with ``regularizer``, ``scale`` and ``baseline``; ``loss``; ``solver``:
        "cholesky", "qr" (of a triangle), "eigh", "auto" (of a Hessian: cholesky if it is accurate
        enough; of a triangle: qr, or the basis of few directions), "dual" (of rows); ``numerics``.
    """
    numerics = settings["numerics"]
    rows = inputs["rows"]
    settings = {
        "features": rows.settings["features"],
        "map": rows.settings["map"],
        **settings,
        "numerics": {"threads": numerics["factor_threads"], "kernel": numerics["kernel"]},
    }
    if of is not None:
        inputs = {**inputs, "fold": of}
    return StageFolder.create(work, "factor", settings, inputs, 1)


def run(folder: StageFolder, task: int) -> tuple[dict[str, Any], Json]:
    """Combine the partials in the plan's order, factorize their sum, and fit the weights."""
    settings = folder.settings
    facts: Json = {**regularizer_of(folder.input("rows"), settings["model"]), "refused": None}
    sources = sources_of(folder.inputs(), kinds_of(settings["loss"])).values()
    facts["n_rows"] = sum(source.n_rows for source in sources)
    facts["is_fitted"] = all(source.is_labelled for source in sources)
    if "fit" in folder.plan["inputs"]:
        facts["fit"] = _convergence(folder)
    model = factor_model(folder, facts)
    is_first = settings["solver"] == "auto" and folder.input("fold").stage == "hessian"
    make = _of_rows if settings["solver"] == "dual" else _of_fold
    try:
        factor, conditioning, weights = make(folder, model, facts)
    except NumericsError as error:
        if not is_first:
            raise
        return folder.write_part(task, {}), {**facts, "refused": str(error)}
    rounding = storage_error(settings["features"]["dtype"], conditioning) + model.map.error
    stated = replace(conditioning, accuracy=conditioning.accuracy + rounding)
    facts["conditioning"] = asdict(stated)
    facts["refused"] = refusal(conditioning) if is_first else None
    if facts["refused"]:
        return folder.write_part(task, {}), facts
    told = weights if facts["is_fitted"] else None
    fit = Fit.of(model, facts["mu"], factor, told, isolated_energies(folder))
    return folder.write_part(task, fit.to_arrays()), facts


def _convergence(folder: StageFolder) -> Json:
    """How well a loss that is not squared was fitted, and what of it the Hessian sees."""
    (fit,) = folder.input("fit").receipts()
    found: Json = {name: fit.facts[name] for name in ("iteration", "left")}
    flat = [receipt.facts.get("n_flat", 0) for receipt in folder.input("fold").receipts()]
    return {**found, "n_flat": sum(flat)}


Made = tuple[HeldFactor, Conditioning, NDArray[np.float64]]
"""A factor, how well it could be made, and the weights that fit the targets."""


def model_rows(
    folder: StageFolder, model: Model, chosen: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """The model's rows and their target, as `all_rows`."""
    loss = folder.settings["loss"]
    sources = sources_of(folder.inputs(), kinds_of(loss), off_diagonals_of(loss))
    return all_rows(sources, model, weights_of(loss), isolated_energies(folder), chosen)


def _of_fold(folder: StageFolder, model: Model, facts: Json) -> Made:
    settings = folder.settings
    chosen = chosen_fold(folder, model)
    n = model.layout.n_columns
    data = type(chosen)(chosen.matrix[:n, :n])
    if settings["solver"] == "auto":
        widest = max(model.layout.widths)
        factor, conditioning = factorize_automatically(data, facts["mu"], facts["n_rows"], widest)
    else:
        factor, conditioning = factorize(data, facts["mu"], facts["n_rows"], settings["solver"])
    if "fit" in folder.plan["inputs"]:
        weights = folder.input("fit").read_part(0, ("weights",))["weights"]
    elif facts["mu"] == 0.0:
        weights = Decomposition.of_fold(chosen, n, facts["n_rows"]).weights(np.zeros(1))[:, 0]
    elif isinstance(chosen, Gram):
        weights = factor.solve(chosen.matrix[:n, n:])[:, 0]
    else:
        weights = solve_weights(chosen, n, facts["mu"])
    return factor, conditioning, weights


def _of_rows(folder: StageFolder, model: Model, facts: Json) -> Made:
    rows = model_rows(folder, model)
    found = Decomposition.of_rows(rows[:, :-1], rows[:, -1], len(rows))
    factor, conditioning = factorize_decomposed(found, facts["mu"])
    return factor, conditioning, found.weights(np.array([facts["mu"]]))[:, 0]


class Factors:
    """The factored Hessian, and the fit that it belongs to.

    Parameters
    ----------
    folder : StageFolder
        A finished "factor" or "cholesky".

    Attributes
    ----------
    facts : dict
        See `factor_facts`.
    is_tiled : bool
        Whether every use of a factor reads it from disk.
    fit : Fit
        All that decides what the model says of a row.
    """

    def __init__(self, folder: StageFolder) -> None:
        self.facts = factor_facts(folder)
        self.is_tiled = folder.stage == "cholesky"
        model, isolated = factor_model(folder, self.facts), isolated_energies(folder)
        arrays, mu = folder.read_part(folder.n_tasks - 1), float(self.facts["mu"])
        if not self.is_tiled:
            self.fit = load_fit(arrays, model, mu, isolated)
            return
        layout = model.layout
        by_block = [tiled_factor(folder, block) for block in range(layout.n_blocks)]
        blocks = tuple(f.block(layout.slice(b)) for b, f in enumerate(by_block))
        components = {
            name: tuple(
                factor.block(columns)
                for factor, columns in zip(by_block, model.component(name), strict=True)
            )
            for name, _, _ in model.map.components
        }
        weights = arrays.get("weights")
        self.fit = Fit(model, mu, by_block[-1], blocks, weights, isolated, components)


def factor_facts(folder: StageFolder) -> Json:
    """Regularizer, scale and conditioning of a finished factorization."""
    return folder.facts(folder.n_tasks - 1)


@lru_cache(maxsize=1)
def _open(path: str, digest: str) -> Factors:
    return Factors(StageFolder(Path(path)))


def open_factors(folder: StageFolder) -> Factors:
    """The factors of a finished stage, read once per process."""
    return _open(str(folder.path), folder.output_digest())
