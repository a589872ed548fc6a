"""Rows of forces and stresses: derivatives of structure rows, contracted as they are computed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlpr.core.models import FeatureMap, Targets
from dlpr.core.rows import FloatArray, row_factor
from dlpr.descriptors import Descriptor
from dlpr.descriptors.gradient_batches import VOIGT
from dlpr.descriptors.gradients import derivative_rows, has_stress
from dlpr.errors import InputError
from dlpr.stages.features import open_descriptor
from dlpr.stages.force_tasks import force_edges, force_piece, structures_of
from dlpr.stages.model import open_map
from dlpr.stages.rows import Run, cut_runs, of_group, weights_content
from dlpr.stages.structures import StructureStore, open_structures
from dlpr.store.files import Json
from dlpr.store.folder import StageFolder, digest

PART_NBYTES = 1 << 26
"""Bytes of rows that one task makes, if it has more than one structure, whole or in part."""
_TIMES = np.array([1.0, 1.0, 1.0, 2.0, 2.0, 2.0])
"""Off-diagonal components of a stress stand for two."""
LABEL = {"forces": "forces", "stress": "stress", "virial": "stress"}
"""Labels of structures, and rows of this stage, from which a kind of targets is made."""


def plan(work: Path, rows: StageFolder, kinds: list[str]) -> StageFolder:
    """Tasks of structures of one part each; one that is stored by space is cut into several.

    Parameters
    ----------
    rows : StageFolder
        Planned or finished "rows": structures, features and feature map.
    kinds : list of str
        "forces", "stress" or both.
    """
    structures = rows.input("structures")
    store, row_nbytes = open_structures(structures), 8 * sum(open_map(rows).widths)
    n_rows = 3 * np.diff(store.structure_offset) * ("forces" in kinds) + 6 * ("stress" in kinds)
    settings: Json = {
        "features": rows.settings["features"],
        "map": rows.settings["map"],
        "kinds": kinds,
        "edges": force_edges(store, row_nbytes * n_rows, PART_NBYTES),
    }
    if "numerics" in rows.settings:
        settings["numerics"] = rows.settings["numerics"]
    inputs = {"structures": structures, **rows.inputs()}
    same: Json = {name: value for name, value in settings.items() if name != "edges"}
    same["references"] = rows.plan["inputs"].get("references")
    contents = store.contents(pairwise(settings["edges"]), kinds)
    tasks = [{"settings": same, "content": content} for content in contents]
    return StageFolder.create(work, "derivatives", settings, inputs, tasks)


def run(folder: StageFolder, task: int) -> tuple[dict[str, Any], Json]:
    """Rows of the structures of one task that have labels, by kind and group."""
    settings = folder.settings
    store = open_structures(folder.input("structures"))
    calculator, mapping = open_descriptor(settings["features"]["descriptor"]), open_map(folder)
    found: dict[tuple[str, str], list[dict[str, NDArray[Any]]]] = {}
    start, stop = settings["edges"][task : task + 2]
    structures = structures_of(store, start, stop)
    for index in structures:
        group = store.group_names[store.group[index]]
        labels = _labels(store, index, start, stop, settings["kinds"])
        known = {kind: np.isfinite(own) for kind, own in labels.items()}
        wanted = [kind for kind, own in known.items() if own.any()]
        if not wanted:
            continue
        rows = _rows(store, index, start, stop, calculator, mapping, wanted)
        for kind in wanted:
            own, raw = known[kind], rows.pop(kind)
            piece_of = {
                "rows": _finished(mapping, raw if own.all() else raw[own]),
                "y": labels[kind][own],
                "structure": np.full(int(own.sum()), index - structures[0]),
            }
            if kind == "stress":
                piece_of["times"] = _TIMES[own]
            found.setdefault((kind, group), []).append(piece_of)
    arrays: dict[str, NDArray[Any]] = {}
    groups: dict[str, dict[str, int]] = {kind: {} for kind in settings["kinds"]}
    for number, ((kind, group), pieces) in enumerate(sorted(found.items())):
        for name in pieces[0]:
            arrays[f"{name}_{number}"] = np.concatenate([one[name] for one in pieces])
        groups[kind][group] = len(arrays[f"y_{number}"])
    return folder.write_part(task, arrays), {"groups": groups}


def _labels(
    store: StructureStore, index: int, start: int, stop: int, kinds: list[str]
) -> dict[str, NDArray[np.float64]]:
    """Forces on the atoms of a structure that are in a task, and its stress, flat.

    NaN where there is none that can be used. A stress is in the task in which its structure begins.
    """
    begin, end = store.structure_offset[index : index + 2].tolist()
    found = {}
    if "forces" in kinds:
        found["forces"] = store.forces(max(start, begin), min(stop, end)).ravel()
    if "stress" in kinds and begin >= start:
        stress = store.structure("stress", index)[VOIGT]
        usable = has_stress(store.whole(index))
        found["stress"] = stress if usable else np.full_like(stress, np.nan)
    return found


def _rows(
    store: StructureStore,
    index: int,
    start: int,
    stop: int,
    calculator: Descriptor,
    mapping: FeatureMap,
    kinds: list[str],
) -> dict[str, FloatArray]:
    """Rows of a structure by their kind: both together cost less, where it is not cut."""
    found: dict[str, FloatArray] = {}
    for some in [[kind] for kind in kinds] if store.is_sorted_by_space(index) else [kinds]:
        forces, stress = "forces" in some, "stress" in some
        cutoff = calculator.cutoff
        piece = force_piece(store, index, start, stop, cutoff) if forces else store.whole(index)
        rows = derivative_rows(calculator, piece, mapping, forces=forces, stress=stress)
        found |= {kind: getattr(rows, kind) for kind in some}
    return found


def _finished(mapping: FeatureMap, sums: FloatArray) -> FloatArray:
    """Sums of derivatives in the columns of the model's rows."""
    stops = np.cumsum(mapping.raw_widths)[:-1]
    blocks = np.split(sums, stops, axis=1)
    return np.hstack([mapping.finish(number, block) for number, block in enumerate(blocks)])


class DerivativeStore:
    """Rows of one kind of a finished stage.

    Parameters
    ----------
    folder : StageFolder
    kind : {"forces", "stress", "virial"}
    off_diagonals : {"twice", "once"}
        How often a component off the diagonal of a stress or virial counts.

    Attributes
    ----------
    groups : tuple of str
        Those that have rows, sorted.
    """

    def __init__(self, folder: StageFolder, kind: str, off_diagonals: str) -> None:
        self._folder, self._kind, self._once = folder, kind, off_diagonals == "once"
        self._structures = open_structures(folder.input("structures"))
        edges, offset = folder.settings["edges"], self._structures.structure_offset
        self._first: list[int] = (np.searchsorted(offset, edges[:-1], side="right") - 1).tolist()
        self._last: list[int] = (np.searchsorted(offset, edges[1:]) - 1).tolist()
        receipts = folder.receipts()
        self._content = [receipt.content for receipt in receipts]
        self._every: list[dict[str, dict[str, int]]] = [r.facts["groups"] for r in receipts]
        self._counts = [groups[LABEL[kind]] for groups in self._every]
        self.groups = tuple(sorted({name for counts in self._counts for name in counts}))
        self._n_species = len(open_map(folder).widths)

    @cached_property
    def n_rows(self) -> int:
        """Rows in all, of structures of weight > 0."""
        if not self._structures.is_weighted:
            return sum(sum(counts.values()) for counts in self._counts)
        found = [self._part(task, g, ("structure",)) for task, g in self._parts()]
        return sum(int((self._structures.weight[part["structure"]] > 0).sum()) for part in found)

    def _parts(self) -> Iterator[tuple[int, str]]:
        """Tasks and groups that have rows."""
        return ((task, group) for task, counts in enumerate(self._counts) for group in counts)

    def _part(self, task: int, group: str, names: tuple[str, ...]) -> dict[str, NDArray[Any]]:
        """Arrays of one task's rows of a group; structures by their numbers in the store."""
        every = sorted((k, g) for k, groups in self._every[task].items() for g in groups)
        number = every.index((LABEL[self._kind], group))
        part = self._folder.read_part(task, tuple(f"{name}_{number}" for name in names))
        found = {name: part[f"{name}_{number}"] for name in names}
        return {**found, "structure": self._first[task] + found["structure"]}

    @property
    def is_labelled(self) -> bool:
        """Always: rows without a label are not made."""
        return True

    def runs(self, n_rows: int) -> list[Run]:
        """Runs of about ``n_rows`` rows of one group each."""
        cuts = cut_runs(self.groups, self._counts, self._content, n_rows)
        return [Run(group, start, start, stop, count) for group, start, stop, count in cuts]

    def contents(self, run: Run) -> list[object]:
        """All that decides the rows of a run, as JSON."""
        weights = weights_content(self._structures, self.members(run))
        if self._kind == "virial":  # equal stresses of cells that differ in size
            store = self._structures
            here = slice(self._first[run.start], self._last[run.stop - 1] + 1)
            n_atoms = np.diff(store.structure_offset)[here]
            weights.append(digest([store.volume[here].tolist(), n_atoms.tolist()]))
        return [*self._content[run.start : run.stop], *weights]

    def members(self, run: Run) -> NDArray[np.int64]:
        """Numbers of the structures of a run's group in its tasks."""
        first, last = self._first[run.start], self._last[run.stop - 1]
        return of_group(self._structures, run.group, first, last)

    def targets(
        self, run: Run, convention: str, chosen: NDArray[np.bool_] | None = None
    ) -> Iterator[Targets]:
        """The rows of a run; of all derivatives, virials alone know a convention of structures."""
        store = self._structures
        times = ("times",) if LABEL[self._kind] == "stress" else ()
        for task in range(run.start, run.stop):
            if run.group not in self._counts[task]:
                continue
            self._folder.expect_part(task + 1)
            part = self._part(task, run.group, ("rows", "y", "structure", *times))
            structure = part["structure"]
            weight = store.weight[structure]
            wanted = weight > 0.0 if chosen is None else (weight > 0.0) & chosen[structure]
            own = slice(None) if wanted.all() else wanted
            if times and not self._once:
                weight = weight * part["times"]
            factor = np.ones(len(weight))
            if self._kind == "virial":
                n_atoms = np.diff(store.structure_offset)[structure]
                factor = -store.volume[structure] * row_factor(n_atoms, convention)
            no_atoms = np.zeros((len(weight), self._n_species))
            rows, y = part["rows"][own], part["y"][own]
            if len(y):
                yield Targets(rows, no_atoms[own], y, factor[own], weight[own], structure[own])


@lru_cache(maxsize=8)
def _open(path: str, digest: str, kind: str, off_diagonals: str) -> DerivativeStore:
    return DerivativeStore(StageFolder(Path(path)), kind, off_diagonals)


def open_derivatives(folder: StageFolder, kind: str, off_diagonals: str) -> DerivativeStore:
    """The rows of one kind of a finished stage, opened once per process.

    Raises
    ------
    InputError
        If no structure of the set has such labels.
    """
    store = _open(str(folder.path), folder.output_digest(), kind, off_diagonals)
    if not store.n_rows:
        raise InputError(
            f"the loss has {kind}, but no structure of the training set, or of the set on which a "
            f"regularizer is picked, has any that can be used: a stress or virial needs a cell "
            f"that is periodic in three directions, and a weight of 0 makes no rows. Remove "
            f"loss.{kind} from the job file."
        )
    return store
