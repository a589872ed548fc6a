"""The rigidity of every environment of one set, and of its structures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlpr.core.fit import UNLIKE, UNSEEN_CENTRE, UNSEEN_NEIGHBOUR, Mapped
from dlpr.core.projection import N_PROJECTIONS, project
from dlpr.core.rows import FloatArray
from dlpr.stages.committee import open_members
from dlpr.stages.factor import Factors, open_factors
from dlpr.stages.features import ROWS_NBYTES, FeatureSource, task_keys
from dlpr.stages.structures import open_structures
from dlpr.store.files import Json
from dlpr.store.folder import StageFolder

TILED_ROWS = 1024
"""Rows for which a factor is read from disk at a time."""
PROJECTION = "structure_projection"
COMMITTEE, STRUCTURE_COMMITTEE = "environment_committee_variance", "structure_committee_variance"
ARRAYS: dict[str, type[np.generic]] = {
    "environment_lpr": np.float64,
    "environment_prior_ratio": np.float64,
    "environment_unseen": np.uint8,
    "environment_residual": np.float64,
    "environment_energy": np.float64,
    COMMITTEE: np.float64,
}
"""What is said of every environment: residuals where the feature map leaves some, energies where
the training set has them, a committee's variance where the job has one."""


def arrays_of(folder: StageFolder) -> dict[str, type[np.generic]]:
    """What a finished stage says of every environment: of parts of the features, their LCPR."""
    found = folder.facts(0)["arrays"]
    return {name: ARRAYS.get(name, np.float64) for name in found}


def plan(
    work: Path,
    structures: StageFolder,
    factor: StageFolder,
    features: Json,
    numerics: Json,
    committee: StageFolder | None = None,
) -> StageFolder:
    """Tasks of ``task_environments`` environments of one set."""
    model = factor.settings["model"]
    training = open_structures(factor.input("rows").input("structures"))
    settings = {
        "features": features,
        "model": {name: model[name] for name in ("rows", "centre_species", "baseline")},
        "seen": list(training.species),
        "numerics": {name: numerics[name] for name in ("threads", "kernel")},
    }
    used = {"factor": factor} if committee is None else {"factor": factor, "committee": committee}
    made_of = {name: folder.output_digest() for name, folder in used.items()}
    tasks = task_keys(structures, features, {**settings, **made_of})
    inputs = {"structures": structures, **used}
    return StageFolder.create(work, "rigidity", settings, inputs, tasks)


def run(folder: StageFolder, task: int) -> tuple[dict[str, Any], Json]:
    """Rigidities of one run of environments, block by block."""
    source = FeatureSource(folder.input("structures"), folder.settings["features"])
    start, stop = source.edges[task : task + 2].tolist()
    environments = _Environments(folder, source)
    structures = _Structures(environments, start)
    found = []
    blocks = source.blocks(task)
    for a, b, features in _joined(blocks) if environments.factors.is_tiled else blocks:
        mapped = environments.mapped(a, b, features)
        structures.add(a, b, mapped)
        found.append(environments.of(a, b, features, mapped))
    arrays = {name: np.concatenate([block[name] for block in found]) for name in found[0]}
    arrays |= structures.close(stop)
    facts = {"n_environments": stop - start, "arrays": list(found[0])}
    return folder.write_part(task, arrays), facts


Block = tuple[int, int, FloatArray]


def _joined(blocks: Iterator[Block]) -> Iterator[Block]:
    """Blocks of at least `TILED_ROWS` rows, but for the last."""
    held: list[Block] = []
    for block in blocks:
        held.append(block)
        if block[1] - held[0][0] >= TILED_ROWS:
            yield held[0][0], block[1], np.concatenate([rows for _, _, rows in held])
            held = []
    if held:
        yield held[0][0], held[-1][1], np.concatenate([rows for _, _, rows in held])


class _Environments:
    """LPR, prior ratio and unseen species of blocks of environments."""

    def __init__(self, folder: StageFolder, source: FeatureSource) -> None:
        settings = folder.settings
        self.source = source
        self.factors: Factors = open_factors(folder.input("factor"))
        self.fit = self.factors.fit
        self.model = self.fit.model
        if "committee" in folder.plan["inputs"]:
            self.fit = replace(self.fit, members=open_members(folder.input("committee")))
        known = source.descriptor.species
        self._unseen_block = np.array([z not in settings["seen"] for z in known])
        self._unseen_columns = np.zeros(source.descriptor.n_features, bool)
        for z in known:
            if z not in settings["seen"]:
                self._unseen_columns |= source.descriptor.columns_with(z)

    def mapped(self, start: int, stop: int, features: FloatArray) -> Mapped:
        """The rows of environments before they get the model's further columns."""
        return list(self.model.mapped(features, self.source.environment_species(start, stop)))

    def of(
        self, start: int, stop: int, features: FloatArray, mapped: Mapped
    ) -> dict[str, NDArray[Any]]:
        species = self.source.environment_species(start, stop)
        found = self.fit.environments(features, species, mapped)
        unseen = np.where(self._unseen_block[species], UNSEEN_CENTRE, 0).astype(np.uint8)
        if self._unseen_columns.any():
            near = np.any(features[:, self._unseen_columns] != 0, axis=1)
            unseen[near] |= UNSEEN_NEIGHBOUR
        unseen[found.unlike] |= UNLIKE
        arrays: dict[str, NDArray[Any]] = {
            "environment_lpr": found.lpr,
            "environment_prior_ratio": found.prior_ratio,
            "environment_unseen": unseen,
        }
        arrays |= {f"environment_lpr_{name}": lcpr for name, lcpr in found.components.items()}
        if found.residual is not None:
            arrays["environment_residual"] = found.residual
        if found.energy is not None:
            arrays["environment_energy"] = found.energy
        if found.committee_variance is not None:
            arrays[COMMITTEE] = found.committee_variance
        return arrays


class _Structures:
    """PR of the structures that end in a task; what is left open goes to the result stage."""

    def __init__(self, environments: _Environments, start: int) -> None:
        self._environments, self._source = environments, environments.source
        self._offset = self._source.structures.structure_offset
        self._start = start
        self._first = int(self._source.structures.structure_of(start, start + 1)[0])
        self._open: tuple[int, NDArray[np.float64]] | None = None
        self._left: list[tuple[int, NDArray[np.float64]]] = []
        self._done: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []

    def add(self, start: int, stop: int, mapped: Mapped) -> None:
        structure = self._source.structures.structure_of(start, stop)
        first, n = int(structure[0]), int(structure[-1] - structure[0]) + 1
        rows = np.zeros((n, self._environments.model.stored.n_columns))
        self._environments.model.add_sums(rows, mapped, structure - first)
        if self._open is not None and self._open[0] == first:
            rows[0] = self._open[1] + rows[0]
        closed = self._offset[first + 1 : first + n + 1] <= stop
        whole = closed & (self._offset[first : first + n] >= self._start)
        for index in np.flatnonzero(closed & ~whole):
            self._left.append((first + int(index), rows[index].copy()))
        self._open = None if closed[-1] else (first + n - 1, rows[-1].copy())
        if whole.any():
            ids = first + np.flatnonzero(whole)
            self._done.append((ids, rows[whole]))

    def close(self, stop: int) -> dict[str, NDArray[Any]]:
        if self._open is not None:
            self._left.append(self._open)
        width = self._environments.model.stored.n_columns
        done = np.concatenate([np.empty(0, np.int64), *(ids for ids, _ in self._done)])
        sums = np.concatenate([np.empty((0, width)), *(rows for _, rows in self._done)])
        left = np.array([index for index, _ in self._left], np.int64)
        return {
            "structure": done - self._first,
            **structure_arrays(self._environments, done, sums),
            "open_structure": left - self._first,
            "open_row": np.array([row for _, row in self._left]).reshape(-1, width),
        }


def structure_arrays(
    environments: _Environments, structures: NDArray[np.int64], sums: FloatArray
) -> dict[str, FloatArray]:
    """PR of structures, in the model's own convention, total energies, a committee's variance, and
    projections of their sums."""
    count, fit = environments.source.count(structures), environments.fit
    pr, energy, _ = fit.structures(sums, count)
    assert pr is not None
    found = {"structure_pr": pr, PROJECTION: project(sums)}
    for name, cpr in fit.structure_components(sums, count).items():
        found[f"structure_pr_{name}"] = cpr
    if energy is not None:
        found["structure_energy"] = energy
    if fit.members is not None:
        found[STRUCTURE_COMMITTEE] = fit.structure_committee(sums, count)
    return found


def finish_structures(folder: StageFolder) -> dict[str, FloatArray]:
    """Arrays (n_structures, ...) of a finished stage, structures cut between tasks put together."""
    source = FeatureSource(folder.input("structures"), folder.settings["features"])
    environments = _Environments(folder, source)
    store = source.structures
    parts = environments.fit.components
    names = ["structure_pr", PROJECTION, *(f"structure_pr_{name}" for name in parts)]
    if environments.fit.weights is not None:
        names.append("structure_energy")
    if environments.fit.members is not None:
        names.append(STRUCTURE_COMMITTEE)
    arrays = {name: np.empty(store.n_structures) for name in names}
    arrays[PROJECTION] = np.empty((store.n_structures, N_PROJECTIONS))
    held: tuple[int, NDArray[np.float64]] | None = None
    whole: list[tuple[int, NDArray[np.float64]]] = []
    for task in range(folder.n_tasks):
        part = folder.read_part(task, ("structure", "open_structure", "open_row", *names))
        start, stop = source.edges[task : task + 2].tolist()
        first = int(store.structure_of(start, start + 1)[0])
        for name in names:
            arrays[name][first + part["structure"]] = part[name]
        for index, row in zip(first + part["open_structure"], part["open_row"], strict=True):
            before = held[1] if held is not None and held[0] == index else 0.0
            held = (int(index), before + row)
            if store.structure_offset[index + 1] <= stop:
                whole.append(held)
        if whole and (task == folder.n_tasks - 1 or len(whole) * whole[0][1].nbytes > ROWS_NBYTES):
            ids = np.array([index for index, _ in whole])
            sums = np.array([row for _, row in whole])
            for name, values in structure_arrays(environments, ids, sums).items():
                arrays[name][ids] = values
            whole = []
    return arrays
