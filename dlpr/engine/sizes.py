"""How large the sets of a job are, and how many rows and columns they make: from their indices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols

from dlpr.core.rows import Layout
from dlpr.descriptors import Descriptor
from dlpr.engine import memory
from dlpr.engine.pipeline import REFERENCES, Pipeline
from dlpr.stages.ingest import load_index, reading_of
from dlpr.stages.sources import most_rows
from dlpr.structures.checks import check_record
from dlpr.structures.parse import Record, read_frames
from dlpr.structures.selection import Where, frame_values

SAMPLED_FILES = 64


@dataclass(frozen=True)
class SetSize:
    """What the index of a set says."""

    n_structures: int
    n_environments: int
    largest_frame: int
    density: float
    volume: float

    @property
    def crowd(self) -> memory.Crowd:
        """What the memory of a descriptor depends on."""
        return memory.Crowd(self.largest_frame, self.density, self.n_structures, self.volume)


def look(steps: Pipeline, name: str) -> tuple[SetSize, list[Record]]:
    """The size of a set, and some of its frames for species and speed."""
    index = steps.index(name)
    n_structures = n_environments = largest = 0
    sample: list[Record] = []
    selection = steps.selection(name)
    for number in range(index.n_tasks):
        file = load_index(index, number)
        n_atoms = file.n_atoms[file.selected]
        n_structures += len(n_atoms)
        n_environments += int(n_atoms.sum())
        largest = max(largest, int(n_atoms.max()))
        if number < SAMPLED_FILES:
            frames = np.unique(file.selected[np.linspace(0, len(n_atoms) - 1, 8).astype(int)])
            sample += read_frames(file, frames.tolist(), reading_of(selection))
    if selection["where"]:
        where = Where(selection["where"])
        sample = [record for record in sample if where(frame_values(record))] or sample
    for record in sample:
        check_record(record, selection["minimum_distance"])
    volumes = [(len(r.number), abs(np.linalg.det(r.cell))) for r in sample if r.pbc.all()]
    density = max((n / volume for n, volume in volumes), default=0.0)
    volume = max((volume for _, volume in volumes), default=0.0)
    return SetSize(n_structures, n_environments, largest, density, volume), sample


def columns(
    steps: Pipeline, calculator: Descriptor, sizes: dict[str, SetSize]
) -> tuple[memory.MapSize, Layout]:
    """Columns of the feature map and of the model, as far as they are known beforehand."""
    n_species, model = len(calculator.species), steps.job.model
    widths, n_references = [calculator.n_features] * n_species, 0
    if model.kernel:
        spec, most = model.kernel.references, sizes["train"].n_environments
        count = spec.count
        if spec.file is not None:
            count = sizes[REFERENCES].n_environments
        elif spec.indices is not None:
            count = len(spec.indices)
        counts = count or 0 if not isinstance(count, dict) else 0
        widths = [
            min(most, count.get(chemical_symbols[z], 0) if isinstance(count, dict) else counts)
            for z in calculator.species
        ]
        n_references = sum(widths)
    shared = model.spec.centre_species == "shared"
    blocks = [widths[0] + n_species] if shared else [width + 1 for width in widths]
    return memory.MapSize(sum(widths), max(widths), n_references), Layout(tuple(blocks))


def count_rows(steps: Pipeline, size: SetSize) -> int:
    """Rows of the loss, if every structure has every label."""
    return most_rows(steps.kinds(), size.n_structures, size.n_environments)
