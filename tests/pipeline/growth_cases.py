"""Data that grow, folders that hold what was computed of them, and what runs computed anew."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pipeline_cases import (
    HYPERS,
    SPECIES,
    Outcome,
    crystals,
    make_job,
    run,
    store,
)

from dlpr.job import Job
from dlpr.stages import fold as fold_stage
from dlpr.stages import ingest as ingest_stage
from dlpr.stages import result as result_stage
from dlpr.store.folder import folders

SYMBOLS = SPECIES[2]
NAMES = [f"train_{k:02d}.xyz" for k in range(0, 60, 10)]
FEWEST = {
    **HYPERS,
    "basis": {
        "type": "TensorProduct",
        "max_angular": 1,
        "radial": {"type": "Gto", "max_radial": 0},
    },
}
"""12 columns, so that some sixty structures make several partials."""
N_FRAMES, N_GROUPS = 6, 2
NUMERICS = {"block_environments": 5, "task_environments": 15, "fold_block_rows": 3}
"""Structures are cut by tasks and blocks."""


@pytest.fixture(scope="module", autouse=True)
def small_tasks() -> Iterator[None]:
    """A file makes a part or two, six rows a partial, thirty environments a chunk of a result."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(result_stage, "CHUNK_ROWS", 30)
        patch.setattr(ingest_stage, "TASK_ATOMS", 60)
        patch.setattr(ingest_stage, "FEWEST_ATOMS", 20)
        patch.setattr(fold_stage, "FEWEST_ROWS", 0)
        patch.setattr(fold_stage, "TASK_FLOPS", 6.0 * 12**2)
        yield


FORMS: dict[str, dict[str, Any]] = {
    "cholesky": {"solver": "cholesky"},
    "qr": {"solver": "qr"},
    "tiles": {"solver": "cholesky", "numerics": {**NUMERICS, "tile_columns": 6}},
    "dual": {"solver": "dual", "hypers": HYPERS},
}
FOLD = {"cholesky": "hessian", "qr": "triangle", "tiles": "hessian", "dual": "rows"}


def job_in(folder: Path, output: str, form: str = "cholesky") -> Job:
    return make_job(
        folder,
        {"files": "train_*.xyz", "group_by": "config_type"},
        {"train": "train", "test": {"files": "test_*.xyz"}},
        {"regularizer": 1e-3},
        output=output,
        **{"hypers": FEWEST, "numerics": NUMERICS, "store_test_features": True, **FORMS[form]},
    )


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with input files, and finished runs by the solvers that were asked for."""
    folder = tmp_path_factory.mktemp("growth")
    for number, name in enumerate(NAMES):
        store(folder / name, crystals(SYMBOLS, N_FRAMES, seed=number))
    for number in (0, 2):
        store(folder / f"test_{number}.xyz", crystals(SYMBOLS, N_FRAMES, seed=50 + number))
    return folder


@pytest.fixture
def bench(pristine: Path, tmp_path: Path) -> Iterator[Path]:
    """The same folder, to be disturbed: jobs write to a copy of a finished run."""
    for path in pristine.glob("*.xyz"):
        shutil.copy2(path, tmp_path)
    yield pristine
    for path in [*pristine.glob("bench-*"), *pristine.glob("fresh*")]:
        shutil.rmtree(path)
    for path in pristine.glob("*.xyz"):
        path.unlink()
    for path in tmp_path.glob("*.xyz"):
        shutil.copy2(path, pristine)


def finished(bench: Path, form: str = "cholesky") -> Path:
    """A copy of a finished run, to be continued."""
    if not (bench / f"out-{form}").exists():
        run(job_in(bench, f"out-{form}", form))
    output = bench / f"bench-{form}"
    shutil.copytree(bench / f"out-{form}", output, symlinks=True)
    return output


def contents(output: Path) -> dict[str, set[str]]:
    """What all finished tasks of an output folder have put out, by stage."""
    found: dict[str, set[str]] = {}
    for folder in folders(output / "work"):
        receipts = [folder.receipt(task) for task in range(folder.n_tasks)]
        here = {receipt.content for receipt in receipts if receipt is not None}
        found.setdefault(folder.stage, set()).update(here)
    return found


def computed(found: Outcome, role: str) -> set[str]:
    """What the tasks have put out that were done in this run."""
    return {
        event.receipt.content
        for event in found.events
        if event.kind == "task" and event.stage == role and event.receipt is not None
    }


def reason(found: Outcome, role: str) -> str:
    return next(e.text for e in found.events if e.kind == "stage" and e.stage == role)


def new_file(name: str) -> Callable[[Path], int]:
    def change(folder: Path) -> int:
        store(folder / name, crystals(SYMBOLS, N_FRAMES, seed=99))
        return 1

    return change
