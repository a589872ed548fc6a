"""One factorization of the Hessian, kept on disk for the workers to read."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from dlpr.core.factor import Factor, load_factor
from dlpr.core.factorize import factorize, factorize_rows, refusal, storage_error
from dlpr.errors import NumericsError
from dlpr.stages.cholesky import tiled_factor
from dlpr.stages.fold import all_rows, combined
from dlpr.stages.model import open_model
from dlpr.stages.rows import open_rows, regularizer_of
from dlpr.store.files import Json
from dlpr.store.folder import StageFolder


def plan(work: Path, of: StageFolder, model: Json, solver: str, numerics: Json) -> StageFolder:
    """Factorize ``G^T G + mu 1``.

    Parameters
    ----------
    of : StageFolder
        A finished "hessian" or "triangle"; or "rows", where they are fewer than the columns.
    model : dict
        The fold's model with ``regularizer`` and ``scale``.
    solver : str
        "cholesky", "qr" (of a triangle), "eigh", "auto": cholesky if it is accurate enough; "dual"
        of rows.
    """
    settings = {
        "features": of.settings["features"],
        "model": model,
        "solver": solver,
        "numerics": {"threads": numerics["factor_threads"], "kernel": numerics["kernel"]},
    }
    inputs = {"rows": of} if solver == "dual" else {"fold": of, "rows": of.input("rows")}
    return StageFolder.create(work, "factor", settings, inputs, 1)


def run(folder: StageFolder, task: int) -> tuple[dict[str, Any], Json]:
    """Combine the partials in the plan's order and factorize their sum."""
    settings = folder.settings
    rows = folder.input("rows")
    layout = open_model(settings["features"], settings["model"]).layout
    facts: Json = {**regularizer_of(rows, settings["model"]), "refused": None}
    automatic = settings["solver"] == "auto"
    factor: Factor
    try:
        if settings["solver"] == "dual":
            facts["n_rows"] = open_rows(rows).structures.n_structures
            every = all_rows(rows, open_model(settings["features"], settings["model"]))
            factor, conditioning = factorize_rows(every, facts["mu"])
        else:
            source = folder.input("fold")
            fold = combined(source, 0)
            facts["n_rows"] = sum(receipt.facts["n_rows"] for receipt in source.receipts())
            solver = "cholesky" if automatic else settings["solver"]
            factor, conditioning = factorize(fold, facts["mu"], facts["n_rows"], solver)
    except NumericsError as error:
        if not automatic:
            raise
        return folder.write_part(task, {}), {**facts, "refused": str(error)}
    rounding = storage_error(settings["features"]["dtype"], conditioning)
    stated = replace(conditioning, accuracy=conditioning.accuracy + rounding)
    facts["conditioning"] = asdict(stated)
    facts["refused"] = refusal(conditioning) if automatic else None
    if facts["refused"]:
        return folder.write_part(task, {}), facts
    arrays = {f"whole.{name}": value for name, value in factor.to_arrays().items()}
    if layout.n_blocks > 1:
        for block in range(layout.n_blocks):
            of_block = factor.block(layout.slice(block)).to_arrays()
            arrays |= {f"block{block}.{name}": value for name, value in of_block.items()}
    return folder.write_part(task, arrays), facts


class Factors:
    """The factored Hessian: whole, and of each block of columns.

    Parameters
    ----------
    folder : StageFolder
        A finished "factor" or "cholesky".

    Attributes
    ----------
    whole : Factor
        For rows of structures.
    blocks : tuple of Factor
        For rows that live in one block: ``(H^-1)_bb``.
    is_tiled : bool
        Whether every use of a factor reads it from disk.
    """

    def __init__(self, folder: StageFolder) -> None:
        layout = open_model(folder.settings["features"], folder.settings["model"]).layout
        self.facts = factor_facts(folder)
        self.mu = float(self.facts["mu"])
        self.is_tiled = folder.stage == "cholesky"
        self.whole: Factor
        self.blocks: tuple[Factor, ...]
        if self.is_tiled:
            by_block = [tiled_factor(folder, block) for block in range(layout.n_blocks)]
            self.whole = by_block[-1]
            self.blocks = tuple(f.block(layout.slice(b)) for b, f in enumerate(by_block))
        else:
            arrays = folder.read_part(0)
            self.whole = _pick(arrays, "whole")
            self.blocks = (self.whole,)
            if layout.n_blocks > 1:
                self.blocks = tuple(_pick(arrays, f"block{b}") for b in range(layout.n_blocks))


def factor_facts(folder: StageFolder) -> Json:
    """Regularizer, scale and conditioning of a finished factorization."""
    return folder.receipts()[-1].facts


def _pick(arrays: dict[str, Any], prefix: str) -> Factor:
    head = f"{prefix}."
    return load_factor({k.removeprefix(head): v for k, v in arrays.items() if k.startswith(head)})


@lru_cache(maxsize=1)
def _open(path: str, digest: str) -> Factors:
    return Factors(StageFolder(Path(path)))


def open_factors(folder: StageFolder) -> Factors:
    """The factors of a finished stage, read once per process."""
    return _open(str(folder.path), folder.output_digest())
