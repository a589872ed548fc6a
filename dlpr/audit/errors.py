"""Errors of a set where its files have labels (VAL23 sec. III)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import zarr
from numpy.typing import NDArray

from dlpr.audit.figures import MILLI, quantiles, read
from dlpr.audit.record import ErrorRecord
from dlpr.core.rows import FloatArray, square_norm
from dlpr.core.validation import Errors, energy_errors, force_errors
from dlpr.stages.result import CHUNK_ROWS
from dlpr.stages.structures import StructureStore

ENERGIES = {
    "mean": ("energy per atom", "meV/atom"),
    "sum": ("energy per cell", "meV"),
    "sqrt": ("energy per root of N", "meV/√atom"),
}
FORCES = {
    "component": ("force component", "meV/Å"),
    "magnitude": ("force magnitude", "meV/Å"),
    "vector": ("force vector", "meV/Å"),
}
OF_CHECK = {"energy": ENERGIES["mean"][0], "forces": FORCES["component"][0]}
"""What a check of errors is about."""


def structure_errors(group: zarr.Group) -> FloatArray:
    """(n_structures,) fitted less labelled total energies in eV, NaN where one is absent."""
    label = read(group, "structure_energy_label")
    if "structure_energy" not in group:
        return np.full(len(label), np.nan)
    errors: FloatArray = read(group, "structure_energy") - label
    return errors


def error_records(group: zarr.Group, structures: StructureStore) -> list[ErrorRecord]:
    """Errors of energies, and of forces where the result has them, of all and of each group.

    Parameters
    ----------
    group : zarr.Group
        The result of a set.
    structures : StructureStore
        The same set, whose labels these are.
    """
    found: defaultdict[tuple[str, str, str | None], Errors] = defaultdict(Errors)
    names = structures.group_names

    def add(kind: tuple[str, str], errors: FloatArray, of_group: NDArray[np.int32]) -> None:
        found[*kind, None].add(MILLI * errors)
        for number in np.unique(of_group):
            found[*kind, names[number]].add(MILLI * errors[of_group == number])

    errors = structure_errors(group)
    known = np.isfinite(errors)
    n_atoms = np.diff(structures.structure_offset)[known]
    if known.any():
        for convention, scaled in energy_errors(errors[known], n_atoms).items():
            add(ENERGIES[convention], scaled, structures.group[known])
    if "environment_forces" in group:
        for start, predicted, label in _forces(group, structures):
            known = np.isfinite(label[:, 0])
            of_group = structures.group[structures.structure_of(start, start + len(label))][known]
            if known.any():
                for kind, values in force_errors(predicted[known], label[known]).items():
                    repeated = np.repeat(of_group, len(values) // len(of_group))
                    add(FORCES[kind], values, repeated)
    return [
        ErrorRecord(
            quantity=quantity,
            unit=unit,
            group=of_group,
            n=one.n,
            mae=one.mae,
            rmse=one.rmse,
            percentiles=quantiles(one.absolute),
        )
        for (quantity, unit, of_group), one in found.items()
    ]


def _forces(
    group: zarr.Group, structures: StructureStore
) -> Iterator[tuple[int, FloatArray, FloatArray]]:
    """First environment, and fitted and labelled forces of runs of whole structures, in source
    order."""
    offset = structures.structure_offset
    array = group["environment_forces"]
    assert isinstance(array, zarr.Array)
    first = 0
    while first < structures.n_structures:
        start = int(offset[first])
        last = int(np.searchsorted(offset, start + CHUNK_ROWS, side="right")) - 1
        last = max(last, first + 1)
        stop = int(offset[last])
        label = np.empty((stop - start, 3))
        own = structures.structure_of(start, stop)
        place = offset[own] + structures.read("source_atom", start, stop) - start
        label[place] = structures.forces(start, stop)
        yield start, np.asarray(array[start:stop], np.float64), label
        first = last


def worst_forces(
    group: zarr.Group, structures: StructureStore, n: int, of_group: str | None
) -> NDArray[np.int64]:
    """The ``n`` environments whose forces are farthest from their labels, worst first."""
    best, place = np.empty(0), np.empty(0, np.int64)
    names = np.array(structures.group_names)
    for start, predicted, label in _forces(group, structures):
        errors = np.sqrt(square_norm(predicted - label))
        at = np.arange(start, start + len(errors))
        meant = np.isfinite(errors)
        if of_group is not None:
            own = structures.group[structures.structure_of(start, start + len(errors))]
            meant &= names[own] == of_group
        best = np.concatenate([best, errors[meant]])
        place = np.concatenate([place, at[meant]])
        order = np.argsort(-best, kind="stable")[:n]
        best, place = best[order], place[order]
    return place
