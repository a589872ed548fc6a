"""What it costs when a training set grows by one part in a hundred, in a file of its own.

Counted are the stages whose cost follows the training set: index, structures, features, rows and
folds. Rigidities of test sets are to be evaluated anew, and the factorization is of D columns
whatever grows: neither is counted, on either side. The workers run before either clock does.

The set lies in one file of more atoms than a part of the structures holds, so that the new file
makes a part of its own. Small files share a part with what comes behind them: that part is done
anew (at most `TASK_ATOMS` of `dlpr.stages.ingest`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dlpr.api import pipeline
from dlpr.bench.fabricate import warm_client
from dlpr.bench.frames import SMALL, TRAIN, carbon, carbon_job, write_frames
from dlpr.bench.measure import Bench, Row
from dlpr.bench.watch import Spent
from dlpr.handles import Result
from dlpr.job import Job
from dlpr.job.cluster import n_cores
from dlpr.stages.factor import factor_facts

if TYPE_CHECKING:
    from distributed import Client

COUNTED = ("index of train", "structures of train", "features of train", "rows", "hessian")
"""Stages of which the cost counts."""
SHARE = 100
NEW = "new.xyz"
_TEST_FRAMES = 10


def measure(bench: Bench) -> Iterator[Row]:
    """CPU and wall of a set that has grown, over those from nothing, and whether results agree."""
    folder = bench.scratch / "growth"
    folder.mkdir()
    n_frames = max(SHARE, bench.sizes.grown_environments // TRAIN)
    _write(folder, n_frames)
    before = _job(folder, "grown", "train.xyz")
    with warm_client(before) as client:
        _run(before, client)
        grown, spent, accuracy = _run(_job(folder, "grown", "train.xyz", NEW), client)
        whole, full, _ = _run(_job(folder, "anew", "train.xyz", NEW), client)
    size = {"train environments": TRAIN * (n_frames + n_frames // SHARE), "workers": n_cores()}
    against = "a run from nothing: " + ", ".join(COUNTED)
    for name, ours, theirs in zip(
        ("CPU of tasks", "wall of stages"), spent.of(COUNTED), full.of(COUNTED), strict=True
    ):
        samples = {"dlpr": [ours], "from nothing": [theirs]}
        yield Row(f"growth by 1 %, {name}", ours / theirs, "", size, against, 0.03, True, samples)
    difference = float(np.abs(grown / whole - 1.0).max())
    note = "bitwise equal" if np.array_equal(grown, whole) else "not bitwise equal"
    name, against = "growth by 1 %, relative difference of LPR", "a run from nothing"
    yield Row(name, difference, "", size, against, accuracy, True, note=note)


def _write(folder: Path, n_frames: int) -> None:
    """The training set, what it grows by, and a small test set."""
    rng = np.random.default_rng(0)
    for name, count in (("train.xyz", n_frames), (NEW, n_frames // SHARE)):
        write_frames(folder / name, (carbon(TRAIN, rng) for _ in range(count)))
    write_frames(folder / "test-0.xyz", (carbon(SMALL, rng) for _ in range(_TEST_FRAMES)))


def _job(folder: Path, output: str, *files: str) -> Job:
    train = {"files": list(files)}
    return carbon_job(folder, n_cores(), output=output, train=train, solver="cholesky")


def _run(job: Job, client: Client) -> tuple[NDArray[np.float64], Spent, float]:
    """LPR of the test set, what the run took, and the relative error that it states."""
    spent = Spent()
    with pipeline(job, client=client, listeners=(spent,)) as steps:
        steps.result()
        accuracy = factor_facts(steps.factor())["conditioning"]["accuracy"]
    return Result(job.path(job.output)).lpr("carbon"), spent, float(accuracy)
