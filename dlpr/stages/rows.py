"""Structure rows: the features of each structure's environments, summed per central species.

Sums carry no convention: the factor 1/N, the regularizer, the scale and whether species share
weights enter later, so a change of any of them starts from here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlpr.core.models import Targets, energies
from dlpr.core.projection import N_PROJECTIONS, project
from dlpr.stages.features import FeatureSource, task_edges, task_keys
from dlpr.stages.model import open_sums
from dlpr.stages.structures import StructureStore, open_structures
from dlpr.store.files import Json
from dlpr.store.folder import StageFolder, digest


def plan(
    work: Path,
    structures: StageFolder,
    features: Json,
    mapping: Json,
    references: StageFolder | None = None,
    numerics: Json | None = None,
) -> StageFolder:
    """The tasks of the features; energies and groups are kept beside the rows.

    Parameters
    ----------
    mapping : dict
        ``kind`` of the feature map, and its hyperparameters.
    references : StageFolder, optional
        Reference environments, where the map has them.
    numerics : dict, optional
        Where the map calls BLAS: ``threads`` and ``kernel``.
    """
    settings = {"features": features, "map": mapping}
    if numerics is not None:
        settings["numerics"] = {name: numerics[name] for name in ("threads", "kernel")}
    inputs = {"structures": structures}
    made_of: Json = dict(settings)
    if references is not None:
        inputs["references"] = references
        made_of["references"] = references.output_digest()
    tasks = task_keys(structures, features, made_of, labels=("energy",))
    return StageFolder.create(work, "rows", settings, inputs, tasks)


def run(folder: StageFolder, task: int) -> tuple[dict[str, Any], Json]:
    """Sum the rows of one run of environments into those of their structures."""
    source = FeatureSource(folder.input("structures"), folder.settings["features"])
    model = open_sums(folder)
    store = source.structures
    start, stop = source.edges[task : task + 2].tolist()
    structure = store.structure_of(start, stop)
    first, last = int(structure[0]), int(structure[-1])
    sums = np.zeros((last - first + 1, model.stored.n_columns))
    count = np.zeros((last - first + 1, model.stored.n_blocks), np.int64)
    square = 0.0
    for a, b, features in source.blocks(task):
        local, species = structure[a - start : b - start], source.environment_species(a, b)
        at, n = int(local[0]) - first, int(local[-1] - local[0]) + 1
        model.add_sums(sums[at : at + n], model.mapped(features, species), local - local[0])
        np.add.at(count, (local - first, species), 1)
        square += float(np.einsum("ij,ij->", features, features))
    group = store.group[first : last + 1]
    energy = store.energy[first : last + 1]
    arrays: dict[str, NDArray[Any]] = {}
    groups: dict[str, int] = {}
    for number in np.unique(group):
        own = np.flatnonzero(group == number)
        k = len(groups)
        groups[store.group_names[number]] = len(own)
        arrays[f"structure_{k}"] = own
        arrays[f"sums_{k}"] = sums[own]
        arrays[f"projection_{k}"] = project(arrays[f"sums_{k}"])
        arrays[f"count_{k}"] = count[own]
        arrays[f"energy_{k}"] = energy[own]
    begin, end = int(store.structure_offset[first]), int(store.structure_offset[last + 1])
    facts: Json = {"groups": groups, "square": square, "n_environments": stop - start}
    facts |= {"n_atoms_before": start - begin, "n_atoms_after": end - stop}
    return folder.write_part(task, arrays), facts


@dataclass(frozen=True)
class Run:
    """Structures of one group that end in consecutive tasks.

    Attributes
    ----------
    group : str
    begin : int
        The task in which the first of them begins.
    start, stop : int
        The tasks in which they end.
    n_rows : int
        Rows in these tasks; that of a structure that goes on in the next one counts in both.
    """

    group: str
    begin: int
    start: int
    stop: int
    n_rows: int


@dataclass(frozen=True)
class Sums:
    """Whole structures of one run.

    Attributes
    ----------
    structure : (n,) int64
        Their numbers in the training set.
    sums : (n, n_species * n_features) float64
    count : (n, n_species) int64
        Atoms.
    energy : (n,) float64
        NaN where unknown.
    weight : (n,) float64
        Of the structures in the loss.
    """

    structure: NDArray[np.int64]
    sums: NDArray[np.float64]
    count: NDArray[np.int64]
    energy: NDArray[np.float64]
    weight: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.sums)

    def __getitem__(self, rows: slice | NDArray[np.bool_]) -> Sums:
        names = ("structure", "sums", "count", "energy", "weight")
        return Sums(*(getattr(self, name)[rows] for name in names))

    def __add__(self, other: Sums) -> Sums:
        sums, count = self.sums + other.sums, self.count + other.count
        return Sums(other.structure, sums, count, other.energy, other.weight)


def cut_runs(
    groups: Sequence[str], counts: Sequence[Mapping[str, int]], content: Sequence[str], n_rows: int
) -> list[tuple[str, int, int, int]]:
    """Cut the tasks of each group into runs of about ``n_rows`` rows, half as many at least.

    Within these bounds what a part holds decides where a run ends: where tasks come in between,
    the runs behind them soon are what they were.

    Parameters
    ----------
    groups : sequence of str
    counts : sequence of mapping
        Rows of each group in every task.
    content : sequence of str
        Digest of what each task has put out.
    n_rows : int

    Returns
    -------
    list of (str, int, int, int)
        Group, first task, task behind the last, rows.
    """
    found = []
    for group in groups:
        start, count = 0, 0
        for task, here in enumerate(counts):
            count += here.get(group, 0)
            likely = 2 * count >= n_rows and content[task][0] in "0123"
            if count >= n_rows or (count and likely) or task == len(counts) - 1:
                if count:
                    found.append((group, start, task + 1, count))
                start, count = task + 1, 0
    return found


def of_group(store: StructureStore, group: str, first: int, last: int) -> NDArray[np.int64]:
    """Numbers of a group's structures among ``first..last``."""
    own = store.group[first : last + 1] == store.group_names.index(group)
    return first + np.flatnonzero(own)


def weights_content(store: StructureStore, structures: NDArray[np.int64]) -> list[str]:
    """Digest of the weights of some structures; nothing where none has one."""
    return [digest(store.weight[structures].tolist())] if store.is_weighted else []


class RowStore:
    """Sums over the structures of a finished stage.

    Attributes
    ----------
    structures : StructureStore
    groups : tuple of str
        Those that have structures, sorted.
    mean_square : float
        Mean over training environments of |x|^2: the square of scikit-matter's scale.
    """

    def __init__(self, folder: StageFolder) -> None:
        self.folder = folder
        structures = folder.input("structures")
        self.structures: StructureStore = open_structures(structures)
        self._edges = task_edges(structures, folder.settings["features"])
        receipts = folder.receipts()
        self._content = [receipt.content for receipt in receipts]
        self._groups: list[dict[str, int]] = [receipt.facts["groups"] for receipt in receipts]
        self.groups = tuple(sorted({name for names in self._groups for name in names}))
        n_environments = sum(r.facts["n_environments"] for r in receipts)
        self.mean_square = sum(r.facts["square"] for r in receipts) / n_environments

    def runs(self, n_rows: int) -> list[Run]:
        """Runs of about ``n_rows`` rows of one group each, see `cut_runs`."""
        cuts = cut_runs(self.groups, self._groups, self._content, n_rows)
        return [self._run(*cut) for cut in cuts]

    def _run(self, group: str, start: int, stop: int, n_rows: int) -> Run:
        first = self._first(start)
        begin = start
        if self.structures.structure_offset[first] < self._edges[start]:
            number = self.structures.group[first]
            if self.structures.group_names[number] == group:
                at = self.structures.structure_offset[first]
                begin = int(np.searchsorted(self._edges, at, side="right")) - 1
        return Run(group, begin, start, stop, n_rows)

    def _first(self, task: int) -> int:
        """The structure to which a task's first environment belongs."""
        at = int(self._edges[task])
        return int(self.structures.structure_of(at, at + 1)[0])

    def _last(self, task: int) -> int:
        """The structure to which a task's last environment belongs."""
        at = int(self._edges[task + 1])
        return int(self.structures.structure_of(at - 1, at)[0])

    @property
    def n_rows(self) -> int:
        """Rows of the loss: structures with an energy, or all where none has one; of weight > 0."""
        counts = self.structures.weight > 0.0
        if self.is_labelled:
            counts &= np.isfinite(self.structures.energy)
        return int(np.count_nonzero(counts))

    @property
    def is_labelled(self) -> bool:
        """Whether any structure has an energy."""
        return bool(np.isfinite(self.structures.energy).any())

    def projections(self) -> NDArray[np.float64]:
        """Of the sums of all structures, (n_structures, N_PROJECTIONS): see `project`."""
        found = np.zeros((self.structures.n_structures, N_PROJECTIONS))
        for task, groups in enumerate(self._groups):
            for k in range(len(groups)):
                keys = (f"structure_{k}", f"projection_{k}")
                part = self.folder.read_part(task, keys)
                found[self._first(task) + part[keys[0]]] += part[keys[1]]
        return found

    def targets(
        self, run: Run, convention: str, chosen: NDArray[np.bool_] | None = None
    ) -> Iterator[Targets]:
        """The rows of a run with their labels; without labels only where no structure has one."""
        anything = not self.is_labelled
        for read in self.read(run):
            own = (read.weight > 0.0) & (anything | np.isfinite(read.energy))
            if chosen is not None:
                own &= chosen[read.structure]
            piece = read if own.all() else read[own]
            if len(piece):
                found = energies(piece.sums, piece.count, piece.energy, piece.weight, convention)
                yield replace(found, structure=piece.structure)

    def members(self, run: Run) -> NDArray[np.int64]:
        """Numbers of the structures of a run's group in its tasks."""
        first, last = self._first(run.begin), self._last(run.stop - 1)
        return of_group(self.structures, run.group, first, last)

    def contents(self, run: Run) -> list[object]:
        """All that decides what `read` gives for a run, as JSON."""
        content = self._content[run.begin : run.stop]
        weights = weights_content(self.structures, self.members(run))
        return [run.start - run.begin, self.is_labelled, *content, *weights]

    def read(self, run: Run) -> Iterator[Sums]:
        """The structures of a run; one that is cut between tasks is put together in their order."""
        end = self.structures.structure_offset[1:]
        held: Sums | None = None
        for task in range(run.begin, run.stop):
            names = list(self._groups[task])
            if run.group not in names:
                continue
            k = names.index(run.group)
            keys = (f"structure_{k}", f"sums_{k}", f"count_{k}", f"energy_{k}")
            self.folder.expect_part(task + 1)
            part = self.folder.read_part(task, keys)
            structure = self._first(task) + part[keys[0]]
            sums, count, energy = (part[key] for key in keys[1:])
            found = Sums(structure, sums, count, energy, self.structures.weight[structure])
            if task < run.start:  # of this task, only what goes on into the run
                structure, found = structure[-1:], found[-1:]
            goes_on = end[structure[-1]] > self._edges[task + 1]
            if held is not None:
                first = held + found[:1]
                if goes_on and len(structure) == 1:
                    held = first
                    continue
                yield first
                found = found[1:]
            held = found[-1:] if goes_on else None
            whole = found[:-1] if goes_on else found
            if len(whole):
                yield whole


@lru_cache(maxsize=4)
def _open(path: str, digest: str) -> RowStore:
    return RowStore(StageFolder(Path(path)))


def open_rows(folder: StageFolder) -> RowStore:
    """The row store of a finished stage, opened once per process."""
    return _open(str(folder.path), folder.output_digest())
