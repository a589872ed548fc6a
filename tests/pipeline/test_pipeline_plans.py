"""What a numerical plan promises: bits on one plan, the stated accuracy across plans."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pipeline_cases import (
    HYPERS,
    SPECIES,
    Outcome,
    assert_same_bits,
    crystals,
    make_job,
    output_of,
    process,
    run,
    shapes,
    store,
)
from threadpoolctl import threadpool_info

import dlpr
from dlpr.core.blas import blas_threads
from dlpr.engine.cluster import LocalSpec, start_local
from dlpr.engine.executors import WorkExecutor
from dlpr.engine.output import write_job
from dlpr.job import Job
from dlpr.stages import rows as rows_stage
from dlpr.stages.tasks import run_task
from dlpr.store.folder import Receipt, StageFolder

SYMBOLS = SPECIES[2]
SETS = {"train": "train", "test": {"files": "test.xyz"}}
NUMERICS = {"block_environments": 16, "task_environments": 48, "fold_block_rows": 5}
FEWEST = {
    **HYPERS,
    "basis": {
        "type": "TensorProduct",
        "max_angular": 1,
        "radial": {"type": "Gto", "max_radial": 0},
    },
}
"""12 columns, so that a hundred structures make several partials."""
NUMBERS = ("environment_lpr", "environment_prior_ratio", "structure_pr")
FEW = settings(
    max_examples=4,
    derandomize=True,
    phases=[Phase.generate],
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a training set of several partials, and a test set of all shapes."""
    folder = tmp_path_factory.mktemp("plans")
    store(folder / "train.xyz", crystals(SYMBOLS, 100, big=1))
    store(folder / "test.xyz", crystals(SYMBOLS, 4, seed=3, big=4) + shapes(SYMBOLS))
    return folder


def job_of(bench: Path, output: str, **given: object) -> Job:
    return make_job(
        bench, test=SETS, hypers=FEWEST, output=output, **{"numerics": NUMERICS, **given}
    )


@pytest.fixture(scope="module")
def base(bench: Path) -> Outcome:
    found = run(job_of(bench, "base"))
    tasks = found.tasks
    assert min(tasks[name] for name in ("hessian", "rows", "rigidity of test")) >= 3
    return found


# across plans ------------------------------------------------------------------------------------


@FEW
@given(
    block=st.sampled_from([11, 16, 64, None]),
    task=st.sampled_from([22, 33, 200, None]),
    fold_rows=st.sampled_from([1, 3, 1024]),
    budget=st.sampled_from(["1B", "4KiB", "8GiB"]),
    part_nbytes=st.sampled_from([1, 2000, 1 << 27]),
    solver=st.sampled_from(["auto", "qr", "eigh"]),
)
def test_any_plan_agrees_within_the_accuracy_it_states(
    bench: Path,
    base: Outcome,
    monkeypatch: pytest.MonkeyPatch,
    block: int | None,
    task: int | None,
    fold_rows: int,
    budget: str,
    part_nbytes: int,
    solver: str,
) -> None:
    numerics = {
        "block_environments": block,
        "task_environments": task,
        "fold_block_rows": fold_rows,
        "partials_budget": budget,
    }
    monkeypatch.setattr(rows_stage, "PART_NBYTES", part_nbytes)
    found = run(job_of(bench, "any", numerics=numerics, solver=solver))
    rtol = found.accuracy + base.accuracy + 1e-13
    assert rtol < 1e-8
    for name, arrays in base.sets.items():
        for array, values in arrays.items():
            exact = array not in NUMBERS
            np.testing.assert_allclose(
                found.sets[name][array], values, rtol=0 if exact else rtol, err_msg=array
            )


def test_partials_stay_within_their_budget(bench: Path) -> None:
    n_columns = run(job_of(bench, "any")).facts["conditioning"]["n_columns"]
    for most in (1, 2, 3):
        budget = f"{most * 8 * n_columns**2}B"
        found = run(job_of(bench, "any", numerics={**NUMERICS, "partials_budget": budget}))
        assert found.used["hessian"].n_tasks <= most


# one plan ----------------------------------------------------------------------------------------


class Shuffled(WorkExecutor):
    """Tasks in any order, each done twice."""

    def __init__(self, seed: int) -> None:
        super().__init__(0)
        self._random = random.Random(seed)

    def run(self, folder: StageFolder, tasks: Sequence[int], nbytes: int) -> Iterator[Receipt]:
        """Do tasks one after the other; forget the first receipts and do them again."""
        order = list(tasks)
        for attempt in range(2):
            self._random.shuffle(order)
            for task in order:
                receipt = run_task(str(folder.path), task)
                if attempt:
                    yield receipt
                else:
                    folder.withdraw(task)


@pytest.mark.parametrize("seed", [1, 2])
def test_order_and_repetition_change_no_bit(bench: Path, base: Outcome, seed: int) -> None:
    found = run(job_of(bench, f"shuffled{seed}"), executor=Shuffled(seed))
    assert_same_bits(base.output, found.output)


def test_where_a_process_begins_changes_no_bit(bench: Path, base: Outcome) -> None:
    found = run(job_of(bench, "rank"), executor=WorkExecutor(5))
    assert_same_bits(base.output, found.output)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_stored_and_recomputed_features_are_the_same_bits(bench: Path, dtype: str) -> None:
    outputs = []
    for stored in (False, True):
        found = run(
            job_of(
                bench,
                f"{dtype}{stored}",
                store_test_features=stored,
                store_train_features=stored,
                storage={"dtype": dtype},
            )
        )
        assert ("features of test" in found.tasks) == ("features of train" in found.tasks) == stored
        outputs.append(found.output)
    assert_same_bits(*outputs)


def test_the_qr_route_gives_the_same_bits_in_any_order(bench: Path) -> None:
    outputs = []
    for name, executor in (("qr0", WorkExecutor(0)), ("qr1", Shuffled(3))):
        found = run(job_of(bench, name, solver="qr"), executor=executor)
        assert found.tasks["triangle"] >= 3
        outputs.append(found.output)
    assert_same_bits(*outputs)


@pytest.mark.parametrize("n_processes", [1, 2, 3])
def test_processes_side_by_side_give_the_same_bits(
    bench: Path, base: Outcome, n_processes: int
) -> None:
    job = job_of(bench, f"work{n_processes}")
    output = job.path(job.output)
    output.mkdir()
    write_job(output, job)
    code = "import sys, dlpr; dlpr.work(sys.argv[1], rank=int(sys.argv[2]))"
    threads = [{}, {"OPENBLAS_NUM_THREADS": "1"}, {"OMP_NUM_THREADS": "2"}]
    running = [
        process(code, output, rank, environment=threads[rank]) for rank in range(n_processes)
    ]
    for one in running:
        output_of(one)
    assert_same_bits(base.output, output)
    assert [path.name for path in output.rglob(".*.partial")] == []


def test_dask_workers_give_the_same_bits(bench: Path, base: Outcome) -> None:
    cluster, client = start_local(LocalSpec(1, 2, 2**31, bench / "scratch"), {})
    try:
        for n_workers in (1, 2, 3):
            cluster.scale(n_workers)
            client.wait_for_workers(n_workers, timeout=60)
            result = dlpr.run(job_of(bench, f"dask{n_workers}"), client=client)
            assert_same_bits(base.output, result.output)
    finally:
        client.close()
        cluster.close()


# BLAS threads ------------------------------------------------------------------------------------


def threads_now() -> set[int]:
    return {info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"}


def test_a_task_that_ends_leaves_its_fellows_the_plans_threads() -> None:
    before = threads_now()
    first, second = blas_threads(1), blas_threads(1)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert threads_now() == {1}
    second.__exit__(None, None, None)
    assert threads_now() == before


def test_tasks_of_two_plans_wait_for_each_other() -> None:
    seen: list[set[int]] = []

    def other() -> None:
        with blas_threads(2):
            seen.append(threads_now())

    thread = threading.Thread(target=other)
    with blas_threads(1):
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        assert threads_now() == {1}
    thread.join(10)
    assert seen == [{2}]
