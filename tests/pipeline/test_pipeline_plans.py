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
from dlpr.clusters.local import LocalStarter
from dlpr.core.blas import blas_kernel, blas_threads
from dlpr.engine.executors import Note, WorkExecutor
from dlpr.engine.output import write_job
from dlpr.errors import ResourceError
from dlpr.job import Job
from dlpr.stages import features as features_stage
from dlpr.stages import fold as fold_stage
from dlpr.stages import ingest as ingest_stage
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
"""12 columns: far fewer than the hundred structures."""
N_GROUPS = 4
NUMBERS = ("environment_lpr", "environment_prior_ratio", "structure_lpr", "structure_pr")
SUMS = ("environment_energy", "structure_energy", "structure_projection")
"""Of numbers that cancel."""
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
    train = crystals(SYMBOLS, 100, big=1)
    for number, atoms in enumerate(train):
        atoms.info["config_type"] = f"group {number % N_GROUPS}"
    store(folder / "train.xyz", train)
    store(folder / "test.xyz", crystals(SYMBOLS, 4, seed=3, big=4) + shapes(SYMBOLS))
    return folder


def job_of(bench: Path, output: str, **given: object) -> Job:
    given = {"train": {"files": "train.xyz", "group_by": "config_type"}, **given}
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
    budget=st.sampled_from(["8KB", "16KiB", "8GiB"]),
    part_atoms=st.sampled_from([30, 100, 1 << 18]),
    rows_nbytes=st.sampled_from([1, 2000, 1 << 27]),
    task_flops=st.sampled_from([1.0, 20_000.0, 1.5e11]),
    tile_columns=st.sampled_from([5, 12, 4096]),
    solver=st.sampled_from(["auto", "cholesky", "qr", "eigh"]),
)
def test_any_plan_agrees_within_the_accuracy_it_states(
    bench: Path,
    base: Outcome,
    monkeypatch: pytest.MonkeyPatch,
    block: int | None,
    task: int | None,
    fold_rows: int,
    budget: str,
    part_atoms: int,
    rows_nbytes: int,
    task_flops: float,
    tile_columns: int,
    solver: str,
) -> None:
    numerics = {
        "block_environments": block,
        "task_environments": task,
        "fold_block_rows": fold_rows,
        "partials_budget": budget,
        "tile_columns": tile_columns,
    }
    monkeypatch.setattr(ingest_stage, "TASK_ATOMS", part_atoms)
    monkeypatch.setattr(features_stage, "ROWS_NBYTES", rows_nbytes)
    monkeypatch.setattr(fold_stage, "TASK_FLOPS", task_flops)
    found = run(job_of(bench, "any", numerics=numerics, solver=solver))
    rtol = found.accuracy + base.accuracy + 1e-13
    assert rtol < 1e-8
    for name, arrays in base.sets.items():
        for array, values in arrays.items():
            if array in SUMS:
                atol = 1e-8 * np.abs(values).max()
                np.testing.assert_allclose(found.sets[name][array], values, rtol=0, atol=atol)
                continue
            exact = array not in NUMBERS
            np.testing.assert_allclose(
                found.sets[name][array], values, rtol=0 if exact else rtol, err_msg=array
            )


def test_partials_stay_within_their_budget(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold_stage, "TASK_FLOPS", 1.0)
    monkeypatch.setattr(fold_stage, "FEWEST_ROWS", 1)
    found = run(job_of(bench, "any", train="train.xyz"))
    n_columns = found.facts["conditioning"]["n_columns"] + 2  # the constant, and the target
    assert found.used["hessian"].n_tasks > 3
    for most in (1, 2, 3):
        budget = f"{most * 8 * n_columns**2}B"
        numerics = {**NUMERICS, "partials_budget": budget}
        found = run(job_of(bench, "any", train="train.xyz", numerics=numerics))
        assert found.used["hessian"].n_tasks <= most


def test_groups_whose_partials_exceed_the_budget_are_refused(bench: Path) -> None:
    numerics = {**NUMERICS, "partials_budget": f"{N_GROUPS * 8 * 15**2 - 1}B"}
    with pytest.raises(ResourceError, match=rf"15 columns, so its {N_GROUPS} groups"):
        run(job_of(bench, "any", numerics=numerics))


# one plan ----------------------------------------------------------------------------------------


class Shuffled(WorkExecutor):
    """Tasks in any order, each done twice."""

    def __init__(self, seed: int) -> None:
        super().__init__(0)
        self._random = random.Random(seed)

    def run(
        self, folder: StageFolder, tasks: Sequence[int], nbytes: int, note: Note = print
    ) -> Iterator[Receipt]:
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


def test_order_and_repetition_change_no_bit(bench: Path, base: Outcome) -> None:
    found = run(job_of(bench, "shuffled"), executor=Shuffled(1))
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


@pytest.mark.parametrize(
    ("solver", "numerics", "files", "role"),
    [
        ("qr", NUMERICS, "train.xyz", "triangle"),
        ("cholesky", {**NUMERICS, "tile_columns": 5}, "train.xyz", "factor of the tiles"),
        ("auto", {"block_environments": 2, "task_environments": 4}, "train.xyz@:6", "rows"),
    ],
)
def test_other_routes_give_the_same_bits_in_any_order(
    bench: Path, solver: str, numerics: dict[str, int], files: str, role: str
) -> None:
    outputs = []
    train = {"files": files, "group_by": "config_type"}
    for name, executor in ((f"{role}0", WorkExecutor(0)), (f"{role}1", Shuffled(3))):
        job = job_of(bench, name, train=train, solver=solver, numerics=numerics)
        found = run(job, executor=executor)
        assert found.tasks[role] >= 3
        outputs.append(found.output)
    assert found.facts["conditioning"]["solver"] == ("dual" if role == "rows" else solver)
    assert_same_bits(*outputs)


@pytest.mark.parametrize("n_processes", [1, 3])
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
    running = LocalStarter(1, 2, 2**31, bench / "scratch").start(blas_kernel())
    client = running.client
    try:
        for n_workers in (1, 2, 3):
            client.cluster.scale(n_workers)
            client.wait_for_workers(n_workers, timeout=60)
            result = dlpr.run(job_of(bench, f"dask{n_workers}"), client=client)
            assert_same_bits(base.output, result.output)
    finally:
        running.close()


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
