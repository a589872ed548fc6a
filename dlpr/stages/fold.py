"""Rows fold into the Hessian, tile by tile, or into the triangle whose square it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlpr.core.folds import QR_PANEL, Gram, Moments, Triangle
from dlpr.core.models import Model
from dlpr.core.rows import Layout, strips
from dlpr.core.tiles import Tiling, fold_tile
from dlpr.errors import ResourceError
from dlpr.stages.model import open_model
from dlpr.stages.rows import RowStore, Run, open_rows
from dlpr.store.files import Json
from dlpr.store.folder import StageFolder
from dlpr.units import format_bytes

FOLDS: dict[str, type[Gram] | type[Triangle]] = {"hessian": Gram, "triangle": Triangle}
TASK_FLOPS = 1e10
"""Work N D^2 of one task: a fifth of a second of a core, so that workers share it evenly."""
FEWEST_ROWS = 3
"""Rows of a task at least, over the number of columns: a partial costs as much as one row each."""


def plan(work: Path, stage: str, rows: StageFolder, model: Json, numerics: Json) -> StageFolder:
    """Partials of a fold: tiles times runs of rows, their number bounded by a byte budget.

    Parameters
    ----------
    stage : str
        "hessian" or "triangle" (which is never cut into tiles).
    model : dict
        ``kind``, ``rows`` and ``centre_species``.
    numerics : dict
        ``fold_block_rows``, ``partials_nbytes``, ``tile_columns``, ``threads``, ``kernel``.

    Raises
    ------
    ResourceError
        If one partial per group is more than the budget.
    """
    store = open_rows(rows)
    layout = open_model(rows.settings["features"], model).layout
    settings = {
        "features": rows.settings["features"],
        "model": model,
        "numerics": {
            **{name: numerics[name] for name in ("fold_block_rows", "threads", "kernel")},
            "qr_panel": QR_PANEL,
        },
        "tile_columns": numerics["tile_columns"] if stage == "hessian" else layout.n_columns,
        "run_rows": run_rows(
            store.structures.n_structures,
            len(store.groups),
            layout.n_columns,
            numerics["partials_nbytes"],
        ),
    }
    same = {name: settings[name] for name in ("features", "model", "numerics", "tile_columns")}
    tasks = [
        {"settings": same, "tile": tile, "group": one.group, "rows": store.contents(one)}
        for one in store.runs(settings["run_rows"])
        for tile in tiling_of(settings).pairs()
    ]
    return StageFolder.create(work, stage, settings, {"rows": rows}, tasks)


def form_of(solver: str, regularizer: float, n_rows: int, n_columns: int, tile_columns: int) -> str:
    """What a factor is made of: "rows", the "whole" Hessian, or "tiles" of it.

    From r rows a rigidity costs about 2 r D, from the Hessian D^2; the rows must also fit where
    four tiles would. Tiles know Cholesky alone.
    """
    few = 2 * n_rows <= n_columns and n_rows * n_columns <= 4 * tile_columns**2
    if solver == "dual" or (solver == "auto" and few):
        return "rows"
    if solver in ("auto", "cholesky") and regularizer > 0.0 and n_columns > tile_columns:
        return "tiles"
    return "whole"


def run_rows(n_rows: int, n_groups: int, n_columns: int, budget: int) -> int:
    """Rows of a partial: a few seconds of work, and doubled until all fit the budget.

    Raises
    ------
    ResourceError
        If one partial per group is more than the budget.
    """
    nbytes = 8 * n_columns**2
    if n_groups * nbytes > budget and n_groups > 1:
        raise ResourceError(
            f"the Hessian has {n_columns} columns, so its {n_groups} groups need partials of "
            f"{format_bytes(nbytes * n_groups)} on disk; numerics.partials_budget allows "
            f"{format_bytes(budget)}. Raise it, or group the training set more coarsely "
            f"(train.group_by)."
        )
    rows = max(FEWEST_ROWS * n_columns, int(TASK_FLOPS / n_columns**2))
    while rows < n_rows and (2 * n_rows / rows + n_groups) * nbytes > budget:
        rows *= 2
    return rows


def tiling_of(settings: Json) -> Tiling:
    """Tiles of the model's columns: one where they are few."""
    return cut(open_model(settings["features"], settings["model"]).layout, settings["tile_columns"])


def cut(layout: Layout, tile_columns: int) -> Tiling:
    """Tiles of a layout of columns."""
    if layout.n_columns <= tile_columns:
        return Tiling((0, layout.n_columns))
    return Tiling.of_blocks(layout.widths, tile_columns)


def run(folder: StageFolder, task: int) -> tuple[dict[str, Any], Json]:
    """Fold one run of structure rows into a partial: of one tile, if there are several."""
    settings = folder.settings
    store = open_rows(folder.input("rows"))
    tiling = tiling_of(settings)
    pairs = tiling.pairs()
    one, (i, j) = store.runs(settings["run_rows"])[task // len(pairs)], pairs[task % len(pairs)]
    model = open_model(settings["features"], settings["model"])
    n_species = model.sums.n_blocks
    size = settings["numerics"]["fold_block_rows"]
    facts: Json = {"group": one.group, "tile": [i, j]}
    if i < j:
        matrix = np.zeros((tiling.widths[i], tiling.widths[j]), order="F")
        for sums, count, _ in _gathered(store, one, size):
            n_atoms = count.sum(axis=1)
            left, scale = model.structures(sums, n_atoms, tiling.slice(i))
            right, _ = model.structures(sums, n_atoms, tiling.slice(j))
            matrix = fold_tile(matrix, left, right, scale)
        return folder.write_part(task, {"matrix": matrix}), facts
    fold = FOLDS[folder.stage].zeros(tiling.widths[i])
    moments = Moments.zeros(tiling.widths[i], n_species)
    for sums, count, energy in _gathered(store, one, size):
        rows, scale = model.structures(sums, count.sum(axis=1), tiling.slice(i))
        start = 0
        for strip in strips(rows, scale, size):
            stop = start + len(strip)
            fold.update(strip)
            factor = scale[start:stop]
            moments.update_rows(
                strip, energy[start:stop] * factor, count[start:stop] * factor[:, None]
            )
            start = stop
    arrays = {"matrix": fold.matrix, "targets": moments.targets, "products": moments.products}
    facts |= {"n_rows": moments.n_rows, "n_labelled": moments.n_labelled}
    return folder.write_part(task, arrays), facts


Block = tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]


def _gathered(store: RowStore, one: Run, size: int) -> Iterator[Block]:
    """Sums, atoms and energies of a run: large pieces as they lie, small ones put together."""
    held: list[Block] = []
    count = 0
    for found in store.read(one):
        piece = found.sums, found.count, found.energy
        if len(found) >= size:
            yield piece
            continue
        held.append(piece)
        count += len(found)
        if count >= size:
            yield _joined(held)
            held, count = [], 0
    if held:
        yield _joined(held)


def _joined(held: list[Block]) -> Block:
    sums, count, energy = zip(*held, strict=True)
    return np.concatenate(sums), np.concatenate(count), np.concatenate(energy)


def combined(fold: StageFolder, tile: int) -> Gram | Triangle:
    """The partials of one tile, added in the plan's order."""
    n_tiles = len(tiling_of(fold.settings).pairs())
    kind = FOLDS[fold.stage]
    total: Any = None
    for part in range(tile, fold.n_tasks, n_tiles):
        matrix = fold.read_part(part, ("matrix",))["matrix"]
        if total is None:
            total = kind(matrix.copy(order="F"))
        else:
            total.add(kind(matrix))
    found: Gram | Triangle = total
    return found


def all_rows(rows: StageFolder, model: Model) -> NDArray[np.float64]:
    """Every row of the model, (n_structures, n_columns), where they are fewer than the columns."""
    store = open_rows(rows)
    found = np.empty((store.structures.n_structures, model.layout.n_columns))
    stop = 0
    for one in store.runs(1 << 62):
        for piece in store.read(one):
            start, stop = stop, stop + len(piece)
            values, scale = model.structures(piece.sums, piece.count.sum(axis=1))
            np.multiply(values, scale[:, None], out=found[start:stop])
    return found
