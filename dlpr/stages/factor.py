"""One factorization of the Hessian, kept on disk for the workers to read."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from dlpr.core.factor import Factor, load_factor
from dlpr.core.factorize import TRIANGLE_ERROR, Conditioning, factorize, needs_qr
from dlpr.errors import InputError, NumericsError
from dlpr.stages.fold import FOLDS, blocks_of
from dlpr.stages.rows import open_rows
from dlpr.store.files import Json
from dlpr.store.folder import StageFolder


def plan(work: Path, fold: StageFolder, model: Json, solver: str, numerics: Json) -> StageFolder:
    """Factorize ``G^T G + mu 1`` of a finished fold.

    Parameters
    ----------
    fold : StageFolder
        "hessian" or "triangle".
    model : dict
        The fold's model with ``regularizer`` and ``scale``.
    solver : str
        "cholesky", "qr" (of a triangle), "eigh", or "auto": cholesky if it is accurate enough.
    """
    settings = {
        "features": fold.settings["features"],
        "model": model,
        "solver": solver,
        "numerics": {"threads": numerics["factor_threads"], "kernel": numerics["kernel"]},
    }
    inputs = {"fold": fold, "rows": fold.input("rows")}
    return StageFolder.create(work, "factor", settings, inputs, 1)


def run(folder: StageFolder, task: int) -> tuple[dict[str, Any], Json]:
    """Combine the partials in the plan's order and factorize their sum."""
    settings = folder.settings
    source, model = folder.input("fold"), settings["model"]
    layout = blocks_of(settings["features"], model)
    fold = FOLDS[source.stage].zeros(layout.n_columns)
    for part in range(source.n_tasks):
        matrix = source.read_part(part, ("matrix",))["matrix"]
        fold.add(FOLDS[source.stage](matrix))  # type: ignore[arg-type]
    n_rows = sum(receipt.facts["n_rows"] for receipt in source.receipts())
    scale_square = open_rows(folder.input("rows")).mean_square if model["scale"] == "rms" else 1.0
    if scale_square == 0.0:
        raise InputError("all features of the training set are 0: they have no scale")
    mu = model["regularizer"] * scale_square
    facts: Json = {"scale_square": scale_square, "mu": mu, "n_rows": n_rows, "refused": None}
    automatic = settings["solver"] == "auto"
    try:
        factor, conditioning = factorize(
            fold, mu, n_rows, "cholesky" if automatic else settings["solver"]
        )
    except NumericsError as error:
        if not automatic:
            raise
        return folder.write_part(task, {}), {**facts, "refused": str(error)}
    storage_error = _storage_error(settings["features"]["dtype"], conditioning)
    stated = replace(conditioning, accuracy=conditioning.accuracy + storage_error)
    facts["conditioning"] = asdict(stated)
    if automatic and needs_qr(conditioning):
        facts["refused"] = (
            f"Cholesky would leave a relative error of {conditioning.accuracy:.1e} "
            f"(condition of the Hessian {conditioning.condition:.1e})"
        )
        return folder.write_part(task, {}), facts
    arrays = {f"whole.{name}": value for name, value in factor.to_arrays().items()}
    if layout.n_blocks > 1:
        for block in range(layout.n_blocks):
            of_block = factor.block(layout.slice(block)).to_arrays()
            arrays |= {f"block{block}.{name}": value for name, value in of_block.items()}
    return folder.write_part(task, arrays), facts


def _storage_error(dtype: str, conditioning: Conditioning) -> float:
    """Relative error of R from features that were rounded on disk.

    Rounding moves G and the rows to predict by at most a part eps of their length: it acts as
    triangles of that precision would.
    """
    if dtype == "float64":
        return 0.0
    eps = float(np.finfo(dtype).eps)
    return TRIANGLE_ERROR * eps * float(np.sqrt(conditioning.condition))


class Factors:
    """The factored Hessian: whole, and of each block of columns.

    Attributes
    ----------
    whole : Factor
        For rows of structures.
    blocks : tuple of Factor
        For rows that live in one block: ``(H^-1)_bb``.
    """

    def __init__(self, folder: StageFolder) -> None:
        layout = blocks_of(folder.settings["features"], folder.settings["model"])
        arrays = folder.read_part(0)
        self.facts = folder.receipts()[0].facts
        self.mu = float(self.facts["mu"])
        self.whole: Factor = _pick(arrays, "whole")
        self.blocks: tuple[Factor, ...] = (self.whole,)
        if layout.n_blocks > 1:
            self.blocks = tuple(_pick(arrays, f"block{b}") for b in range(layout.n_blocks))


def _pick(arrays: dict[str, Any], prefix: str) -> Factor:
    head = f"{prefix}."
    return load_factor({k.removeprefix(head): v for k, v in arrays.items() if k.startswith(head)})


@lru_cache(maxsize=1)
def _open(path: str, digest: str) -> Factors:
    return Factors(StageFolder(Path(path)))


def open_factors(folder: StageFolder) -> Factors:
    """The factors of a finished stage, read once per process."""
    return _open(str(folder.path), folder.output_digest())
