"""Whole runs on real data equal a plain serial evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import serial

from dlpr.api import open_job
from dlpr.engine.executors import WorkExecutor
from dlpr.engine.pipeline import Pipeline
from dlpr.engine.workspace import Workspace
from dlpr.handles import Result

pytestmark = [pytest.mark.shared, pytest.mark.timeout(1200)]
RTOL = 1e-7


def soap(radius: float, max_angular: int, max_radial: int) -> dict[str, Any]:
    return {
        "cutoff": {"radius": radius, "smoothing": {"type": "ShiftedCosine", "width": 0.5}},
        "density": {"type": "Gaussian", "width": 0.4},
        "basis": {
            "type": "TensorProduct",
            "max_angular": max_angular,
            "radial": {"type": "Gto", "max_radial": max_radial},
        },
    }


CASES = {
    "carbon": ("c_gap17_test_pbe_wang24", "large_C_64000_amorphous", soap(4.5, 5, 4)),
    "silicon slab": ("zuo_Si_train", "large_Si_8412_substrate", soap(5.0, 6, 5)),
    "two species": ("inp_fitsnap@::24", "inp_fitsnap@5::197", soap(5.0, 3, 3)),
    "three species": ("mol_ethanol@::10", "large_CHO_5491_aC_water", soap(4.0, 3, 3)),
}


def pattern(name: str) -> tuple[str, str]:
    file, _, index = name.partition("@")
    return f"{file}.extxyz.gz", index or ":"


@pytest.mark.parametrize("case", CASES)
def test_run_equals_serial_evaluation(case: str, shared: Path, tmp_path: Path) -> None:
    train, test, hypers = CASES[case]
    files = {name: "@".join(pattern(one)) for name, one in (("train", train), ("test", test))}
    job = {
        "output": str(tmp_path),
        "train": {"files": str(shared / "data" / files["train"])},
        "test": {"film": {"files": str(shared / "data" / files["test"])}},
        "descriptor": {"soap": hypers},
        "model": {"linear": {"regularizer": 1e-8}},
    }
    steps = Pipeline(open_job(job), Workspace(tmp_path, WorkExecutor()))
    steps.result()
    found = Result(tmp_path).lpr("film")
    frames = {
        name: ase.io.read(shared / "data" / pattern(one)[0], pattern(one)[1])
        for name, one in (("train", train), ("test", test))
    }
    expected = serial.rigidities(frames["train"], frames["test"], hypers, 1e-8)
    np.testing.assert_allclose(found, expected, rtol=RTOL)
