"""The rigidity of every environment of one set, and of its structures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlpr.core.rows import Blocks, merge_blocks, row_factor, sum_rows
from dlpr.stages.factor import Factors, open_factors
from dlpr.stages.features import FeatureSource
from dlpr.stages.structures import open_structures
from dlpr.store.files import Json
from dlpr.store.folder import StageFolder

UNSEEN_CENTRE, UNSEEN_NEIGHBOUR = 1, 2
"""Bits of ``environment_unseen``: species that no training structure has."""


def plan(
    work: Path, structures: StageFolder, factor: StageFolder, features: Json, numerics: Json
) -> StageFolder:
    """Tasks of ``task_environments`` environments of one set."""
    store = open_structures(structures)
    training = open_structures(factor.input("rows").input("structures"))
    settings = {
        "features": features,
        "model": factor.settings["model"],
        "seen": list(training.species),
        "numerics": {name: numerics[name] for name in ("threads", "kernel")},
    }
    n_tasks = -(-store.n_environments // features["task_environments"])
    inputs = {"structures": structures, "factor": factor}
    return StageFolder.create(work, "rigidity", settings, inputs, n_tasks)


def prior_ratio(
    rigidity: NDArray[np.float64], square: NDArray[np.float64], mu: float
) -> NDArray[np.float64]:
    """``R / (mu / |g|^2)``: 1 where the data say nothing, large where they speak.

    A zero row counts as 1; with ``mu = 0`` the ratio is infinite wherever the data constrain.
    """
    ratio = np.ones_like(rigidity)
    told = (square > 0) & (rigidity > 0)
    if mu > 0:
        ratio[told] = rigidity[told] * square[told] / mu
    else:
        ratio[told] = np.inf
    return ratio


def run(folder: StageFolder, task: int) -> tuple[dict[str, Any], Json]:
    """Rigidities of one run of environments, block by block."""
    settings = folder.settings
    source = FeatureSource(folder.input("structures"), settings["features"])
    size = settings["features"]["task_environments"]
    start = task * size
    stop = min(start + size, source.structures.n_environments)
    environments = _Environments(source, open_factors(folder.input("factor")), settings)
    structures = _Structures(source, environments, start)
    found = []
    for a, b, features in source.blocks(start, stop):
        structures.add(a, b, features)
        found.append(environments.of(a, b, features))
    arrays = {name: np.concatenate([block[name] for block in found]) for name in found[0]}
    arrays |= structures.close(stop)
    return folder.write_part(task, arrays), {"n_environments": stop - start}


class _Environments:
    """LPR, prior ratio and unseen species of blocks of environments."""

    def __init__(self, source: FeatureSource, factors: Factors, settings: Json) -> None:
        self.source, self.factors = source, factors
        self.convention = settings["model"]["rows"]
        self.shared = settings["model"]["centre_species"] == "shared"
        known = source.descriptor.species
        self._unseen_block = np.array([z not in settings["seen"] for z in known])
        self._unseen_columns = np.zeros(source.descriptor.n_features, bool)
        for z in known:
            if z not in settings["seen"]:
                self._unseen_columns |= source.descriptor.columns_with(z)

    def of(self, start: int, stop: int, features: NDArray[np.float64]) -> dict[str, NDArray[Any]]:
        block = self.source.environment_block(start, stop)
        square = np.einsum("ij,ij->i", features, features)
        lpr = np.empty(stop - start)
        if self.shared:
            lpr[:] = self.factors.whole.rigidity(features)
        else:
            for number in np.unique(block):
                own = block == number
                rows = features if own.all() else features[own]
                lpr[own] = self.factors.blocks[number].rigidity(rows)
        unseen = np.where(self._unseen_block[block], UNSEEN_CENTRE, 0).astype(np.uint8)
        if self._unseen_columns.any():
            near = np.any(features[:, self._unseen_columns] != 0, axis=1)
            unseen[near] |= UNSEEN_NEIGHBOUR
        return {
            "environment_lpr": lpr,
            "environment_prior_ratio": prior_ratio(lpr, square, self.factors.mu),
            "environment_unseen": unseen,
        }


class _Structures:
    """PR of the structures that end in a task; what is left open goes to the result stage."""

    def __init__(self, source: FeatureSource, environments: _Environments, start: int) -> None:
        self._source, self._model = source, environments
        self._offset = source.structures.structure_offset
        self._blocks = Blocks(source.descriptor.n_features, len(source.descriptor.species))
        self._start = start
        self._open: tuple[int, NDArray[np.float64]] | None = None
        self._left: list[tuple[int, NDArray[np.float64]]] = []
        self._done: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []

    def add(self, start: int, stop: int, features: NDArray[np.float64]) -> None:
        structure = self._source.structures.structure_of(start, stop)
        first, n = int(structure[0]), int(structure[-1] - structure[0]) + 1
        block = self._source.environment_block(start, stop)
        rows = sum_rows(features, block, structure - first, n, self._blocks)
        if self._open is not None and self._open[0] == first:
            rows[0] = self._open[1] + rows[0]
        closed = self._offset[first + 1 : first + n + 1] <= stop
        whole = closed & (self._offset[first : first + n] >= self._start)
        for index in np.flatnonzero(closed & ~whole):
            self._left.append((first + int(index), rows[index].copy()))
        self._open = None if closed[-1] else (first + n - 1, rows[-1].copy())
        if whole.any():
            ids = first + np.flatnonzero(whole)
            self._done.append((ids, structure_rigidity(self._model, ids, rows[whole])))

    def close(self, stop: int) -> dict[str, NDArray[Any]]:
        if self._open is not None:
            self._left.append(self._open)
        width = self._blocks.n_columns
        return {
            "structure": np.concatenate([np.empty(0, np.int64), *(ids for ids, _ in self._done)]),
            "structure_pr": np.concatenate([np.empty(0), *(pr for _, pr in self._done)]),
            "open_structure": np.array([index for index, _ in self._left], np.int64),
            "open_row": np.array([row for _, row in self._left]).reshape(-1, width),
        }


def structure_rigidity(
    model: _Environments, structures: NDArray[np.int64], sums: NDArray[np.float64]
) -> NDArray[np.float64]:
    """PR of structures from their summed features, in the model's own convention."""
    source = model.source
    blocks = Blocks(source.descriptor.n_features, len(source.descriptor.species))
    rows = merge_blocks(sums, blocks) if model.shared else sums
    n_atoms = np.diff(source.structures.structure_offset)[structures]
    factor = row_factor(n_atoms, model.convention)
    return model.factors.whole.rigidity(rows * factor[:, None])


def finish_structures(folder: StageFolder) -> NDArray[np.float64]:
    """(n_structures,) PR of a finished stage, structures cut between tasks put together."""
    settings = folder.settings
    source = FeatureSource(folder.input("structures"), settings["features"])
    model = _Environments(source, open_factors(folder.input("factor")), settings)
    pr = np.empty(source.structures.n_structures)
    names = ("structure", "structure_pr", "open_structure", "open_row")
    size = settings["features"]["task_environments"]
    held: tuple[int, NDArray[np.float64]] | None = None
    for task in range(folder.n_tasks):
        part = folder.read_part(task, names)
        pr[part["structure"]] = part["structure_pr"]
        for index, row in zip(part["open_structure"], part["open_row"], strict=True):
            before = held[1] if held is not None and held[0] == index else 0.0
            held = (int(index), before + row)
            if source.structures.structure_offset[index + 1] <= (task + 1) * size:
                pr[index] = structure_rigidity(model, np.array([index]), held[1][None])[0]
    return pr
