"""What a run would do, before it is done: tasks, files, bytes, memory, core-hours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dlpr.core.rows import Layout
from dlpr.descriptors import Descriptor, descriptor
from dlpr.engine import memory
from dlpr.engine.check import check_committee, check_cross_validation
from dlpr.engine.factor_size import FactorSize, takes_basis
from dlpr.engine.pipeline import Pipeline
from dlpr.engine.sizes import SetSize, columns, count_rows, look
from dlpr.engine.starter import Size
from dlpr.engine.timing import environment_seconds, gradient_seconds
from dlpr.engine.training_costs import (
    FLOPS,
    StageEstimate,
    blocks_of,
    committee_members,
    cross_validation,
    derivatives,
    features,
    references,
    scan,
    training,
)
from dlpr.errors import ResourceError
from dlpr.job import SetSpec
from dlpr.stages import ingest as ingest_stage
from dlpr.stages.force_tasks import TASK_ATOMS
from dlpr.stages.result import chunks_of
from dlpr.stages.structures import CHUNK_ROWS
from dlpr.structures.parse import Record

PARSED_ATOMS = 2e5
"""Atoms of text parsed and checked per core and second, on the low side."""


@dataclass(frozen=True)
class Estimate:
    """A whole run.

    Attributes
    ----------
    sets : dict of str to SetSize
    layout : Layout
    stages : list of StageEstimate
    species : tuple of int
        Of the sampled frames.
    """

    sets: dict[str, SetSize]
    layout: Layout
    stages: list[StageEstimate]
    species: tuple[int, ...]

    @property
    def longest_task(self) -> StageEstimate:
        """The stage whose tasks take longest."""
        return max(self.stages, key=lambda stage: stage.task_seconds)

    @property
    def peak_nbytes(self) -> int:
        """Memory of a worker that does one task at a time."""
        return memory.BASE_NBYTES + max(stage.task_nbytes for stage in self.stages)


def estimate(steps: Pipeline) -> Estimate:
    """Estimate a run from the index of its files and a sample of its frames."""
    sizes: dict[str, SetSize] = {}
    sample: list[Record] = []
    for name in steps.set_names():
        sizes[name], records = look(steps, name)
        sample += records
    species = sorted({int(z) for record in sample for z in np.unique(record.number)})
    calculator = descriptor(steps.job.descriptor_of("train"), species)
    mapping, layout = columns(steps, calculator, sizes)
    n_rows = count_rows(steps, sizes["train"])
    seconds = environment_seconds(calculator, sample)
    stages = [_ingest(name, size) for name, size in sizes.items()]
    has_constants = steps.job.model.spec.baseline.composition is not None
    n_columns = layout.n_columns - (0 if has_constants else len(species))
    form = steps.form_of(n_rows, n_columns)
    tile_columns = steps.job.numerics.tile_columns
    basis = takes_basis(steps.job.solver, steps.job.model.spec.least_regularizer)
    n_members = steps.job.committee.spec.members if steps.job.committee else 0
    n_parts = len(calculator.components)
    factor = FactorSize(form, layout, n_rows, tile_columns, n_parts, basis, n_members)
    stages += training(steps, calculator, mapping, factor, sizes["train"], seconds)
    if n_members:
        check_committee(steps.job, form, layout.n_columns)
        stages += committee_members(steps, factor, sizes["train"])
    if steps.job.cross_validation:
        check_cross_validation(steps.job, form, layout.n_columns)
        stages += cross_validation(steps, factor, sizes["train"])
    if steps.job.model.spec.scan:
        stages += scan(steps, calculator, mapping, factor, sizes, sample, seconds)
    if mapping.n_references:
        stages.append(references(steps, calculator, mapping, sizes["train"]))
    if steps.derivatives():
        stages.append(derivatives(steps, calculator, mapping, sizes["train"], sample))
    for name in sizes if steps.job.store_test_features else ():
        if name != "train":
            stages.append(features(steps, calculator, name, sizes[name], seconds))
    for name in steps.job.test:
        stages.append(_rigidity(steps, calculator, mapping, factor, name, sizes, seconds))
    if steps.job.test_forces:
        stages += [
            _forces(calculator, mapping, factor, name, _size_of(sizes, name), sample)
            for name in steps.job.test
        ]
    total = sum(_size_of(sizes, name).n_environments for name in steps.job.test)
    most = max(size.n_structures for size in sizes.values())
    nbytes = memory.result_nbytes(factor, most)
    chunks = [chunks_of(_size_of(sizes, name).n_environments) for name in steps.job.test]
    n_tasks = len(chunks) + sum(map(len, chunks))
    stages.append(StageEstimate("result", n_tasks, 20 * n_tasks, 18 * total, nbytes, 0.0))
    return Estimate(sizes, layout, stages, tuple(species))


def _forces(
    calculator: Descriptor,
    mapping: memory.MapSize,
    factor: FactorSize,
    name: str,
    size: SetSize,
    sample: list[Record],
) -> StageEstimate:
    """Rows of forces as of a training set, and three solves of full width for each atom."""
    n_tasks = -(-size.n_environments // TASK_ATOMS)
    reach = factor.n_rows if factor.form == "rows" else factor.layout.n_columns / 2
    flops = 3 * size.n_environments * 2 * factor.layout.n_columns * reach
    raw = (mapping.widest,) * len(calculator.species)
    peak = memory.forces_nbytes(calculator, factor, mapping, raw, size.crowd)
    seconds = gradient_seconds(calculator, sample, size, forces=True, stress=False)
    hours = (size.n_environments * seconds + flops / FLOPS) / 3600
    nbytes = 48 * size.n_environments
    return StageEstimate(f"forces of {name}", n_tasks, 2 * n_tasks + 4, nbytes, peak, hours)


def _size_of(sizes: dict[str, SetSize], name: str) -> SetSize:
    return sizes.get(name, sizes["train"])


def _ingest(name: str, size: SetSize) -> StageEstimate:
    n_tasks = max(1, -(-size.n_environments // ingest_stage.TASK_ATOMS))
    chunks = 4 * (ingest_stage.TASK_ATOMS // CHUNK_ROWS)
    return StageEstimate(
        f"structures of {name}",
        n_tasks,
        n_tasks * (60 + chunks) + 8,
        size.n_environments * 58 + size.n_structures * 300,
        memory.ingest_nbytes(size.largest_frame),
        size.n_environments / PARSED_ATOMS / 3600,
    )


def _rigidity(
    steps: Pipeline,
    calculator: Descriptor,
    mapping: memory.MapSize,
    factor: FactorSize,
    name: str,
    sizes: dict[str, SetSize],
    seconds: float,
) -> StageEstimate:
    size, layout = _size_of(sizes, name), factor.layout
    block, task, n_tasks = blocks_of(steps, calculator, size)
    flops = size.n_environments * max(layout.widths) ** 2
    flops += size.n_structures * layout.n_columns**2
    own = isinstance(steps.job.test[name], SetSpec)
    is_stored = steps.job.store_test_features if own else steps.job.store_train_features
    hours = (size.n_environments * (0.0 if is_stored else seconds) + flops / FLOPS) / 3600
    nbytes = 17 * size.n_environments + n_tasks * 16 * layout.n_columns
    peak = memory.rigidity_nbytes(calculator, factor, mapping, block, task, size.crowd)
    return StageEstimate(f"rigidity of {name}", n_tasks, 2 * n_tasks + 4, nbytes, peak, hours)


def check_lifetime(steps: Pipeline, size: Size) -> None:
    """Refuse tasks that would outlive their workers: such a task begins anew for ever.

    Raises
    ------
    ResourceError
    """
    if size.lifetime is None:
        return
    stage = estimate(steps).longest_task
    if stage.task_seconds > size.lifetime:
        raise ResourceError(
            f"a task of {stage.stage} takes about {stage.task_seconds:.0f} s, and a worker lives "
            f"{size.lifetime} s: it would never end. Give the jobs a longer `walltime`, or lower "
            f"numerics.task_environments."
        )
