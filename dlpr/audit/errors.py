"""Errors of a set where its files have labels (VAL23 sec. III)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import zarr
from numpy.typing import NDArray

from dlpr.audit.figures import MILLI, Key, quantiles, read
from dlpr.audit.record import ErrorRecord
from dlpr.audit.spec import Quantity
from dlpr.core.quantiles import QuantileSketch
from dlpr.core.rows import FloatArray, square_norm
from dlpr.core.validation import Errors, energy_errors, force_errors
from dlpr.stages.result import CHUNK_ROWS
from dlpr.stages.structures import StructureStore

QUANTITIES: dict[Quantity, tuple[str, str]] = {
    "energy": ("energy per atom", "meV/atom"),
    "energy_per_cell": ("energy per cell", "meV"),
    "energy_per_root": ("energy per root of N", "meV/√atom"),
    "forces": ("force component", "meV/Å"),
    "force_magnitude": ("force magnitude", "meV/Å"),
    "force_vector": ("force vector", "meV/Å"),
}
"""What a check of errors is about: name and unit."""
ENERGIES: dict[str, Quantity] = {
    "mean": "energy",
    "sum": "energy_per_cell",
    "sqrt": "energy_per_root",
}
"""By the convention of rows."""
FORCES: dict[str, Quantity] = {
    "component": "forces",
    "magnitude": "force_magnitude",
    "vector": "force_vector",
}
"""By the names of `dlpr.core.validation.force_errors`."""


def measure(quantity: Quantity) -> str:
    """Of absolute errors, among distributions."""
    return f"error.{quantity}"


def structure_errors(group: zarr.Group) -> FloatArray:
    """(n_structures,) fitted less labelled total energies in eV, NaN where one is absent."""
    label = read(group, "structure_energy_label")
    if "structure_energy" not in group:
        return np.full(len(label), np.nan)
    errors: FloatArray = read(group, "structure_energy") - label
    return errors


def errors_of(
    name: str, group: zarr.Group, structures: StructureStore
) -> tuple[list[ErrorRecord], dict[Key, QuantileSketch]]:
    """Errors of energies, and of forces where the result has them, of all and of each group.

    Parameters
    ----------
    name : str
        Of the set.
    group : zarr.Group
        Its result.
    structures : StructureStore
        The same set, whose labels these are.

    Returns
    -------
    list of ErrorRecord
    dict of Key to QuantileSketch
        Distributions of absolute errors by group.
    """
    found: defaultdict[tuple[Quantity, str | None], Errors] = defaultdict(Errors)
    names = structures.group_names

    def add(quantity: Quantity, errors: FloatArray, of_group: NDArray[np.int32]) -> None:
        found[quantity, None].add(MILLI * errors)
        for number in np.unique(of_group):
            found[quantity, names[number]].add(MILLI * errors[of_group == number])

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
    records = [
        ErrorRecord(
            quantity=QUANTITIES[quantity][0],
            unit=QUANTITIES[quantity][1],
            group=of_group,
            n=one.n,
            mae=one.mae,
            rmse=one.rmse,
            bias=one.bias,
            percentiles=quantiles(one.absolute),
        )
        for (quantity, of_group), one in found.items()
    ]
    sketches = {
        Key(name, measure(quantity), of_group, 0): one.absolute
        for (quantity, of_group), one in found.items()
        if of_group is not None
    }
    return records, sketches


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
