"""What the training set of a run costs: rows, folds, fits, members, the regularizers tried."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dlpr.descriptors import Descriptor
from dlpr.descriptors.kind import DERIVED
from dlpr.engine import memory
from dlpr.engine.blocks import planned_blocks
from dlpr.engine.factor_size import FactorSize
from dlpr.engine.pipeline import Pipeline
from dlpr.engine.regularizer_choice import SAMPLE
from dlpr.engine.sizes import SetSize, count_rows
from dlpr.engine.timing import gradient_seconds
from dlpr.stages import fold as fold_stage
from dlpr.stages.derivatives import PART_NBYTES
from dlpr.stages.scan import RUN_ROWS, TASK_SAMPLE
from dlpr.stages.sources import most_rows
from dlpr.structures.parse import Record

FLOPS = 2e10
"""Dense linear algebra per core and second, on the low side."""
ITERATIONS = 30
"""Fits that a loss which is not squared is reckoned to take: more where outliers are many."""


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


def references(
    steps: Pipeline, calculator: Descriptor, mapping: memory.MapSize, size: SetSize
) -> StageEstimate:
    """References chosen among the training set: as many products as there are picks, and K_MM."""
    block, task, _ = blocks_of(steps, calculator, size)
    d, counts = calculator.n_features, [mapping.widest] * len(calculator.species)
    peak = memory.references_nbytes(
        calculator, block, task, size.crowd, size.n_environments, counts
    )
    flops = 2 * size.n_environments * d * mapping.widest + 30 * len(counts) * mapping.widest**3
    nbytes = 8 * mapping.n_references * (d + mapping.widest)
    return StageEstimate("references", 1, 6, nbytes, peak, flops / FLOPS / 3600)


def derivatives(
    steps: Pipeline,
    calculator: Descriptor,
    mapping: memory.MapSize,
    size: SetSize,
    sample: list[Record],
    of: str = "",
) -> StageEstimate:
    """Rows of forces and stresses: gradients timed on one small frame, and what a kernel adds."""
    kinds = {kind: kind in steps.derivatives() for kind in DERIVED}
    seconds = gradient_seconds(calculator, sample, size, **kinds)
    density = max(size.density, memory.DENSITY)
    n_neighbours = min(density * 4 / 3 * np.pi * calculator.cutoff**3, size.largest_frame)
    flops = (
        6 * n_neighbours * calculator.n_features * (mapping.widest if mapping.n_references else 0)
    )
    row_nbytes = 8 * mapping.n_columns
    nbytes = row_nbytes * most_rows(steps.derivatives(), size.n_structures, size.n_environments)
    widths = (mapping.widest,) * len(calculator.species)
    peak = memory.derivatives_nbytes(calculator, mapping, widths, size.crowd, **kinds)
    n_tasks = max(1, nbytes // PART_NBYTES)
    hours = size.n_environments * (seconds + flops / FLOPS) / 3600
    name = f"rows of {' and '.join(kind for kind in kinds if kinds[kind])}{of}"
    return StageEstimate(name, n_tasks, 2 * n_tasks + 4, nbytes, peak, hours)


def blocks_of(steps: Pipeline, calculator: Descriptor, size: SetSize) -> tuple[int, int, int]:
    """Environments of a block and of a task, and how many tasks there are."""
    block, task = planned_blocks(steps.job.numerics, calculator.n_features)
    return block, task, max(1, -(-size.n_environments // task))


def features(
    steps: Pipeline, calculator: Descriptor, name: str, size: SetSize, seconds: float
) -> StageEstimate:
    """Features of a set that are kept, of so many seconds for an environment."""
    block, _, n_tasks = blocks_of(steps, calculator, size)
    itemsize = np.dtype(steps.job.storage.dtype).itemsize
    return StageEstimate(
        f"features of {name}",
        n_tasks,
        -(-size.n_environments // block) + n_tasks + 30,
        size.n_environments * calculator.n_features * itemsize,
        memory.block_nbytes(calculator, block, size.crowd),
        size.n_environments * seconds / 3600,
    )


def training(
    steps: Pipeline,
    calculator: Descriptor,
    mapping: memory.MapSize,
    factor: FactorSize,
    size: SetSize,
    seconds: float,
) -> list[StageEstimate]:
    """From rows to the factor, fits of a loss that is not squared among them."""
    job, width = steps.job, factor.layout.n_columns
    stages: list[StageEstimate] = []
    if job.store_train_features:
        stages.append(features(steps, calculator, "train", size, seconds))
    seconds = 0.0 if job.store_train_features else seconds
    stages.append(_rows("rows", steps, calculator, mapping, size, seconds))
    cubic, task_nbytes = 5 * width**3, factor.factorize_nbytes
    n_factor = 1
    if factor.form == "rows":
        cubic = 6 * factor.n_rows**2 * width
    else:
        stages.append(_folds(steps, factor, size, factor.n_rows))
    if job.loss.is_reweighted:
        stages += _fits(steps, factor, size)
    if factor.form == "tiles":
        n_orders = factor.layout.n_blocks
        tiles = fold_stage.cut(factor.layout, factor.tile_columns)
        n_factor = n_orders * len(tiles.pairs()) + 1
        cubic = n_orders * width**3 // 3
    hours = cubic / FLOPS / 3600
    on_disk = factor.on_disk_nbytes
    stages.append(StageEstimate("factor", n_factor, 2 * n_factor + 4, on_disk, task_nbytes, hours))
    return stages


def _fits(steps: Pipeline, factor: FactorSize, size: SetSize) -> list[StageEstimate]:
    """Folds and fits of a loss that is not squared; what is squared is folded once."""
    loss, width = steps.job.loss, factor.layout.n_columns
    n_rows = most_rows(loss.reweighted, size.n_structures, size.n_environments)
    once, n = _folds(steps, factor, size, n_rows), ITERATIONS + 1
    folds = replace(
        once,
        stage="folds of fits",
        n_tasks=n * once.n_tasks,
        n_files=n * once.n_files,
        nbytes=n * once.nbytes,
        core_hours=n * once.core_hours,
    )
    hours = n * width**3 / FLOPS / 3600
    nbytes = n * 16 * width
    fits = StageEstimate("fits", n, 6 * n, nbytes, factor.factorize_nbytes, hours)
    return [folds, fits]


def _rows(
    role: str,
    steps: Pipeline,
    calculator: Descriptor,
    mapping: memory.MapSize,
    size: SetSize,
    seconds: float,
) -> StageEstimate:
    block, _, n_tasks = blocks_of(steps, calculator, size)
    n_rows = -(-size.n_structures // n_tasks) + 2
    peak = memory.rows_nbytes(calculator, mapping, block, size.crowd, n_rows)
    nbytes = 8 * size.n_structures * mapping.n_columns
    hours = size.n_environments * seconds / 3600
    return StageEstimate(role, n_tasks, 2 * n_tasks + 4, nbytes, peak, hours)


def scan(
    steps: Pipeline,
    calculator: Descriptor,
    mapping: memory.MapSize,
    factor: FactorSize,
    sizes: dict[str, SetSize],
    sample: list[Record],
    seconds: float,
) -> list[StageEstimate]:
    """Rows of the set that is to judge, one decomposition, and what it makes of these."""
    name, n_mu = steps.job.model.spec.scan.on, len(steps.job.model.spec.scan.regularizers)
    size, width = sizes[name], factor.layout.n_columns
    few = factor.n_rows if factor.form == "rows" else None
    rank, n_rows = min(factor.n_rows, width), count_rows(steps, size)
    stages = [_rows(f"rows of {name}", steps, calculator, mapping, size, seconds)]
    if steps.derivatives():
        stages.append(derivatives(steps, calculator, mapping, size, sample, f" of {name}"))
    cubic = 6 * few**2 * width if few else 20 * width**3
    peak, hours = memory.decomposition_nbytes(width, few), cubic / FLOPS / 3600
    stages.append(StageEstimate("decomposition", 1, 6, 8 * width * rank, peak, hours))
    n_tasks = -(-n_rows // RUN_ROWS) + -(-SAMPLE // TASK_SAMPLE) + 1
    part_nbytes = _part_nbytes(steps, mapping.n_columns, size)
    peak = memory.scan_nbytes(calculator, mapping, size.crowd, width, rank, n_mu, part_nbytes)
    flops = 2 * width * (n_mu * (n_rows + rank * n_tasks) + rank * SAMPLE)
    hours = (flops / FLOPS + SAMPLE * seconds) / 3600
    role, nbytes = f"regularizers tried on {name}", 8 * n_mu * (width + SAMPLE)
    return [*stages, StageEstimate(role, n_tasks, 2 * n_tasks + 4, nbytes, peak, hours)]


def _part_nbytes(steps: Pipeline, n_columns: int, size: SetSize) -> int:
    """The largest part of the rows of forces and stresses, if the loss has any."""
    if not steps.derivatives():
        return 0
    kinds = {kind: kind in steps.derivatives() for kind in DERIVED}
    return memory.derivative_part_nbytes(n_columns, size.crowd, **kinds)


def _folds(steps: Pipeline, factor: FactorSize, size: SetSize, n_rows: int) -> StageEstimate:
    """Partials of so many rows."""
    numerics, width = steps.numerics(), factor.layout.n_columns
    tiles = fold_stage.cut(factor.layout, numerics["tile_columns"])
    run_rows = fold_stage.run_rows(n_rows, 1, width, numerics["partials_nbytes"])
    n_runs = -(-n_rows // run_rows)
    n_tasks = n_runs * len(tiles.pairs())
    block, part_nbytes = numerics["fold_block_rows"], _part_nbytes(steps, width, size)
    nbytes = memory.fold_nbytes(width, max(tiles.widths), block, part_nbytes)
    kinds = {"cholesky": 1, "eigh": 1, "qr": 2}.get(steps.job.solver, 3)
    hours = kinds * n_rows * width**2 / FLOPS / 3600
    partials = 8 * width**2 * n_runs
    return StageEstimate("folds", n_tasks, 2 * n_tasks + 4, partials, nbytes, hours)


def committee_members(steps: Pipeline, factor: FactorSize, size: SetSize) -> list[StageEstimate]:
    """Members drawn at once, or folded and fitted one by one."""
    n, width, committee = factor.n_members, factor.layout.n_columns, steps.job.committee
    nbytes = 8 * n * width
    if committee is None or committee.subsample is None:
        hours = n * width**2 / FLOPS / 3600
        return [StageEstimate("committee", 1, 6, nbytes, factor.draw_nbytes, hours)]
    flops, stages = width**3 / 3, []
    if factor.form == "rows":
        flops = 6 * factor.n_rows**2 * width
    else:
        one, part = _folds(steps, factor, size, factor.n_rows), committee.subsample.fraction
        stages.append(
            StageEstimate(
                "folds of the committee",
                n * one.n_tasks,
                2 * n * one.n_tasks + 4,
                n * one.nbytes,
                one.task_nbytes,
                n * part * one.core_hours,
            )
        )
    hours = n * flops / FLOPS / 3600
    peak = factor.factorize_nbytes
    stages.append(StageEstimate("committee", n, 2 * n + 4, nbytes, peak, hours))
    return stages


def cross_validation(steps: Pipeline, factor: FactorSize, size: SetSize) -> list[StageEstimate]:
    """Rows folded once more, fold by fold, and a fit and a factor for each of them."""
    spec, width = steps.job.cross_validation, factor.layout.n_columns
    assert spec is not None
    n, stages = spec.folds, []
    cubic = 6 * factor.n_rows**2 * width if factor.form == "rows" else width**3
    if factor.form == "whole" and spec.by != "group":
        once = _folds(steps, factor, size, factor.n_rows)
        n_tasks = n * -(-once.n_tasks // n)
        stages.append(
            replace(
                once,
                stage="folds of the cross-validation",
                n_tasks=n_tasks,
                n_files=2 * n_tasks + 4,
                nbytes=8 * width**2 * n_tasks,
            )
        )
    solved = size.n_structures * width**2
    hours = (n * cubic + solved) / FLOPS / 3600
    part_nbytes = _part_nbytes(steps, width, size)
    peak = memory.cross_validation_nbytes(factor, part_nbytes, size.n_structures)
    nbytes = 100 * size.n_structures
    stages.append(StageEstimate("cross-validation", n + 1, 2 * n + 20, nbytes, peak, hours))
    return stages
