"""Rows of forces and stresses: derivatives of structure rows, contracted as they are computed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlpr.core.models import FeatureMap, Targets
from dlpr.core.rows import FloatArray
from dlpr.descriptors import Soap
from dlpr.descriptors.gradients import VOIGT, derivative_rows, has_stress
from dlpr.errors import InputError
from dlpr.stages.features import open_descriptor
from dlpr.stages.model import open_map
from dlpr.stages.rows import Run, cut_runs
from dlpr.stages.structures import StructureStore, open_structures
from dlpr.store.files import Json
from dlpr.store.folder import StageFolder

PART_NBYTES = 1 << 26
"""Bytes of rows that one task makes, if it has more than one structure."""
_TWICE = np.sqrt([1.0, 1.0, 1.0, 2.0, 2.0, 2.0])
"""Off-diagonal components of a stress stand for two."""


def plan(work: Path, rows: StageFolder, kinds: list[str]) -> StageFolder:
    """Tasks of whole structures of one part each.

    Parameters
    ----------
    rows : StageFolder
        Planned or finished "rows": structures, features and feature map.
    kinds : list of str
        "forces", "stress" or both.
    """
    structures = rows.input("structures")
    store, mapping = open_structures(structures), open_map(rows)
    settings: Json = {
        "features": rows.settings["features"],
        "map": rows.settings["map"],
        "kinds": kinds,
        "edges": _edges(store, 8 * sum(mapping.widths), kinds),
    }
    if "numerics" in rows.settings:
        settings["numerics"] = rows.settings["numerics"]
    inputs = {"structures": structures, **rows.inputs()}
    same: Json = {name: value for name, value in settings.items() if name != "edges"}
    same["references"] = rows.plan["inputs"].get("references")
    at = store.structure_offset[np.array(settings["edges"])]
    contents = store.contents(at, kinds)
    tasks = [{"settings": same, "content": content} for content in contents]
    return StageFolder.create(work, "derivatives", settings, inputs, tasks)


def _edges(store: StructureStore, row_nbytes: int, kinds: list[str]) -> list[int]:
    """First structures of tasks, and the number of structures."""
    parts = np.searchsorted(store.structure_offset, store.part_edges)
    n_rows = 3 * np.diff(store.structure_offset) * ("forces" in kinds) + 6 * ("stress" in kinds)
    edges = [0]
    for stop in parts[1:].tolist():
        while edges[-1] < stop:
            size = np.cumsum(n_rows[edges[-1] : stop]) * row_nbytes
            edges.append(edges[-1] + max(1, int(np.searchsorted(size, PART_NBYTES, "right"))))
    return edges


def run(folder: StageFolder, task: int) -> tuple[dict[str, Any], Json]:
    """Rows of the structures of one task that have labels, by kind and group."""
    settings = folder.settings
    store = open_structures(folder.input("structures"))
    calculator, mapping = open_descriptor(settings["features"]["descriptor"]), open_map(folder)
    assert isinstance(calculator, Soap)
    found: dict[tuple[str, str], list[tuple[NDArray[np.float64], NDArray[np.float64]]]] = {}
    first, last = settings["edges"][task : task + 2]
    for index in range(first, last):
        start, stop = store.structure_offset[index : index + 2].tolist()
        group = store.group_names[store.group[index]]
        piece = store.whole(index)
        labels = {
            "forces": store.forces(start, stop).ravel(),
            "stress": store.structure("stress", index)[VOIGT],
        }
        known = {kind: np.isfinite(labels[kind]) for kind in settings["kinds"]}
        if "stress" in known and not has_stress(piece):
            known["stress"][:] = False
        wanted = {kind: bool(own.any()) for kind, own in known.items()}
        if not any(wanted.values()):
            continue
        rows = derivative_rows(
            calculator,
            piece,
            mapping,
            forces=wanted.get("forces", False),
            stress=wanted.get("stress", False),
        )
        for kind in (kind for kind in wanted if wanted[kind]):
            own = known[kind]
            raw = getattr(rows, kind)
            pair = _finished(mapping, raw if own.all() else raw[own]), labels[kind][own]
            if kind == "stress":
                pair = pair[0] * _TWICE[own, None], pair[1] * _TWICE[own]
            found.setdefault((kind, group), []).append(pair)
    arrays: dict[str, NDArray[Any]] = {}
    groups: dict[str, dict[str, int]] = {kind: {} for kind in settings["kinds"]}
    for number, ((kind, group), pairs) in enumerate(sorted(found.items())):
        arrays[f"rows_{number}"] = np.concatenate([rows for rows, _ in pairs])
        arrays[f"y_{number}"] = np.concatenate([y for _, y in pairs])
        groups[kind][group] = len(arrays[f"y_{number}"])
    return folder.write_part(task, arrays), {"groups": groups}


def _finished(mapping: FeatureMap, sums: FloatArray) -> FloatArray:
    """Sums of derivatives in the columns of the model's rows."""
    stops = np.cumsum(mapping.raw_widths)[:-1]
    blocks = np.split(sums, stops, axis=1)
    return np.hstack([mapping.finish(number, block) for number, block in enumerate(blocks)])


class DerivativeStore:
    """Rows of one kind of a finished stage.

    Attributes
    ----------
    groups : tuple of str
        Those that have rows, sorted.
    """

    def __init__(self, folder: StageFolder, kind: str) -> None:
        self._folder, self._kind = folder, kind
        receipts = folder.receipts()
        self._content = [receipt.content for receipt in receipts]
        self._every: list[dict[str, dict[str, int]]] = [r.facts["groups"] for r in receipts]
        self._counts = [groups[kind] for groups in self._every]
        self.groups = tuple(sorted({name for counts in self._counts for name in counts}))
        self._n_species = len(open_map(folder).widths)

    @property
    def n_rows(self) -> int:
        """Rows in all."""
        return sum(sum(counts.values()) for counts in self._counts)

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
        return list(self._content[run.start : run.stop])

    def targets(self, run: Run, convention: str) -> Iterator[Targets]:
        """The rows of a run; a derivative knows no convention of structures."""
        for task in range(run.start, run.stop):
            if run.group not in self._counts[task]:
                continue
            names = sorted((k, g) for k, groups in self._every[task].items() for g in groups)
            number = names.index((self._kind, run.group))
            self._folder.expect_part(task + 1)
            part = self._folder.read_part(task, (f"rows_{number}", f"y_{number}"))
            rows, y = part[f"rows_{number}"], part[f"y_{number}"]
            yield Targets(rows, np.zeros((len(y), self._n_species)), y, np.ones(len(y)))


@lru_cache(maxsize=4)
def _open(path: str, digest: str, kind: str) -> DerivativeStore:
    return DerivativeStore(StageFolder(Path(path)), kind)


def open_derivatives(folder: StageFolder, kind: str) -> DerivativeStore:
    """The rows of one kind of a finished stage, opened once per process.

    Raises
    ------
    InputError
        If no structure of the set has such labels.
    """
    store = _open(str(folder.path), folder.output_digest(), kind)
    if not store.n_rows:
        raise InputError(
            f"the loss has {kind}, but no structure of the training set, or of the set on which a "
            f"regularizer is picked, has any that can be used: a stress needs a cell that is "
            f"periodic in three directions. Remove loss.{kind} from the job file."
        )
    return store
