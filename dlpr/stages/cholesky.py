"""Tiles of the Hessian's factor, where no worker holds the whole: one task a tile, in waves."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dlpr.core.factorize import refusal, storage_error
from dlpr.core.rows import FloatArray
from dlpr.core.tilefactor import TiledFactor, tiled_conditioning
from dlpr.core.tiles import diagonal_tile, off_tile
from dlpr.stages.fold import combined, cut
from dlpr.stages.model import open_model
from dlpr.stages.rows import regularizer_of
from dlpr.store.files import Json
from dlpr.store.folder import StageFolder

Tile = tuple[int, int, int]
"""Order of elimination, and two places in it: a tile of that order's factor."""


def plan(work: Path, fold: StageFolder, model: Json, solver: str, numerics: Json) -> StageFolder:
    """Factorize a Hessian that was folded in tiles, once for every block that is to come last.

    Parameters
    ----------
    fold : StageFolder
        A finished "hessian".
    model : dict
        The fold's model with ``regularizer`` and ``scale``.
    solver : str
        "cholesky", or "auto": if it is accurate enough.
    """
    layout = open_model(fold.settings["features"], model).layout
    tiling = cut(layout, fold.settings["tile_columns"])
    orders = [tiling.ending_with(layout.slice(block)) for block in range(layout.n_blocks)]
    settings = {
        "features": fold.settings["features"],
        "model": model,
        "solver": solver,
        "tile_columns": fold.settings["tile_columns"],
        "orders": orders,
        "numerics": {"threads": numerics["threads"], "kernel": numerics["kernel"]},
    }
    settings["waves"] = _waves(settings)
    inputs = {"fold": fold, "rows": fold.input("rows")}
    n_tasks = len(tiles(settings)) + 1
    return StageFolder.create(work, "cholesky", settings, inputs, n_tasks)


def tiles(settings: Json) -> list[Tile]:
    """The tile of every task but the last, which looks at the condition."""
    return [
        (number, i, j)
        for number, order in enumerate(settings["orders"])
        for i in range(len(order))
        for j in range(i, len(order))
    ]


def _waves(settings: Json) -> list[list[int]]:
    """Row by row the tile on the diagonal, then all beside it; last, the condition."""
    found: dict[tuple[int, bool], list[int]] = {}
    for task, (_, i, j) in enumerate(tiles(settings)):
        found.setdefault((i, i < j), []).append(task)
    return [*(found[key] for key in sorted(found)), [len(tiles(settings))]]


def run(folder: StageFolder, task: int) -> tuple[dict[str, Any], Json]:
    """One tile of the factor from tiles above it; or, last, how well all this could be done."""
    fold, rows = folder.input("fold"), folder.input("rows")
    facts = regularizer_of(rows, folder.settings["model"])
    if task == folder.n_tasks - 1:
        n_rows = sum(fold.receipt(part).facts.get("n_rows", 0) for part in _first_tiles(fold))  # type: ignore[union-attr]
        found = tiled_conditioning(tiled_factor(folder, 0), n_rows, facts["mu"])
        error = storage_error(folder.settings["features"]["dtype"], found)
        stated = asdict(replace(found, accuracy=found.accuracy + error))
        refused = refusal(found) if folder.settings["solver"] == "auto" else None
        facts |= {"n_rows": n_rows, "refused": refused, "conditioning": stated}
        return folder.write_part(task, {}), facts
    number, i, j = tiles(folder.settings)[task]
    order = folder.settings["orders"][number]
    tiling = cut(
        open_model(folder.settings["features"], folder.settings["model"]).layout,
        folder.settings["tile_columns"],
    )
    first, second = sorted((order[i], order[j]))
    hessian = combined(fold, tiling.pairs().index((first, second))).matrix
    if order[i] > order[j]:
        hessian = hessian.T

    def read(a: int, b: int) -> FloatArray:
        return _read(folder, number, a, b)

    if i == j:
        before = sum(tiling.widths[k] for k in order[:i])
        tile = diagonal_tile(hessian, (read(k, i) for k in range(i)), facts["mu"], before)
    else:
        tile = off_tile(hessian, read(i, i), ((read(k, i), read(k, j)) for k in range(i)))
    return folder.write_part(task, {"tile": tile}), {}


def _first_tiles(fold: StageFolder) -> range:
    """Tasks of a fold that have its first tile, one for each run of rows."""
    layout = open_model(fold.settings["features"], fold.settings["model"]).layout
    return range(0, fold.n_tasks, len(cut(layout, fold.settings["tile_columns"]).pairs()))


def _read(folder: StageFolder, number: int, i: int, j: int) -> FloatArray:
    """A tile of one order's factor, by places in the order."""
    task = tiles(folder.settings).index((number, i, j))
    tile: FloatArray = folder.read_part(task, ("tile",))["tile"]
    return tile


def tiled_factor(folder: StageFolder, number: int) -> TiledFactor:
    """The factor with one block of columns last."""
    layout = open_model(folder.settings["features"], folder.settings["model"]).layout
    order = tuple(folder.settings["orders"][number])
    place = {tile: at for at, tile in enumerate(order)}
    return TiledFactor(
        cut(layout, folder.settings["tile_columns"]),
        lambda i, j: _read(folder, number, place[i], place[j]),
        order,
    )
