"""Tiles of the Hessian's factor, where no worker holds the whole: one task a tile, in waves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from dlpr.core.factorize import refusal, storage_error
from dlpr.core.models import Model
from dlpr.core.rows import FloatArray
from dlpr.core.tilefactor import TiledFactor, tiled_conditioning
from dlpr.core.tiles import Tiling, diagonal_tile, off_tile
from dlpr.stages.fold import Weights, combined, tiling_of
from dlpr.stages.loss import factor_model, isolated_energies, regularizer_of, weights_of
from dlpr.stages.model import open_model
from dlpr.stages.sources import kinds_of, sources_of
from dlpr.store.files import Json
from dlpr.store.folder import StageFolder

Tile = tuple[int, int, int]
"""Order of elimination, and two places in it: a tile of that order's factor."""


def plan(
    work: Path, fold: StageFolder, inputs: Mapping[str, StageFolder], settings: Json
) -> StageFolder:
    """Factorize a Hessian that was folded in tiles, once for every block that is to come last.

    Parameters
    ----------
    fold : StageFolder
        A finished "hessian".
    inputs, settings
        As for `dlpr.stages.factor.plan`; ``solver`` is "cholesky", or "auto": if it is accurate
        enough.
    """
    rows = inputs["rows"]
    facts = regularizer_of(rows, settings["model"])
    model = open_model(rows, settings["model"], facts["constant"])
    tiling = _tiling(model, fold)
    layout = model.layout
    orders = [
        [tile for tile in tiling.ending_with(layout.slice(block)) if tiling.widths[tile]]
        for block in range(layout.n_blocks)
    ]
    settings = {
        "features": rows.settings["features"],
        "map": rows.settings["map"],
        **settings,
        "tile_columns": fold.settings["tile_columns"],
        "orders": orders,
        "numerics": {name: settings["numerics"][name] for name in ("threads", "kernel")},
    }
    settings["waves"] = _waves(settings)
    n_tasks = len(tiles(settings)) + 1
    return StageFolder.create(work, "cholesky", settings, {**inputs, "fold": fold}, n_tasks)


def _tiling(model: Model, fold: StageFolder) -> Tiling:
    """Tiles of the model's columns: those of the fold without what the model lacks."""
    edges = tiling_of(model, fold.settings).edges
    return Tiling(tuple(np.searchsorted(model.columns, edges).tolist()))


def tiles(settings: Json) -> list[Tile]:
    """The tile of every task but the last, which looks at the condition."""
    return [
        (number, i, j)
        for number, order in enumerate(settings["orders"])
        for i in range(len(order))
        for j in range(i, len(order))
    ]


def task_of(settings: Json, number: int, i: int, j: int) -> int:
    """Where `tiles` has a tile: all orders have as many."""
    n = len(settings["orders"][number])
    return number * n * (n + 1) // 2 + i * n - i * (i - 1) // 2 + j - i


def _waves(settings: Json) -> list[list[int]]:
    """Row by row the tile on the diagonal, then all beside it; last, the condition."""
    found: dict[tuple[int, bool], list[int]] = {}
    for task, (_, i, j) in enumerate(tiles(settings)):
        found.setdefault((i, i < j), []).append(task)
    return [*(found[key] for key in sorted(found)), [len(tiles(settings))]]


def run(folder: StageFolder, task: int) -> tuple[dict[str, Any], Json]:
    """One tile of the factor from tiles above it; or, last, how well all this could be done."""
    facts = regularizer_of(folder.input("rows"), folder.settings["model"])
    model = factor_model(folder, facts)
    if task == folder.n_tasks - 1:
        kinds = kinds_of(folder.settings["loss"])
        sources = sources_of(folder.inputs(), kinds).values()
        n_rows = sum(source.n_rows for source in sources)
        is_fitted = all(source.is_labelled for source in sources)
        whole = tiled_factor(folder, 0)
        found = tiled_conditioning(whole, n_rows, facts["mu"])
        error = storage_error(folder.settings["features"]["dtype"], found) + model.map.error
        stated = asdict(replace(found, accuracy=found.accuracy + error))
        refused = refusal(found) if folder.settings["solver"] == "auto" else None
        facts |= {"n_rows": n_rows, "refused": refused, "conditioning": stated}
        facts["is_fitted"] = is_fitted
        arrays = (
            {"weights": whole.solve(_target(folder, model)[:, None])[:, 0]} if is_fitted else {}
        )
        return folder.write_part(task, arrays), facts
    number, i, j = tiles(folder.settings)[task]
    order = folder.settings["orders"][number]
    tiling = _tiling(model, folder.input("fold"))
    first, second = sorted((order[i], order[j]))
    hessian = _hessian(folder, model, first, second)
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


def _hessian(folder: StageFolder, model: Model, i: int, j: int) -> FloatArray:
    """A tile of ``G^T G`` in the model's own columns."""
    fold = folder.input("fold")
    folded, own = tiling_of(model, fold.settings), _tiling(model, fold)
    weights = weights_of(folder.settings["loss"])
    whole = combined(fold, folded.pairs().index((i, j)), weights).matrix
    rows, columns = (model.columns[own.slice(k)] - folded.edges[k] for k in (i, j))
    scale = model.scale
    chosen: FloatArray = whole[np.ix_(rows, columns)]
    return np.asfortranarray(chosen * scale[own.slice(i), None] * scale[own.slice(j)])


def _target(folder: StageFolder, model: Model) -> FloatArray:
    """``G^T y`` (n_columns,) in the model's own columns, isolated atoms taken off."""
    fold, weights = folder.input("fold"), weights_of(folder.settings["loss"])
    target = _column(fold, model, model.folded.n_columns, weights)
    for column, energy in zip(model.constants.tolist(), isolated_energies(folder), strict=True):
        if energy:
            target -= energy * _column(fold, model, column, weights)
    return target[model.columns] * model.scale


def _column(fold: StageFolder, model: Model, number: int, weights: Weights) -> FloatArray:
    """One column of what was folded, from the tiles that hold it."""
    tiling = tiling_of(model, fold.settings)
    (tile,) = tiling.touched(slice(number, number + 1))
    at = number - tiling.edges[tile]
    column = np.empty(tiling.n_columns)
    for pair, (i, j) in enumerate(tiling.pairs()):
        if tile not in (i, j):
            continue
        matrix = combined(fold, pair, weights).matrix
        if j == tile:
            column[tiling.slice(i)] = matrix[:, at]
        if i == tile:  # of the tile on the diagonal, the upper triangle
            first = at + 1 if i == j else 0
            column[tiling.slice(j)][first:] = matrix[at, first:]
    return column


def _read(folder: StageFolder, number: int, i: int, j: int) -> FloatArray:
    """A tile of one order's factor, by places in the order."""
    task = task_of(folder.settings, number, i, j)
    tile: FloatArray = folder.read_part(task, ("tile",))["tile"]
    return tile


def tiled_factor(folder: StageFolder, number: int) -> TiledFactor:
    """The factor with one block of columns last."""
    facts = regularizer_of(folder.input("rows"), folder.settings["model"])
    order = tuple(folder.settings["orders"][number])
    place = {tile: at for at, tile in enumerate(order)}
    return TiledFactor(
        _tiling(factor_model(folder, facts), folder.input("fold")),
        lambda i, j: _read(folder, number, place[i], place[j]),
        order,
    )
