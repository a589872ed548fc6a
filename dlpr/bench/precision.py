"""Digits that a rigidity loses where features are stored as float32: carbon of real data sets."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dlpr.bench.fabricate import warm_pipeline
from dlpr.bench.frames import carbon_job
from dlpr.bench.measure import Bench, Row, n_cores
from dlpr.handles import Result
from dlpr.stages.factor import factor_facts

TRAIN, OTHER = "c_gap17_bulk_cryst.extxyz.gz", "c_xpot_highT_md.extxyz.gz"
"""Crystals of C-GAP-17 (Deringer and Csanyi 2017), and molecular dynamics at high temperature (du
Toit and Deringer 2023)."""
DISTRIBUTIONS = {"in": f"{TRAIN}@1::2", "out of": f"{OTHER}@::10"}
"""Test sets: every second crystal, the others being the training set; liquids."""


def measure(bench: Bench) -> Iterator[Row]:
    """Relative difference of LPR between the two precisions, beside the bound that is stated."""
    name = "LPR from features of float32, real carbon"
    lacking = [file for file in (TRAIN, OTHER) if not (bench.data / file).exists()]
    if lacking:
        note = f"skipped: {bench.data} has no {' and no '.join(lacking)} (--data)"
        yield Row(name, None, note=note)
        return
    exact, _ = _lpr(bench, "float64")
    found, stated = _lpr(bench, "float32")
    for distribution, lpr in found.items():
        error = np.abs(lpr / exact[distribution] - 1.0)
        size = {"distribution": distribution, "environments": len(lpr)}
        against = "features of float64"
        note = f"median {np.median(error):.1e}"
        yield Row(name, float(error.max()), "", size, against, stated, True, note=note)


def _lpr(bench: Bench, dtype: str) -> tuple[dict[str, NDArray[np.float64]], float]:
    """LPR of both sets, and the relative error that the run states."""
    folder = bench.data.absolute()
    tests = {"in": DISTRIBUTIONS["in"], "out": DISTRIBUTIONS["out of"]}
    job = carbon_job(
        bench.scratch,
        n_cores(),
        output=dtype,
        train={"files": str(folder / f"{TRAIN}@::2")},
        test={name: {"files": str(folder / file)} for name, file in tests.items()},
        solver="qr",
        storage={"dtype": dtype},
    )
    with warm_pipeline(job) as steps:
        steps.result()
        accuracy = factor_facts(steps.factor())["conditioning"]["accuracy"]
    result = Result(job.path(job.output))
    names = zip(DISTRIBUTIONS, tests, strict=True)
    return {distribution: result.lpr(test) for distribution, test in names}, float(accuracy)
