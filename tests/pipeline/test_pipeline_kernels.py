"""BLAS kernels: the same one gives the same bits, another one is noticed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pipeline_cases import (
    HYPERS,
    SPECIES,
    arrays_of,
    assert_same_bits,
    crystals,
    make_job,
    output_of,
    process,
    shapes,
    store,
)

from dlpr.core.blas import blas_kernel
from dlpr.engine.output import write_job
from dlpr.errors import ClusterError
from dlpr.stages.tasks import run_task
from dlpr.store.folder import folders

WORK = """
import sys, dlpr
from dlpr.core.blas import blas_kernel
dlpr.work(sys.argv[1], rank=0)
print(blas_kernel())
"""
WITH_BLAS = {"hessian", "triangle", "factor", "rigidity", "result"}
"""Stages whose bits depend on the kernel."""
NEEDS = {"Haswell": {"avx2", "fma"}, "Nehalem": {"sse4_2"}, "SkylakeX": {"avx512f", "avx512vl"}}


def kernels_here() -> list[str]:
    """Kernels of OpenBLAS that this machine can run."""
    info = Path("/proc/cpuinfo")
    if "openblas" not in blas_kernel() or not info.exists():
        return []
    flags = set(info.read_text().partition("flags")[2].partition("\n")[0].split())
    return [kernel for kernel, needed in NEEDS.items() if needed <= flags]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, Path]]:
    """Kernel and output of runs: two of one kernel, one of another, one that nobody told."""
    here = kernels_here()
    if len(here) < 2:
        pytest.skip(f"needs two of OpenBLAS's kernels {', '.join(NEEDS)}; found {here}")
    folder = tmp_path_factory.mktemp("kernels")
    store(folder / "train.xyz", crystals(SPECIES[2], 70))
    store(folder / "test.xyz", crystals(SPECIES[2], 5, seed=3, big=4) + shapes(SPECIES[2]))
    plans = {"one": here[0], "again": here[0], "other": here[1], "untold": None}
    found: dict[str, tuple[str, Path]] = {}
    for pair in (("one", "again"), ("other", "untold")):
        running = {}
        for name in pair:
            write_plan(folder, name, plans[name])
            told = {} if plans[name] is None else {"OPENBLAS_CORETYPE": str(plans[name])}
            running[name] = process(WORK, folder / name, environment=told)
        for name, one in running.items():
            found[name] = output_of(one).strip().splitlines()[-1], folder / name
    return found


def write_plan(folder: Path, output: str, kernel: str | None) -> None:
    """A job that is badly conditioned enough for kernels to differ, planned for one of them."""
    (folder / output).mkdir()
    job = make_job(
        folder,
        test={"train": "train", "test": {"files": "test.xyz"}},
        linear={"regularizer": 1e-6},
        hypers=HYPERS,
        output=output,
        numerics={"block_environments": 16, "task_environments": 32},
    )
    write_job(folder / output, job)
    if kernel is not None:
        path = folder / output / "job.json"
        record = json.loads(path.read_text())
        parts = [part.rsplit(" ", 1)[0] for part in record["kernel"].split("; ")]
        record["kernel"] = "; ".join(f"{part} {kernel}" for part in parts)
        path.write_text(json.dumps(record))


def test_the_same_kernel_gives_the_same_bits(runs: dict[str, tuple[str, Path]]) -> None:
    assert runs["one"][0] == runs["again"][0] != runs["other"][0]
    assert_same_bits(runs["one"][1], runs["again"][1])
    for name in ("one", "other"):
        if runs[name][0] == runs["untold"][0]:
            assert_same_bits(runs[name][1], runs["untold"][1])


def test_kernels_agree_within_the_accuracy_that_runs_state(
    runs: dict[str, tuple[str, Path]],
) -> None:
    with pytest.raises(AssertionError):
        assert_same_bits(runs["one"][1], runs["other"][1])
    stated = [
        folder.receipts()[0].facts["conditioning"]["accuracy"]
        for name in ("one", "other")
        for folder in folders(runs[name][1] / "work")
        if folder.stage == "factor" and not folder.receipts()[0].facts["refused"]
    ]
    assert len(stated) == 2
    first, second = (arrays_of(runs[name][1]) for name in ("one", "other"))
    for name in ("train", "test"):
        for array in ("environment_lpr", "environment_prior_ratio", "structure_pr"):
            np.testing.assert_allclose(first[name][array], second[name][array], rtol=sum(stated))


def test_tasks_of_a_plan_for_another_kernel_are_refused(
    runs: dict[str, tuple[str, Path]],
) -> None:
    name = next(name for name in ("one", "other") if runs[name][0] != blas_kernel())
    kernel, output = runs[name]
    refused = set()
    for folder in folders(output / "work"):
        path = folder.path / "receipts/000000.json"
        receipt = path.read_bytes()
        folder.withdraw(0)
        if folder.stage in WITH_BLAS:
            with pytest.raises(ClusterError) as error:
                run_task(str(folder.path), 0)
            told = f"OPENBLAS_CORETYPE={kernel.split()[-1]}"
            assert all(part in str(error.value) for part in (kernel, blas_kernel(), told))
            refused.add(folder.stage)
            path.write_bytes(receipt)
        else:
            run_task(str(folder.path), 0)
    assert refused == WITH_BLAS


def test_a_process_with_another_kernel_is_refused_by_a_folder(
    runs: dict[str, tuple[str, Path]],
) -> None:
    """One folder, one kernel: whoever helps with another is told both, and changes nothing."""
    kernel, output = runs["again"]
    other = runs["other"][0]
    before = {folder.name for folder in folders(output / "work")}
    (rigidity, *_) = [f for f in folders(output / "work") if f.stage == "rigidity"]
    rigidity.withdraw(0)
    helper = process(WORK, output, environment={"OPENBLAS_CORETYPE": other.split()[-1]})
    said = helper.communicate(timeout=120)[1]
    assert helper.returncode != 0
    assert "ClusterError" in said
    assert kernel in said
    assert other in said
    assert {folder.name for folder in folders(output / "work")} == before
    told = {"OPENBLAS_CORETYPE": kernel.split()[-1]}
    output_of(process(WORK, output, environment=told))
    assert_same_bits(output, runs["one"][1])
