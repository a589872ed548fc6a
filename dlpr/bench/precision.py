"""Digits that a rigidity loses where features are stored as float32: carbon of real data sets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dlpr.api import pipeline
from dlpr.bench.fabricate import warm_client
from dlpr.bench.frames import carbon_job
from dlpr.bench.measure import Bench, Row
from dlpr.handles import Result
from dlpr.job import Job
from dlpr.job.cluster import n_cores
from dlpr.stages.factor import factor_facts

if TYPE_CHECKING:
    from distributed import Client

TRAIN, OTHER = "c_gap17_bulk_cryst.extxyz.gz", "c_xpot_highT_md.extxyz.gz"
"""Crystals of C-GAP-17 (Deringer and Csanyi 2017), and molecular dynamics at high temperature (du
Toit and Deringer 2023)."""
TESTS = {"crystals": ("in", f"{TRAIN}@1::2"), "liquids": ("out of", f"{OTHER}@::10")}
"""Test sets in and out of distribution: every second crystal, the others being the training set."""


def measure(bench: Bench) -> Iterator[Row]:
    """Relative difference of LPR between the two precisions, beside the bound that is stated."""
    name = "LPR from features of float32, real carbon"
    lacking = [file for file in (TRAIN, OTHER) if not (bench.data / file).exists()]
    if lacking:
        note = f"skipped: {bench.data} has no {' and no '.join(lacking)} (--data)"
        yield Row(name, None, note=note)
        return
    with warm_client(_job(bench, "float64")) as client:
        exact, _ = _lpr(_job(bench, "float64"), client)
        found, stated = _lpr(_job(bench, "float32"), client)
    for test, lpr in found.items():
        distribution = TESTS[test][0]
        error = np.abs(lpr / exact[test] - 1.0)
        size = {"distribution": distribution, "environments": len(lpr)}
        against = "features of float64"
        note = f"median {np.median(error):.1e}"
        yield Row(name, float(error.max()), "", size, against, stated, True, note=note)


def _job(bench: Bench, dtype: str) -> Job:
    folder = bench.data.absolute()
    return carbon_job(
        bench.scratch,
        n_cores(),
        output=dtype,
        train={"files": str(folder / f"{TRAIN}@::2")},
        test={name: {"files": str(folder / file)} for name, (_, file) in TESTS.items()},
        solver="qr",
        storage={"dtype": dtype},
    )


def _lpr(job: Job, client: Client) -> tuple[dict[str, NDArray[np.float64]], float]:
    """LPR of both sets, and the relative error that the run states."""
    with pipeline(job, client=client) as steps:
        steps.result()
        accuracy = factor_facts(steps.factor())["conditioning"]["accuracy"]
    result = Result(job.path(job.output))
    return {name: result.lpr(name) for name in TESTS}, float(accuracy)
