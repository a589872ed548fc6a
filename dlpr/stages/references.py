"""Reference environments of a sparse kernel: chosen, and made into a feature map.

Where the choice begins with a preselection, that is one task for every task of the features. The
last task chooses, from what these have left or from everything, and decomposes K_MM.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from dlpr.core.factorize import factorize, spectrum
from dlpr.core.folds import Gram
from dlpr.core.kernel import Kernel, load_kernel, make_references, unit_rows
from dlpr.core.rows import FloatArray
from dlpr.core.sampling import (
    draw_keys,
    farthest_points,
    find_usable,
    leverage_ridge,
    leverage_scores,
    preselect,
    take_highest,
)
from dlpr.errors import InputError
from dlpr.stages.features import FeatureSource, task_edges
from dlpr.stages.structures import StructureStore
from dlpr.store.files import Json
from dlpr.store.folder import StageFolder

IntArray = NDArray[np.int64]


def plan(
    work: Path, structures: StageFolder, features: Json, kernel: Json, numerics: Json
) -> StageFolder:
    """Choose reference environments among those of some structures.

    Parameters
    ----------
    structures : StageFolder
        The training set, or the structures of files all of whose environments are taken.
    kernel : dict
        ``zeta``, ``normalize``, and the job's ``references``.
    """
    n_parts = len(task_edges(structures, features)) - 1
    settings: Json = {
        "features": features,
        "kernel": kernel,
        "numerics": {"threads": numerics["factor_threads"], "kernel": numerics["kernel"]},
    }
    n_tasks = 1
    if kernel["references"]["preselect"] is not None:
        settings["waves"] = [list(range(n_parts)), [n_parts]]
        n_tasks += n_parts
    return StageFolder.create(work, "references", settings, {"structures": structures}, n_tasks)


class _Blocks:
    """Features of one central species, block by block; read anew whenever they are gone through.

    Attributes
    ----------
    environments : list of (n,) int64
        Numbers of the environments of each task of the features.
    """

    def __init__(self, source: FeatureSource, species: int) -> None:
        self._source = source
        self.environments: list[IntArray] = []
        for start, stop in pairwise(source.edges.tolist()):
            own = source.environment_species(start, stop) == species
            self.environments.append(start + np.flatnonzero(own))

    def __iter__(self) -> Iterator[FloatArray]:
        for task, own in enumerate(self.environments):
            yield from _read(self._source, task, own)

    @property
    def every(self) -> IntArray:
        """Numbers of all environments of the species."""
        return np.concatenate(self.environments)

    def keep(self, chosen: IntArray) -> None:
        """Leave out all but some environments."""
        self.environments = [own[np.isin(own, chosen)] for own in self.environments]

    def take(self, chosen: IntArray) -> FloatArray:
        """Features of some environments, in the order given."""
        found = np.empty((len(chosen), self._source.descriptor.n_features))
        task = np.searchsorted(self._source.edges, chosen, side="right") - 1
        for number in np.unique(task).tolist():
            own = np.flatnonzero(task == number)
            order = own[np.argsort(chosen[own])]
            found[order] = np.concatenate(list(_read(self._source, number, chosen[order])))
        return found


def _read(source: FeatureSource, task: int, wanted: IntArray) -> Iterator[FloatArray]:
    """Features of some environments of one task, in ascending order, block by block."""
    if len(wanted):
        for start, stop, features in source.blocks(task):
            inside = wanted[(wanted >= start) & (wanted < stop)]
            yield features if len(inside) == stop - start else features[inside - start]


def run(folder: StageFolder, task: int) -> tuple[dict[str, Any], Json]:
    """Preselect in one task's environments; or, last, choose and decompose."""
    settings = folder.settings
    kernel, spec = settings["kernel"], settings["kernel"]["references"]
    source = FeatureSource(folder.input("structures"), settings["features"])
    species = source.descriptor.species
    if task < folder.n_tasks - 1:
        start, stop = source.edges[task : task + 2].tolist()
        number = source.environment_species(start, stop)
        chosen = {}
        for k in range(len(species)):
            own = start + np.flatnonzero(number == k)
            held = list(_read(source, task, own))
            picks = preselect(held, spec["preselect"], kernel["normalize"])
            chosen[f"environment_{k}"] = own[picks]
        return folder.write_part(task, chosen), {}
    references = []
    arrays: dict[str, NDArray[Any]] = {}
    facts: Json = {}
    for k, atomic_number in enumerate(species):
        symbol = chemical_symbols[atomic_number]
        blocks = _Blocks(source, k)
        if folder.n_tasks > 1:
            parts = [folder.read_part(part)[f"environment_{k}"] for part in range(task)]
            blocks.keep(np.concatenate(parts))
        environments = _choose(blocks, kernel, symbol, source.structures)
        own = make_references(blocks.take(environments), kernel["zeta"], kernel["normalize"])
        references.append(own)
        arrays[f"environment_{k}"] = environments
        facts[symbol] = {
            "count": len(environments),
            "rank": own.whitening.shape[1],
            "cut": own.cut,
            "condition": own.condition,
        }
    if not sum(len(own.features) for own in references):
        raise InputError("the kernel has no reference environment; see model.kernel.references")
    arrays |= Kernel(kernel["zeta"], kernel["normalize"], tuple(references)).to_arrays()
    return folder.write_part(task, arrays), {"references": facts}


def _choose(blocks: _Blocks, kernel: Json, symbol: str, store: StructureStore) -> IntArray:
    """Numbers of the environments that are to be references of one species."""
    spec, every = kernel["references"], blocks.every
    if spec["file"] is not None:
        return every
    if spec["indices"] is not None:
        return np.intersect1d(_stored_numbers(store, np.array(spec["indices"])), every)
    count = spec["count"] if isinstance(spec["count"], int) else spec["count"].get(symbol, 0)
    if not count or not len(every):
        return every[:0]
    usable = find_usable(blocks, kernel["normalize"])
    if not usable.any():
        return every[:0]
    if spec["method"] == "cur":
        scores = np.where(usable, _leverage(blocks, kernel["normalize"], count), 0.0)
    else:
        scores = usable.astype(np.float64)
    keys = draw_keys(scores, 0, spec["seed"])
    if spec["method"] != "fps":
        return np.sort(every[take_highest(keys, np.arange(len(keys)), count)[1]])
    first = int(keys.argmax())
    return every[farthest_points(blocks, count, first, usable, kernel["normalize"])[0]]


def _leverage(blocks: _Blocks, normalize: bool, count: int) -> FloatArray:
    """Leverage scores of all environments of a species."""
    gram = Gram.zeros(next(iter(blocks)).shape[1])
    for block in blocks:
        gram.update(unit_rows(block) if normalize else block)
    ridge = leverage_ridge(spectrum(gram), count)
    factor, _ = factorize(gram, ridge, len(blocks.every), "cholesky")
    scores = [leverage_scores(unit_rows(b) if normalize else b, factor) for b in blocks]
    return np.concatenate(scores)


def _stored_numbers(store: StructureStore, indices: IntArray) -> IntArray:
    """Where environments are stored that are numbered in the order of the source files."""
    if indices.max() >= store.n_environments:
        raise InputError(
            f"model.kernel.references.indices has {indices.max()}; the training set has "
            f"{store.n_environments} environments, numbered from 0"
        )
    found = indices.copy()
    structure = np.searchsorted(store.structure_offset, indices, side="right") - 1
    for index in np.unique(structure).tolist():
        if store.is_sorted_by_space(index):
            start, stop = store.structure_offset[index : index + 2].tolist()
            own = structure == index
            place = np.argsort(store.read("source_atom", start, stop))
            found[own] = start + place[indices[own] - start]
    return found


@lru_cache(maxsize=2)
def _open(path: str, digest: str) -> Kernel:
    folder = StageFolder(Path(path))
    return load_kernel(folder.read_part(folder.n_tasks - 1))


def open_kernel(folder: StageFolder) -> Kernel:
    """The feature map of a finished stage, opened once per process."""
    return _open(str(folder.path), folder.output_digest())
