"""How long a run takes on workers that are not here: a model with measured constants.

Every stage is a number of equal tasks that `DaskExecutor` hands out one after the other. It takes
as long as its work divided by the workers, or as the hand-out, whichever is longer; stages follow
each other. Numbers of tasks, blocks and tiles are those of dlpr's own plans.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import numpy as np

from dlpr.bench.fabricate import Waves
from dlpr.bench.frames import LARGE
from dlpr.bench.measure import Bench, Json, Row
from dlpr.bench.report import HOURS, LOAD, TRAFFIC
from dlpr.core.rows import Layout
from dlpr.core.tiles import Tiling
from dlpr.engine import memory
from dlpr.engine.blocks import planned_blocks
from dlpr.engine.estimate import PARSED_ATOMS
from dlpr.engine.factor_size import FactorSize
from dlpr.job import Numerics
from dlpr.stages.fold import cut, form_of, run_rows
from dlpr.stages.ingest import TASK_ATOMS
from dlpr.stages.rigidity import TILED_ROWS

ENVIRONMENTS = 10**8
COLUMNS = (1_000, 3_000, 10_000, 30_000, 50_000)
WORKERS = (1, 2, 10, 100, 1_000)
ROWS_PER_COLUMN, ATOMS_PER_ROW = 20, 64
"""The training set that is reckoned with: structures for each column, atoms of each."""
FLOOR = 0.85
"""Share of the machine's limits that a pass reaches, where that is not measured."""
FILE_SYSTEM = 1e10
"""Bytes per second that a parallel file system gives all workers together: assumed."""
RESULT_NBYTES = 17
RIGIDITY = "rigidity of stored features"


@dataclass(frozen=True)
class Constants:
    """What one core does and what one task costs; measured by `limits` and `simulate`.

    Attributes
    ----------
    fold, solve : float
        Operations per second of the passes: of dsyrk and dtrmm, times the share of them that
        `passes` measured on all cores.
    factorization : float
        Seconds over D^3.
    soap : tuple of float
        Seconds of an environment: a constant, and for each column.
    disk, cache : float
        Bytes per second that one worker reads or writes, and that it reads from the page cache.
    handed_out : float
        Seconds of client and scheduler for each task, one after the other.
    own : float
        Seconds of a worker for each task, receipt included, beside the work itself.
    start : float
        Seconds of a run that has nothing to do: programs, cluster, stages.
    """

    fold: float
    solve: float
    factorization: float
    soap: tuple[float, float]
    disk: float
    cache: float
    handed_out: float
    own: float
    start: float

    @classmethod
    def of(cls, bench: Bench) -> Constants:
        """Those that were measured, of the largest D and the most workers."""
        largest = bench.rows("factorize")[-1]
        assert largest.value is not None
        measured = bench.rows("SOAP")
        columns = [float(row.size["columns"]) for row in measured]
        seconds = [1e-3 * (row.value or 0.0) for row in measured]
        slope, constant = np.polyfit(columns, seconds, 1)
        return cls(
            fold=1e9 * bench.value("dsyrk", threads=1) * _share(bench, "fold of stored rows"),
            solve=1e9 * bench.value("dtrmm", threads=1) * _share(bench, RIGIDITY),
            factorization=largest.value / largest.size["columns"] ** 3,
            soap=(max(0.0, float(constant)), max(0.0, float(slope))),
            disk=1e9 * min(bench.value("disk read"), bench.value("disk write")),
            cache=1e9 * bench.value("page cache read"),
            handed_out=1e-3 * bench.value("client and scheduler"),
            own=1e-3 * (bench.value("worker's own") + bench.value("receipt")),
            start=bench.value("smallest run"),
        )


def _share(bench: Bench, name: str) -> float:
    """What a pass reached at the largest D."""
    return min(1.0, bench.value(name)) if bench.rows(name) else FLOOR


@dataclass(frozen=True)
class Workload:
    """A job's size, one central species.

    Attributes
    ----------
    n_columns : int
        D.
    n_environments : int
        Of the test set; features are computed, nothing is stored but results.
    n_rows, n_train : int
        Structures and environments of the training set.
    """

    n_columns: int
    n_environments: int
    n_rows: int
    n_train: int

    @classmethod
    def usual(cls, n_columns: int, n_environments: int = ENVIRONMENTS) -> Workload:
        """With the training set that is reckoned with."""
        n_rows = ROWS_PER_COLUMN * n_columns
        return cls(n_columns, n_environments, n_rows, ATOMS_PER_ROW * n_rows)


@dataclass(frozen=True)
class StageCost:
    """A stage: its tasks, the seconds of a core for each of them, and the bytes that all move."""

    stage: str
    n_tasks: int
    task_seconds: float
    nbytes: float


def tiling(n_columns: int, numerics: Numerics) -> Tiling:
    """Tiles of a Hessian of one block."""
    return cut(Layout((n_columns + 1,)), numerics.tile_columns)


def most_partials(work: Workload, numerics: Numerics) -> int:
    """Partials of each tile at most, which are added one after the other.

    Runs of rows end where the data say, after half of `run_rows` at the earliest.
    """
    rows = run_rows(work.n_rows, 1, work.n_columns + 2, numerics.partials_budget)
    return ceil(2 * work.n_rows / rows)


def stage_costs(
    work: Workload, constants: Constants, numerics: Numerics, n_workers: int
) -> list[StageCost]:
    """The stages of a run, in order; the waves of a factorization in tiles are one each."""
    d, square = work.n_columns, work.n_columns**2
    _, size = planned_blocks(numerics, d)
    tiles, depth = tiling(d, numerics), most_partials(work, numerics)
    n_atoms = work.n_train + work.n_environments
    features = constants.soap[0] + constants.soap[1] * d
    solve = square / constants.solve
    if tiles.n_tiles > 1:  # the factor is read anew for so many environments
        solve += 4.0 * square / TILED_ROWS / constants.cache
    rows_nbytes = 8.0 * work.n_rows * d

    def stage(name: str, n_tasks: int, core_seconds: float, nbytes: float) -> StageCost:
        return StageCost(name, n_tasks, core_seconds / n_tasks, nbytes)

    n_train_tasks, n_tasks = ceil(work.n_train / size), ceil(work.n_environments / size)
    fold = work.n_rows * square / constants.fold
    # a part's checksum is of all its columns, so every tile's task reads them all
    reading = rows_nbytes * len(tiles.pairs()) + 8.0 * depth * square
    results = RESULT_NBYTES * work.n_environments
    return [
        stage("structures", ceil(n_atoms / TASK_ATOMS), n_atoms / PARSED_ATOMS, 120.0 * n_atoms),
        stage("rows", n_train_tasks, work.n_train * features, rows_nbytes),
        stage("folds", depth * len(tiles.pairs()), fold, reading),
        *_factor(tiles, depth, constants),
        stage(
            "rigidity",
            n_tasks,
            work.n_environments * (features + solve),
            results + 4.0 * square * min(n_workers, n_tasks),
        ),
        stage("result", 1, 2 * results / constants.disk, 0.0),
    ]


def _factor(tiles: Tiling, depth: int, constants: Constants) -> list[StageCost]:
    """Adding the partials and factorizing: in one task, or wave by wave in tiles.

    Row i of T rows of tiles takes its tile on the diagonal, then the T - 1 - i beside it, each less
    i products of tiles above.
    """
    width = max(tiles.widths)
    adding = 8.0 * depth * width**2 / constants.disk
    if tiles.n_tiles == 1:
        seconds = adding + constants.factorization * tiles.n_columns**3
        return [StageCost("factor", 1, seconds, 0.0)]
    unit = width**3 / constants.solve
    waves = []
    for i in range(tiles.n_tiles):
        waves.append(StageCost("factor", 1, adding + (i + 1 / 3) * unit, 0.0))
        if i + 1 < tiles.n_tiles:
            n_tasks = tiles.n_tiles - 1 - i
            waves.append(StageCost("factor", n_tasks, adding + (2 * i + 1) * unit, 0.0))
    return waves


def stage_seconds(n_tasks: int, task_seconds: float, n_workers: int, handed_out: float) -> float:
    """Seconds of a stage: rounds of tasks on the workers, or the hand-out and a last task."""
    rounds = ceil(n_tasks / n_workers) * task_seconds + min(n_workers, n_tasks) * handed_out
    return max(rounds, n_tasks * handed_out + task_seconds)


def run_seconds(
    work: Workload, constants: Constants, n_workers: int, numerics: Numerics
) -> dict[str, float]:
    """Seconds of every stage of a run, and of its start."""
    found = {"start": constants.start}
    rate = min(FILE_SYSTEM, n_workers * constants.disk)
    for cost in stage_costs(work, constants, numerics, n_workers):
        task_seconds = cost.task_seconds + constants.own
        seconds = stage_seconds(cost.n_tasks, task_seconds, n_workers, constants.handed_out)
        found[cost.stage] = found.get(cost.stage, 0.0) + max(seconds, cost.nbytes / rate)
    return found


def measure(bench: Bench) -> Iterator[Row]:
    """Hours for 10^8 environments, what a worker needs for them, and the model beside real runs."""
    constants, numerics = Constants.of(bench), Numerics()
    for row in bench.rows("whole run"):
        yield _beside(row, constants, numerics)
    for d in COLUMNS:
        work = Workload.usual(d)
        for n_workers in WORKERS:
            stages = run_seconds(work, constants, n_workers, numerics)
            size: Json = {"columns": d, "workers": n_workers, "environments": ENVIRONMENTS}
            samples = {stage: [seconds] for stage, seconds in stages.items()}
            yield Row(HOURS, sum(stages.values()) / 3600, "h", size, samples=samples)
            costs = stage_costs(work, constants, numerics, n_workers)
            n_tasks, nbytes = (sum(getattr(c, of) for c in costs) for of in ("n_tasks", "nbytes"))
            load = 100 * n_tasks * constants.handed_out / sum(stages.values())
            yield Row(LOAD, load, "%", size)
            yield Row(TRAFFIC, 1e-12 * nbytes, "TB", size)
        size = {"columns": d}
        yield Row("tasks", n_tasks, "tasks", size)
        yield Row("depth of the combination", most_partials(work, numerics), "partials", size)
        yield Row("chunk rows", planned_blocks(numerics, d)[0], "environments", size)
        yield Row("memory of a worker", worker_nbytes(work, numerics) / 2**30, "GiB", size)


def _beside(row: Row, constants: Constants, numerics: Numerics) -> Row:
    """The model of a run that was made, over what it took."""
    size = row.size
    n_rows = size["train environments"] // ATOMS_PER_ROW
    work = Workload(size["columns"], size["environments"], n_rows, size["train environments"])
    model = sum(run_seconds(work, constants, size["workers"], numerics).values())
    assert row.value is not None
    samples = {"seconds": [row.value], "model": [model]}
    return Row("model / whole run", model / row.value, "", size, "real run", samples=samples)


def worker_nbytes(work: Workload, numerics: Numerics) -> int:
    """What a worker needs that does one task at a time: dlpr's own promise."""
    d = work.n_columns
    block, task = planned_blocks(numerics, d)
    form = form_of("auto", 1.0, work.n_rows, d, numerics.tile_columns)
    size = FactorSize(form, Layout((d,)), work.n_rows, numerics.tile_columns)
    crowd = memory.Crowd(LARGE, memory.DENSITY, work.n_environments // LARGE)
    calculator = Waves({"waves": d}, [6])
    return memory.BASE_NBYTES + max(
        memory.fold_nbytes(d, numerics.tile_columns, numerics.fold_block_rows, 0),
        size.factorize_nbytes,
        memory.rigidity_nbytes(calculator, size, memory.MapSize(d, d), block, task, crowd),
    )
