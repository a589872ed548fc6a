"""The three forms of one Hessian: rows, one piece, tiles. They agree; tiles keep the guarantees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from pipeline_cases import (
    SPECIES,
    Outcome,
    chunks_of,
    crystals,
    load,
    make_job,
    run,
    shapes,
    store,
)

from dlpr.core import decomposition as decomposition_module
from dlpr.core import factorize as factorize_module
from dlpr.engine.estimate import check_lifetime, estimate
from dlpr.engine.executors import WorkExecutor
from dlpr.engine.pipeline import Pipeline
from dlpr.engine.starter import Size
from dlpr.engine.workspace import Workspace
from dlpr.errors import NumericsError, ResourceError
from dlpr.job import Job
from dlpr.stages.cholesky import task_of, tiles
from dlpr.stages.fold import form_of

SETS = {"train": "train", "test": {"files": "test.xyz"}}
NUMBERS = ("environment_lpr", "structure_pr")
BLOCKS = {"block_environments": 16, "task_environments": 48}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forms")
    store(folder / "train.xyz", crystals(SPECIES[2], 60))
    store(folder / "test.xyz", crystals(SPECIES[2], 5, seed=3, big=4) + shapes(SPECIES[2]))
    return folder


def do(
    bench: Path,
    output: str,
    solver: str,
    centre_species: str = "separate",
    tile_columns: int = 4096,
    regularizer: float = 1e-4,
) -> Outcome:
    linear = {"regularizer": regularizer, "centre_species": centre_species}
    numerics = {**BLOCKS, "tile_columns": tile_columns}
    return run(
        make_job(bench, test=SETS, linear=linear, solver=solver, numerics=numerics, output=output)
    )


def agree(found: Outcome, other: Outcome) -> None:
    rtol = found.accuracy + other.accuracy
    assert rtol < 1e-7
    for name in SETS:
        for array in NUMBERS:
            np.testing.assert_allclose(
                found.sets[name][array], other.sets[name][array], rtol=rtol, err_msg=array
            )


@pytest.mark.parametrize("centre_species", ["separate", "shared"])
def test_rows_one_piece_and_tiles_agree(bench: Path, centre_species: str) -> None:
    whole = do(bench, f"whole-{centre_species}", "cholesky", centre_species)
    tiles = do(bench, f"tiles-{centre_species}", "cholesky", centre_species, tile_columns=29)
    rows = do(bench, f"rows-{centre_species}", "dual", centre_species)
    assert {"factor of the hessian"} < set(whole.used)
    assert {"factor of the tiles"} < set(tiles.used)
    assert {"factor of the rows"} < set(rows.used)
    assert tiles.used["factor of the tiles"].n_tasks > 3
    agree(tiles, whole)
    agree(rows, whole)


def test_rows_are_decomposed_once(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the factor and for the weights."""
    sizes = []
    for function in ("qr", "svd"):
        plain = getattr(scipy.linalg, function)

        def counted(matrix: Any, *args: Any, plain: Any = plain, **options: Any) -> Any:
            sizes.append(matrix.shape)
            return plain(matrix, *args, **options)

        for module in (factorize_module, decomposition_module):
            if hasattr(module, function):
                monkeypatch.setattr(module, function, counted)
    found = do(bench, "rows-once", "dual")
    n_rows, n_columns = (found.facts["conditioning"][name] for name in ("n_rows", "n_columns"))
    assert sizes == [(n_columns, n_rows), (n_rows, n_rows)]


def test_tiles_give_the_same_bits_wherever_a_process_begins_and_stops(bench: Path) -> None:
    one = do(bench, "tiles-once", "cholesky", tile_columns=29)
    expected = chunks_of(one.output)
    factor = one.used["factor of the tiles"]
    rng = np.random.default_rng(0)
    for turn in range(3):
        for task in rng.permutation(factor.n_tasks)[: factor.n_tasks // 2]:
            factor.withdraw(int(task))
        for name in ("rigidity of test", "rigidity of train", "result"):
            stage = one.used[name]
            for task in range(stage.n_tasks):
                stage.withdraw(task)
        job = make_job(
            bench,
            test=SETS,
            linear={"centre_species": "separate"},
            solver="cholesky",
            numerics={**BLOCKS, "tile_columns": 29},
            output="tiles-once",
        )
        again = run(job, executor=WorkExecutor(turn + 1))
        assert again.tasks["factor of the tiles"] == factor.n_tasks // 2
        assert chunks_of(again.output) == expected


def test_tiles_without_a_digit_name_the_regularizer_that_would_do(bench: Path) -> None:
    with pytest.raises(NumericsError, match=r"mu of at\s+least"):
        do(bench, "singular", "cholesky", tile_columns=29, regularizer=1e-19)


def test_tiles_too_steep_for_cholesky_become_a_triangle(bench: Path) -> None:
    # more rows than half the columns, so that auto does not take the rows
    linear = {"regularizer": 1e-12, "centre_species": "shared"}
    numerics = {**BLOCKS, "tile_columns": 4}  # rows of 60 structures are more than four such tiles
    found = run(
        make_job(bench, test=SETS, linear=linear, solver="auto", numerics=numerics, output="steep")
    )
    assert "factor of the tiles" in found.used
    assert found.facts["conditioning"]["solver"] == "qr"


def test_features_of_few_directions_cost_no_triangle(bench: Path) -> None:
    """Rank 4 of 40 columns, in two blocks of weights: `auto` takes the basis, with the bits of
    nothing else and the numbers of QR."""
    rng = np.random.default_rng(5)
    mix, files = rng.normal(size=(4, 40)), {}
    for name in ("train", "test"):
        n = sum(len(atoms) for atoms in load(bench / f"{name}.xyz"))
        np.save(bench / f"{name}.npy", rng.normal(size=(n, 4)) @ mix)
        files[name] = f"{name}.npy"
    found = {}
    for solver in ("auto", "qr"):
        linear = {"regularizer": 1e-10, "centre_species": "separate"}
        job = make_job(bench, test=SETS, linear=linear, solver=solver, output=f"few-{solver}")
        asked = {**job.resolved(), "descriptor": {"features": files}}
        found[solver] = run(Job.from_dict(asked, base=bench))
    assert found["auto"].facts["conditioning"]["solver"] == "eigh"
    assert found["auto"].facts["conditioning"]["n_kept"] == 8
    agree(found["auto"], found["qr"])
    arrays = found["auto"].used["factor of the triangle"].read_part(0)
    assert {name.partition(".")[0] for name in arrays} == {"whole", "weights"}


class _Small(WorkExecutor):
    """Workers that have so much memory for a task, and no more."""

    def __init__(self, nbytes: int) -> None:
        super().__init__(0)
        self.nbytes, self.asked = nbytes, [0]

    def require(self, nbytes: int) -> None:
        self.asked.append(nbytes)
        if nbytes > self.nbytes:
            raise ResourceError("too small")


def test_tiles_too_steep_for_cholesky_are_kept_where_no_worker_holds_the_whole(bench: Path) -> None:
    linear = {"regularizer": 1e-12, "centre_species": "shared"}
    settings = {"linear": linear, "test": SETS, "numerics": {**BLOCKS, "tile_columns": 4}}
    asked = _Small(1 << 40)
    run(make_job(bench, **settings, solver="auto", output="roomy"), executor=asked)
    tiles, whole = asked.asked[1:3]
    assert tiles < whole
    found = run(
        make_job(bench, **settings, solver="auto", output="tight"), executor=_Small(whole - 1)
    )
    by_cholesky = run(make_job(bench, **settings, solver="cholesky", output="steep-cholesky"))
    assert {"factor of the tiles"} < set(found.used)
    assert "factor of the triangle" not in found.used
    stated = found.facts["conditioning"]
    assert stated["solver"] == "cholesky"
    assert stated["accuracy"] > 1e-8
    for name in SETS:
        np.testing.assert_array_equal(
            found.sets[name]["environment_lpr"], by_cholesky.sets[name]["environment_lpr"]
        )
    events = [json.loads(line) for line in (found.output / "events.jsonl").read_text().splitlines()]
    (note,) = [event["text"] for event in events if event["kind"] == "note"]
    assert "relative error" in note
    assert "too small" in note


def test_memory_is_asked_for_before_anything_is_computed(bench: Path) -> None:
    executor = _Small(0)
    with pytest.raises(ResourceError):
        run(make_job(bench, test=SETS, output="small"), executor=executor)
    assert not list((bench / "small/work").glob("rows-*/receipts/*"))


def test_tasks_that_would_outlive_their_workers_are_refused(bench: Path) -> None:
    job = make_job(bench, test=SETS, output="brief")
    steps = Pipeline(job, Workspace(job.path(job.output), WorkExecutor(0)))
    for lifetime in (None, 10**6):
        check_lifetime(steps, Size(1 << 30, 1, lifetime))
    with pytest.raises(ResourceError, match=r"a worker lives 0 s: .*walltime"):
        check_lifetime(steps, Size(1 << 30, 1, 0))
    assert not list((bench / "brief/work").glob("structures-*"))


@pytest.mark.parametrize("baseline", [{"none": {}}, {"composition": {"regularizer": 0.1}}])
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_plan_and_run_agree_on_the_form(
    bench: Path, baseline: dict[str, object], more: int
) -> None:
    linear = {"centre_species": "separate", "baseline": baseline}
    given = {"test": SETS, "linear": linear, "solver": "cholesky"}

    def steps(tile_columns: int) -> Pipeline:
        numerics = {**BLOCKS, "tile_columns": tile_columns}
        job = make_job(bench, numerics=numerics, output="agree", **given)
        return Pipeline(job, Workspace(job.path(job.output), WorkExecutor(0)))

    one = steps(steps(64).n_columns() + more)
    assert one.form() == ("tiles" if more < 0 else "whole")
    (factor,) = (stage for stage in estimate(one).stages if stage.stage == "factor")
    assert (factor.n_tasks > 1) == (more < 0)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_task_of_a_tile_is_where_it_is_in_the_list(n: int) -> None:
    settings = {"orders": [list(range(n)), list(range(n))[::-1]]}
    for task, tile in enumerate(tiles(settings)):
        assert task_of(settings, *tile) == task


@pytest.mark.parametrize(
    ("solver", "regularizer", "n_rows", "n_columns", "form"),
    [
        ("auto", 1e-8, 2000, 4000, "rows"),
        ("auto", 1e-8, 2001, 4000, "whole"),
        ("auto", 0.0, 2000, 4000, "rows"),
        ("auto", 1e-8, 2100, 4097, "tiles"),
        ("auto", 0.0, 2100, 4097, "whole"),
        ("auto", 1e-8, 3000, 30_000, "tiles"),  # rows that no worker should hold
        ("auto", 1e-8, 2000, 30_000, "rows"),
        ("cholesky", 1e-8, 10, 4000, "whole"),
        ("cholesky", 1e-8, 10, 30_000, "tiles"),
        ("qr", 1e-8, 10, 30_000, "whole"),
        ("dual", 1e-8, 3000, 30_000, "rows"),
    ],
)
def test_the_form_follows_from_job_and_data(
    solver: str, regularizer: float, n_rows: int, n_columns: int, form: str
) -> None:
    assert form_of(solver, regularizer, n_rows, n_columns, 4096) == form
