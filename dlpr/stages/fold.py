"""Rows fold into the Hessian, or into the triangle whose square it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlpr.core.folds import QR_PANEL, Gram, Moments, Triangle
from dlpr.core.rows import Blocks, merge_blocks, row_factor
from dlpr.errors import ResourceError
from dlpr.stages.features import open_descriptor
from dlpr.stages.rows import RowStore, open_rows
from dlpr.store.files import Json
from dlpr.store.folder import StageFolder
from dlpr.units import format_bytes

FOLDS: dict[str, type[Gram] | type[Triangle]] = {"hessian": Gram, "triangle": Triangle}


def plan(work: Path, stage: str, rows: StageFolder, model: Json, numerics: Json) -> StageFolder:
    """Partials of a fold: their number is bounded by a byte budget, and none crosses a group.

    Parameters
    ----------
    stage : str
        "hessian" or "triangle" (whose partials, not being sums, may cross groups).
    model : dict
        ``rows`` and ``centre_species``.
    numerics : dict
        ``fold_block_rows``, ``partials_nbytes``, ``threads``, ``kernel``.

    Raises
    ------
    ResourceError
        If one partial per group is more than the budget.
    """
    store = open_rows(rows)
    layout = blocks_of(rows.settings["features"], model)
    nbytes = 8 * layout.n_columns**2
    most = max(1, numerics["partials_nbytes"] // nbytes)
    sizes = np.bincount(store.structures.group, minlength=len(store.structures.group_names))
    sizes = sizes[sizes > 0] if stage == "hessian" else np.array([store.structures.n_structures])
    if stage == "hessian" and len(sizes) > most:
        raise ResourceError(
            f"the Hessian has {layout.n_columns} columns, so its {len(sizes)} groups need partials "
            f"of {format_bytes(nbytes * len(sizes))} on disk; numerics.partials_budget allows "
            f"{format_bytes(numerics['partials_nbytes'])}. Raise it, or group the training set "
            f"more coarsely (train.group_by)."
        )
    edges = edges_of(sizes.tolist(), layout.n_columns, numerics)
    settings = {
        "features": rows.settings["features"],
        "model": model,
        "numerics": {
            **{name: numerics[name] for name in ("fold_block_rows", "threads", "kernel")},
            "qr_panel": QR_PANEL,
        },
        "edges": edges,
    }
    return StageFolder.create(work, stage, settings, {"rows": rows}, len(edges) - 1)


def edges_of(sizes: Sequence[int], n_columns: int, numerics: Json) -> list[int]:
    """Edges of the runs of rows that make a partial each: within groups, and within the budget."""
    most = max(len(sizes), numerics["partials_nbytes"] // (8 * n_columns**2))
    run_rows = max(8 * numerics["fold_block_rows"], 4 * n_columns)
    while sum(-(-size // run_rows) for size in sizes) > most:
        run_rows *= 2
    edges = [0]
    for size in sizes:
        stop = edges[-1] + size
        while edges[-1] < stop:
            edges.append(min(edges[-1] + run_rows, stop))
    return edges


def blocks_of(features: Json, model: Json) -> Blocks:
    """How the model's columns are laid out: a block per central species, or one for all."""
    calculator = open_descriptor(features["descriptor"])
    separate = model["centre_species"] == "separate"
    return Blocks(calculator.n_features, len(calculator.species) if separate else 1)


def run(folder: StageFolder, task: int) -> tuple[dict[str, Any], Json]:
    """Fold one run of structure rows into a partial."""
    settings = folder.settings
    store = open_rows(folder.input("rows"))
    start, stop = settings["edges"][task : task + 2]
    layout = blocks_of(settings["features"], settings["model"])
    fold = FOLDS[folder.stage].zeros(layout.n_columns)
    targets = _Targets(store, settings["model"]["rows"])
    moments = Moments.zeros(layout.n_columns, len(store.structures.species))
    for structure, rows in model_rows(store, settings, start, stop):
        fold.update(rows)
        moments.update_rows(rows, *targets.of(structure))
    arrays = {"matrix": fold.matrix, "targets": moments.targets, "products": moments.products}
    groups = np.unique(store.structures.group[store.order[start:stop]])
    facts = {
        "groups": [store.structures.group_names[number] for number in groups],
        "n_rows": moments.n_rows,
        "n_labelled": moments.n_labelled,
    }
    return folder.write_part(task, arrays), facts


def model_rows(store: RowStore, settings: Json, start: int, stop: int) -> Any:
    """Blocks ``(structure, rows)`` in the model's convention."""
    calculator = open_descriptor(settings["features"]["descriptor"])
    per_species = Blocks(calculator.n_features, len(calculator.species))
    shared = settings["model"]["centre_species"] == "shared"
    size = settings["numerics"]["fold_block_rows"]
    for structure, rows in store.blocks(start, stop, size):
        if shared:
            rows = merge_blocks(rows, per_species)
        factor = row_factor(store.n_atoms[structure], settings["model"]["rows"])
        yield structure, rows * factor[:, None]


class _Targets:
    """Energies and composition of structures, scaled as their rows are."""

    def __init__(self, store: RowStore, convention: str) -> None:
        self._store = store
        self._energy = store.structures.over_structures("energy")
        self._factor = row_factor(store.n_atoms, convention)

    def of(self, structure: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        factor = self._factor[structure]
        composition = self._store.structures.composition(structure)
        return self._energy[structure] * factor, composition * factor[:, None]
