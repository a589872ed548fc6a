"""Rows fold into the Hessian, tile by tile, or into the triangle whose square it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlpr.core.folds import QR_PANEL, Gram, Triangle
from dlpr.core.models import Model, Targets, joined
from dlpr.core.rows import FloatArray, Layout, strips
from dlpr.core.tiles import Tiling, fold_tile
from dlpr.errors import ResourceError
from dlpr.stages.model import open_model
from dlpr.stages.reweight import Reweighing
from dlpr.stages.rows import Run
from dlpr.stages.sources import RowSource, chosen_of, off_diagonals_of, sources_of
from dlpr.store.files import Json
from dlpr.store.folder import StageFolder, digest
from dlpr.units import format_bytes

Weights = Callable[[str, str], float]
"""Weight of the targets of a kind and a group in the loss."""
Wanted = Callable[[int, str], bool]
"""Whether the partials of a member, or fold of a cross-validation, and a group are wanted."""
FOLDS: dict[str, type[Gram] | type[Triangle]] = {"hessian": Gram, "triangle": Triangle}
TASK_FLOPS = 4e10
"""Work N D^2 of one task: half a second of a core, some ten times what its files cost."""
FEWEST_ROWS = 6
"""Rows of a task at least, over the number of columns: a partial costs as much as one row each."""


def anything(member: int, group: str) -> bool:
    """Every partial is wanted."""
    return True


def plan(
    work: Path,
    stage: str,
    inputs: Mapping[str, StageFolder],
    kinds: list[str],
    model: Json,
    numerics: Json,
    subsample: Json | None = None,
    off_diagonals: str = "twice",
    reweight: Json | None = None,
) -> StageFolder:
    """Partials of a fold: tiles times runs of rows, their number bounded by a byte budget.

    Those of a committee are folded once for every member, from the rows of its structures; those of
    a cross-validation once for every one of its folds.

    Parameters
    ----------
    stage : str
        "hessian" or "triangle" (which is never cut into tiles).
    inputs : mapping of str to StageFolder
        As for `sources_of`; ``fit`` where rows are reweighted.
    kinds : list of str
        As for `sources_of`.
    model : dict
        ``rows`` and ``centre_species``.
    numerics : dict
        ``fold_block_rows``, ``partials_nbytes``, ``tile_columns``, ``threads``, ``kernel``.
    subsample : dict, optional
        ``members``, ``fraction`` and ``seed`` of a committee; ``members``, ``by`` and ``seed`` of
        a cross-validation.
    off_diagonals : {"twice", "once"}
        As for `sources_of`.
    reweight : dict, optional
        ``by`` and ``shapes`` of the losses that are not squared, see `dlpr.stages.reweight`.

    Raises
    ------
    ResourceError
        If one partial per group and member is more than the budget.
    """
    sources = sources_of(inputs, kinds, off_diagonals)
    rows = inputs["rows"]
    n_columns = open_model(rows, model).folded.n_columns + 1
    n_rows = sum(source.n_rows for source in sources.values())
    n_groups = sum(len(source.groups) for source in sources.values())
    settings = {
        "features": rows.settings["features"],
        "map": rows.settings["map"],
        "kinds": kinds,
        "model": model,
        "numerics": {
            **{name: numerics[name] for name in ("fold_block_rows", "threads", "kernel")},
            "qr_panel": QR_PANEL,
        },
        "tile_columns": numerics["tile_columns"] if stage == "hessian" else n_columns,
        "run_rows": run_rows(n_rows, n_groups, n_columns, numerics["partials_nbytes"], subsample),
    }
    if off_diagonals != "twice":
        settings["off_diagonals"] = off_diagonals
    same = {name: settings[name] for name in settings if name not in ("map", "kinds", "run_rows")}
    if subsample is not None:
        settings["subsample"] = subsample
    same["references"] = rows.plan["inputs"].get("references")
    of_kind: Json = dict.fromkeys(kinds, same)
    if reweight is not None:
        settings["reweight"] = reweight
        at = {"by": reweight["by"], "fit": inputs["fit"].output_digest()}
        of_kind |= {kind: {**same, **at, "shape": x} for kind, x in reweight["shapes"].items()}
    tasks = [
        {
            "settings": of_kind[kind],
            "tile": tile,
            "group": one.group,
            "kind": kind,
            "rows": sources[kind].contents(one),
            **({} if chosen is None else {"chosen": _places(chosen, sources[kind].members(one))}),
        }
        for chosen in _members(rows, settings)
        for kind, one in _runs(sources, settings)
        for tile in tiling_of(open_model(rows, model), settings).pairs()
    ]
    return StageFolder.create(work, stage, settings, inputs, tasks)


def _members(rows: StageFolder, settings: Json) -> Iterator[NDArray[np.bool_] | None]:
    """Structures whose rows are in the partials of each member; None: one that has all of them."""
    spec = settings.get("subsample")
    if spec is None:
        yield None
        return
    for member in range(spec["members"]):
        yield chosen_of(rows, spec, member)


def _places(chosen: NDArray[np.bool_], structures: NDArray[np.int64]) -> str:
    """Digest of which of some structures are chosen."""
    return digest(np.flatnonzero(chosen[structures]).tolist())


def _runs(sources: Mapping[str, RowSource], settings: Json) -> Iterator[tuple[str, Run]]:
    """All runs of rows, and the kind of their targets."""
    for kind, source in sources.items():
        for one in source.runs(settings["run_rows"]):
            yield kind, one


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


def run_rows(
    n_rows: int, n_groups: int, n_columns: int, budget: int, subsample: Json | None = None
) -> int:
    """Rows of a run: a few seconds of work a partial, and doubled until all fit the budget.

    Raises
    ------
    ResourceError
        If one partial per group, and member of a committee or fold of a cross-validation, is more
        than the budget.
    """
    n_members, whose, less, thinned = 1, "", "", 1
    if subsample is not None and "by" in subsample:  # each row is in one fold alone
        n_members = thinned = subsample["members"]
        whose, less = f" in {n_members} folds of the cross-validation", ", take fewer folds"
    elif subsample is not None:
        n_members = subsample["members"]
        whose, less = f" in {n_members} members of the committee", ", take fewer members"
    nbytes = 8 * n_columns**2 * n_members
    if n_groups * nbytes > budget and n_groups * n_members > 1:
        raise ResourceError(
            f"the Hessian has {n_columns} columns, so its {n_groups} groups{whose} need partials "
            f"of {format_bytes(nbytes * n_groups)} on disk; numerics.partials_budget allows "
            f"{format_bytes(budget)}. Raise it{less}, or group the training set more coarsely "
            f"(train.group_by)."
        )
    rows = thinned * max(FEWEST_ROWS * n_columns, int(TASK_FLOPS / n_columns**2))
    while rows < 2 * n_rows and (2 * n_rows / rows + n_groups) * nbytes > budget:
        rows *= 2
    return rows


def tiling_of(model: Model, settings: Json) -> Tiling:
    """Tiles of the columns that are folded, the target in the last of them: one where few."""
    return cut(model.folded, settings["tile_columns"])


def cut(folded: Layout, tile_columns: int) -> Tiling:
    """Tiles of a model's columns and of the target behind them."""
    if folded.n_columns + 1 <= tile_columns:
        return Tiling((0, folded.n_columns + 1))
    *first, last = folded.widths
    return Tiling.of_blocks((*first, last + 1), tile_columns)


def run(folder: StageFolder, task: int) -> tuple[dict[str, Any], Json]:
    """Fold one run of rows into a partial: of one tile, if there are several."""
    settings = folder.settings
    sources = sources_of(folder.inputs(), settings["kinds"], off_diagonals_of(settings))
    model = open_model(folder.input("rows"), settings["model"])
    tiling = tiling_of(model, settings)
    pairs = tiling.pairs()
    runs = list(_runs(sources, settings))
    member, at = divmod(task, len(runs) * len(pairs))
    (kind, one), (i, j) = runs[at // len(pairs)], pairs[at % len(pairs)]
    size = settings["numerics"]["fold_block_rows"]
    chosen = None
    if "subsample" in settings:
        chosen = chosen_of(folder.input("rows"), settings["subsample"], member)
    pieces = _gathered(sources[kind].targets(one, model.rows, chosen), size)
    reweighing = None
    if kind in settings.get("reweight", {}).get("shapes", ()):
        reweighing = Reweighing(folder, kind)
        pieces = (reweighing.of(model, piece) for piece in pieces)

    def columns(targets: Targets, tile: int) -> Iterator[FloatArray]:
        return strips(model.sides(targets), targets.scale, tiling.slice(tile), size)

    if i == j:
        fold = FOLDS[folder.stage].zeros(tiling.widths[i])
        for targets in pieces:
            for strip in columns(targets, i):
                fold.update(strip)
        matrix = fold.matrix
    else:
        matrix = np.zeros((tiling.widths[i], tiling.widths[j]), order="F")
        for targets in pieces:
            matrix = fold_tile(matrix, columns(targets, i), columns(targets, j))
    facts: Json = {"kind": kind, "group": one.group, "tile": [i, j]}
    if reweighing is not None:
        facts |= reweighing.facts
    return folder.write_part(task, {"matrix": matrix}), facts


def _gathered(pieces: Iterable[Targets], size: int) -> Iterable[Targets]:
    """Targets of a run: large pieces as they lie, small ones put together."""
    held: list[Targets] = []
    count = 0
    for piece in pieces:
        if len(piece.y) >= size:
            yield piece
            continue
        held.append(piece)
        count += len(piece.y)
        if count >= size:
            yield joined(held)
            held, count = [], 0
    if held:
        yield joined(held)


def combined(
    fold: StageFolder, tile: int, weights: Weights, wanted: Wanted = anything
) -> Gram | Triangle:
    """The partials of one tile, or those of them that are wanted, added in the plan's order with
    the weights of the loss."""
    model = open_model(fold.input("rows"), fold.settings["model"])
    tiling = tiling_of(model, fold.settings)
    n_tiles = len(tiling.pairs())
    kind = FOLDS[fold.stage]
    receipts = fold.receipts()
    n_own = fold.n_tasks // fold.settings.get("subsample", {"members": 1})["members"]
    total: Any = None
    for part in range(tile, fold.n_tasks, n_tiles):
        facts = receipts[part].facts
        if not wanted(part // n_own, facts["group"]):
            continue
        matrix = fold.read_part(part, ("matrix",))["matrix"]
        weight = weights(facts["kind"], facts["group"])
        if total is None:
            total = kind(np.array(matrix, order="F"))
            if weight != 1.0:
                total.matrix *= np.sqrt(weight) if kind is Triangle else weight
        else:
            total.add(kind(matrix), weight)
    found: Gram | Triangle = kind.zeros(tiling.widths[0]) if total is None else total
    return found


def all_rows(
    sources: Mapping[str, RowSource],
    model: Model,
    weights: Weights,
    isolated: FloatArray,
    chosen: NDArray[np.bool_] | None = None,
) -> FloatArray:
    """Every row of a loss and its target, (n_rows, n_columns + 1): where rows are few.

    ``isolated`` (n_species,) are energies of isolated atoms, taken off the targets; ``chosen``
    (n_structures,) says whose rows are wanted.
    """
    found = [np.empty((0, model.layout.n_columns + 1))]
    for kind, source in sources.items():
        for one in source.runs(1 << 62):
            factor = np.sqrt(weights(kind, one.group))
            for targets in source.targets(one, model.rows, chosen):
                sides = np.hstack(model.sides(targets))
                sides[:, -1] -= targets.count @ isolated
                sides *= (factor * targets.scale)[:, None]
                found.append(np.hstack([sides[:, model.columns] * model.scale, sides[:, -1:]]))
    return np.concatenate(found)
