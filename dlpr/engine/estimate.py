"""What a run would do, before it is done: tasks, files, bytes, memory, core-hours."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from dlpr.core.models import Identity
from dlpr.core.rows import Layout
from dlpr.descriptors import Descriptor, Soap, descriptor
from dlpr.descriptors.gradients import derivative_nbytes, derivative_rows, has_stress
from dlpr.engine import memory
from dlpr.engine.blocks import default_block, default_task
from dlpr.engine.executors import Note
from dlpr.engine.pipeline import Pipeline
from dlpr.engine.sizes import SetSize, columns, count_rows, look
from dlpr.engine.starter import Size
from dlpr.engine.workspace import Workspace
from dlpr.errors import ResourceError
from dlpr.job import SetSpec
from dlpr.stages import fold as fold_stage
from dlpr.stages import ingest as ingest_stage
from dlpr.stages.derivatives import PART_NBYTES
from dlpr.stages.structures import CHUNK_ROWS
from dlpr.store.folder import Receipt, StageFolder
from dlpr.structures.frames import Piece
from dlpr.structures.parse import Record

SAMPLED_ATOMS = 512
FLOPS = 2e10
"""Dense linear algebra per core and second, on the low side."""
PARSED_ATOMS = 2e5
"""Atoms of text parsed and checked per core and second, on the low side."""


@dataclass(frozen=True)
class StageEstimate:
    """One stage of a run.

    Attributes
    ----------
    stage : str
    n_tasks : int
    n_files : int
        Inodes.
    nbytes : int
        On disk.
    task_nbytes : int
        What a task adds to a worker's memory.
    core_hours : float
    """

    stage: str
    n_tasks: int
    n_files: int
    nbytes: int
    task_nbytes: int
    core_hours: float

    @property
    def task_seconds(self) -> float:
        """What one of its tasks takes."""
        return 3600 * self.core_hours / max(1, self.n_tasks)


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
    seconds = _seconds_per_environment(calculator, sample)
    stages = [_ingest(name, size) for name, size in sizes.items()]
    has_constants = steps.job.model.spec.baseline.composition is not None
    n_columns = layout.n_columns - (0 if has_constants else len(species))
    form = steps.form_of(n_rows, n_columns)
    tile_columns = steps.job.numerics.tile_columns
    factor = memory.FactorSize(form, layout, n_rows, tile_columns, len(calculator.components))
    stages += _training(steps, calculator, mapping, factor, sizes["train"], seconds)
    if mapping.n_references:
        stages.append(_references(steps, calculator, mapping, sizes["train"]))
    if steps.kinds() != ["energy"]:
        stages.append(_derivatives(steps, calculator, mapping, sizes["train"], sample))
    for name in sizes if steps.job.store_test_features else ():
        if name != "train":
            stages.append(_features(steps, calculator, name, sizes[name], seconds))
    for name in steps.job.test:
        stages.append(_rigidity(steps, calculator, mapping, factor, name, sizes, seconds))
    total = sum(_size_of(sizes, name).n_environments for name in steps.job.test)
    largest = max(size.largest_frame for size in sizes.values())
    most = max(size.n_structures for size in sizes.values())
    nbytes = memory.result_nbytes(factor, largest, most)
    n_tests = len(steps.job.test)
    stages.append(StageEstimate("result", n_tests, 40 * n_tests, 18 * total, nbytes, 0.0))
    return Estimate(sizes, layout, stages, tuple(species))


def _references(
    steps: Pipeline, calculator: Descriptor, mapping: memory.MapSize, size: SetSize
) -> StageEstimate:
    """References chosen among the training set: as many products as there are picks, and K_MM."""
    block, task, _ = _blocks(steps, calculator, size)
    d, counts = calculator.n_features, [mapping.widest] * len(calculator.species)
    peak = memory.references_nbytes(
        calculator, block, task, size.crowd, size.n_environments, counts
    )
    flops = 2 * size.n_environments * d * mapping.widest + 30 * len(counts) * mapping.widest**3
    nbytes = 8 * mapping.n_references * (d + mapping.widest)
    return StageEstimate("references", 1, 6, nbytes, peak, flops / FLOPS / 3600)


def _derivatives(
    steps: Pipeline,
    calculator: Descriptor,
    mapping: memory.MapSize,
    size: SetSize,
    sample: list[Record],
) -> StageEstimate:
    """Rows of forces and stresses: gradients timed on one small frame, and what a kernel adds."""
    assert isinstance(calculator, Soap)
    kinds = {kind: kind in steps.kinds() for kind in ("forces", "stress")}
    record = min(sample, key=lambda record: len(record.number))
    species = record.number.astype(np.uint8)
    piece = Piece(record.position, species, record.cell, record.pbc)
    identity = Identity(calculator.n_features, len(calculator.species))
    usable = {kind: on and (kind == "forces" or has_stress(piece)) for kind, on in kinds.items()}
    start = time.process_time()
    if any(usable.values()):
        derivative_rows(calculator, piece, identity, **usable)
    seconds = (time.process_time() - start) / len(species)
    n_neighbours = max(size.density, memory.DENSITY) * 4 / 3 * np.pi * calculator.cutoff**3
    flops = (
        6 * n_neighbours * calculator.n_features * (mapping.widest if mapping.n_references else 0)
    )
    row_nbytes = 8 * mapping.n_columns
    nbytes = row_nbytes * (
        count_rows(steps, size) - size.n_structures * ("energy" in steps.kinds())
    )
    widths = (mapping.widest,) * len(calculator.species)
    peak = derivative_nbytes(calculator, size.largest_frame, n_neighbours, widths, **kinds)
    n_tasks = max(1, nbytes // PART_NBYTES)
    hours = size.n_environments * (seconds + flops / FLOPS) / 3600
    peak += 3 * PART_NBYTES + mapping.nbytes(calculator.n_features, 0)
    name = f"rows of {' and '.join(kind for kind in kinds if kinds[kind])}"
    return StageEstimate(name, n_tasks, 2 * n_tasks + 4, nbytes, peak, hours)


def _size_of(sizes: dict[str, SetSize], name: str) -> SetSize:
    return sizes.get(name, sizes["train"])


def _seconds_per_environment(calculator: Descriptor, sample: list[Record]) -> float:
    """Time the descriptor on a few environments."""
    pieces, count = [], 0
    for record in () if calculator.reads_rows else sample:
        if count < SAMPLED_ATOMS and len(record.number) <= SAMPLED_ATOMS:
            species = record.number.astype(np.uint8)
            pieces.append(Piece(record.position, species, record.cell, record.pbc))
            count += len(species)
    if not pieces:
        return 1e-3
    start = time.process_time()
    calculator.compute(pieces)
    return (time.process_time() - start) / count


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


def _blocks(steps: Pipeline, calculator: Descriptor, size: SetSize) -> tuple[int, int, int]:
    """Environments of a block and of a task, and how many tasks there are."""
    numerics = steps.job.numerics
    block = numerics.block_environments or default_block(calculator.n_features)
    task = numerics.task_environments or default_task(block, calculator.n_features)
    return block, task, max(1, -(-size.n_environments // task))


def _features(
    steps: Pipeline, calculator: Descriptor, name: str, size: SetSize, seconds: float
) -> StageEstimate:
    block, _, n_tasks = _blocks(steps, calculator, size)
    itemsize = np.dtype(steps.job.storage.dtype).itemsize
    return StageEstimate(
        f"features of {name}",
        n_tasks,
        -(-size.n_environments // block) + n_tasks + 30,
        size.n_environments * calculator.n_features * itemsize,
        memory.block_nbytes(calculator, block, size.crowd),
        size.n_environments * seconds / 3600,
    )


def _training(
    steps: Pipeline,
    calculator: Descriptor,
    mapping: memory.MapSize,
    factor: memory.FactorSize,
    size: SetSize,
    seconds: float,
) -> list[StageEstimate]:
    job, width = steps.job, factor.layout.n_columns
    block, _, n_tasks = _blocks(steps, calculator, size)
    featurize = size.n_environments * seconds / 3600
    stages: list[StageEstimate] = []
    if job.store_train_features:
        stages.append(_features(steps, calculator, "train", size, seconds))
    n_rows = -(-size.n_structures // n_tasks) + 2
    nbytes = memory.rows_nbytes(calculator, mapping, block, size.crowd, n_rows)
    sums = 8 * size.n_structures * mapping.n_columns
    hours = 0.0 if job.store_train_features else featurize
    stages.append(StageEstimate("rows", n_tasks, 2 * n_tasks + 4, sums, nbytes, hours))
    cubic, task_nbytes = 5 * width**3, factor.factorize_nbytes
    n_factor = 1
    if factor.form == "rows":
        cubic = 6 * factor.n_rows**2 * width
    else:
        stages.append(_folds(steps, factor, size))
    if factor.form == "tiles":
        n_orders = factor.layout.n_blocks
        tiles = fold_stage.cut(factor.layout, factor.tile_columns)
        n_factor = n_orders * len(tiles.pairs()) + 1
        cubic = n_orders * width**3 // 3
    hours = cubic / FLOPS / 3600
    on_disk = factor.on_disk_nbytes
    stages.append(StageEstimate("factor", n_factor, 2 * n_factor + 4, on_disk, task_nbytes, hours))
    return stages


def _folds(steps: Pipeline, factor: memory.FactorSize, size: SetSize) -> StageEstimate:
    numerics, width = steps.numerics(), factor.layout.n_columns
    tiles = fold_stage.cut(factor.layout, numerics["tile_columns"])
    run_rows = fold_stage.run_rows(factor.n_rows, 1, width, numerics["partials_nbytes"])
    n_runs = -(-factor.n_rows // run_rows)
    n_tasks = n_runs * len(tiles.pairs())
    nbytes = memory.fold_nbytes(width, max(tiles.widths), numerics["fold_block_rows"])
    kinds = {"cholesky": 1, "eigh": 1, "qr": 2}.get(steps.job.solver, 3)
    hours = kinds * factor.n_rows * width**2 / FLOPS / 3600
    partials = 8 * width**2 * n_runs
    return StageEstimate("folds", n_tasks, 2 * n_tasks + 4, partials, nbytes, hours)


def _rigidity(
    steps: Pipeline,
    calculator: Descriptor,
    mapping: memory.MapSize,
    factor: memory.FactorSize,
    name: str,
    sizes: dict[str, SetSize],
    seconds: float,
) -> StageEstimate:
    size, layout = _size_of(sizes, name), factor.layout
    block, task, n_tasks = _blocks(steps, calculator, size)
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


class _Missing(Exception):
    """A stage has something to do."""


class _Idle:
    """An executor that does nothing, and says so."""

    def run(
        self, folder: StageFolder, tasks: Sequence[int], nbytes: int, note: Note = print
    ) -> Iterator[Receipt]:
        raise _Missing

    def require(self, nbytes: int) -> None:
        """Nothing will run."""

    def close(self) -> None:
        """Nothing was started."""


def reused(steps: Pipeline) -> list[str]:
    """Stages of the job that are finished already, up to the first that is not."""
    workspace = Workspace(steps.workspace.output, _Idle())
    with suppress(_Missing):
        Pipeline(steps.job, workspace, steps.kernel).result()
        return list(workspace.used)
    return list(workspace.used)[:-1]
