"""A Hessian beyond any worker's memory, and tiles beside the one-piece result where both can be."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dlpr.bench.fabricate import fabricated_job, warm_pipeline
from dlpr.bench.measure import Bench, Row, timed
from dlpr.bench.passes import fabricate_rows
from dlpr.bench.watch import Spent, peak_nbytes, promised_nbytes
from dlpr.handles import Result
from dlpr.job import Job
from dlpr.job.cluster import n_cores
from dlpr.stages.factor import factor_facts

MEMORY = "2GiB"
"""Of each of the workers that hold tiles."""
N_TEST = 1024


def measure(bench: Bench) -> Iterator[Row]:
    """LPR from tiles and from one piece; then a run whose Hessian no worker could hold."""
    equal, beyond = bench.sizes.tiled_columns
    folder = _data(bench, equal)
    whole, accuracy = _whole(_job(bench, folder, equal, "whole", memory="8GiB", tile=equal + 1))
    tiles = _tiled(_job(bench, folder, equal, "tiles", memory=MEMORY)).lpr
    size = {"columns": equal, "rows": bench.sizes.tiled_rows, "workers": n_cores()}
    name, against = "LPR from tiles, relative difference", "one piece, relative error of both"
    difference = float(np.abs(tiles / whole - 1.0).max())
    yield Row(name, difference, "", size, against, 2 * accuracy, True)
    shutil.rmtree(folder)
    found = _tiled(_job(bench, _data(bench, beyond), beyond, "tiles", memory=MEMORY))
    size = {**size, "columns": beyond, "environments": len(found.lpr)}
    note = f"a Hessian of {8e-9 * beyond**2:.2g} GB, workers of {MEMORY}; {found.longest}"
    yield Row("run in tiles", found.seconds, "s", size, note=note)
    note = f"{found.peak_nbytes / 2**20:.0f} MiB of {found.promised_nbytes / 2**20:.0f}"
    name, value = "memory of a worker / promise, tiles", found.peak_nbytes / found.promised_nbytes
    yield Row(name, value, "", size, "the stages' promise", 1.0, True, note=note)


def _data(bench: Bench, n_columns: int) -> Path:
    folder = bench.scratch / f"D{n_columns}"
    fabricate_rows(folder, n_columns, bench.sizes.tiled_rows, N_TEST)
    return folder


def _job(
    bench: Bench, folder: Path, n_columns: int, output: str, memory: str, tile: int | None = None
) -> Job:
    numerics = {"tile_columns": tile or bench.sizes.tile_columns}
    cluster = {"local": {"workers": n_cores(), "memory_per_worker": memory}}
    return fabricated_job(
        folder,
        n_columns,
        output=output,
        numerics=numerics,
        cluster=cluster,
        store_train_features=False,
    )


def _whole(job: Job) -> tuple[NDArray[np.float64], float]:
    """LPR with the Hessian in one piece, and the relative error that is stated."""
    with warm_pipeline(job) as steps:
        steps.result()
        assert steps.form() == "whole"
        accuracy = factor_facts(steps.factor())["conditioning"]["accuracy"]
    return Result(job.path(job.output)).lpr("test"), float(accuracy)


@dataclass(frozen=True)
class Tiled:
    """A run in tiles.

    Attributes
    ----------
    lpr : (n,) float64
    seconds : float
        Of the whole run on warm workers.
    longest : str
        The stages that took most of them.
    peak_nbytes, promised_nbytes : int
        Memory of a worker.
    """

    lpr: NDArray[np.float64]
    seconds: float
    longest: str
    peak_nbytes: int
    promised_nbytes: int


def _tiled(job: Job) -> Tiled:
    spent = Spent()
    with warm_pipeline(job, spent) as steps:
        seconds = timed(steps.result)
        assert steps.form() == "tiles"
        peak, promise = peak_nbytes(steps), promised_nbytes(steps)
    stages = sorted(spent.wall, key=spent.wall.__getitem__)[-4:][::-1]
    longest = ", ".join(f"{stage} {spent.wall[stage]:.0f} s" for stage in stages)
    return Tiled(Result(job.path(job.output)).lpr("test"), seconds, longest, peak, promise)
