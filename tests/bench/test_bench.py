"""The benchmark's own arithmetic, its file, and that it runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from dlpr.bench import accuracy, fabricate, passes, scaling, suite
from dlpr.bench.measure import QUICK, Bench, Row, Sizes, in_turn, ratio
from dlpr.bench.plots import draw
from dlpr.bench.report import FILE, Report, tables
from dlpr.cli.bench import bench as bench_command
from dlpr.core.factorize import factorize
from dlpr.core.folds import Gram
from dlpr.engine.executors import WorkExecutor
from dlpr.engine.pipeline import Pipeline
from dlpr.engine.workspace import Workspace
from dlpr.errors import StoreError
from dlpr.store.folder import StageFolder

CONSTANTS = scaling.Constants(
    fold=1e10,
    solve=1e10,
    factorization=1e-10,
    soap=(1e-4, 1e-7),
    disk=1e9,
    cache=1e10,
    handed_out=1e-3,
    own=1e-3,
    start=5.0,
)


@pytest.fixture(autouse=True)
def _own_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """`fabricate.register` changes a table of the process: it is put back."""
    from dlpr import descriptors

    monkeypatch.setattr(descriptors, "KINDS", dict(descriptors.KINDS))


def fabricated(folder: Path, n_columns: int, **settings: Any) -> Pipeline:
    """A pipeline in this process over 600 structures of one atom and 128 environments."""
    fabricate.register()
    passes.fabricate_rows(folder, n_columns, 600, 128)
    job = fabricate.fabricated_job(folder, n_columns, **settings)
    return Pipeline(job, Workspace(folder / "results", WorkExecutor(rank=0)))


@pytest.mark.parametrize("tile_columns", [16, 64])
def test_the_model_counts_the_tasks_of_the_plans(tmp_path: Path, tile_columns: int) -> None:
    numerics = {"tile_columns": tile_columns, "task_environments": 64, "block_environments": 32}
    steps = fabricated(
        tmp_path / "data", 48, store_train_features=False, numerics=numerics, solver="auto"
    )
    work = scaling.Workload(n_columns=48, n_environments=128, n_rows=600, n_train=600)
    costs = scaling.stage_costs(work, CONSTANTS, steps.job.numerics, 2)
    n_tasks = {cost.stage: 0 for cost in costs}
    for cost in costs:
        n_tasks[cost.stage] += cost.n_tasks
    assert n_tasks["rows"] == steps.rows().n_tasks == 10
    assert n_tasks["rigidity"] == steps.rigidity("test").n_tasks == 2
    n_pairs = {16: 10, 64: 1}[tile_columns]
    partials = steps.fold("hessian").n_tasks / n_pairs
    most = scaling.most_partials(work, steps.job.numerics)
    assert n_tasks["folds"] == most * n_pairs
    assert partials <= most <= 2 * partials + 1
    conditions = 1 if n_pairs > 1 else 0  # a last task that looks at the condition
    assert n_tasks["factor"] == steps.factor().n_tasks - conditions == n_pairs


def test_the_model_counts_the_bytes_that_tiles_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numerics = {"tile_columns": 16, "task_environments": 64, "block_environments": 32}
    steps = fabricated(tmp_path / "data", 48, store_train_features=False, numerics=numerics)
    read, plain = [], StageFolder.read_part

    def counted(self: StageFolder, task: int, names: Any = None) -> dict[str, Any]:
        part = plain(self, task, names)
        read.extend(a.nbytes for name, a in part.items() if name.startswith("sums_"))
        return part

    steps.rows()
    monkeypatch.setattr(StageFolder, "read_part", counted)
    steps.fold("hessian")
    work = scaling.Workload(n_columns=48, n_environments=128, n_rows=600, n_train=600)
    costs = scaling.stage_costs(work, CONSTANTS, steps.job.numerics, 2)
    (folds,) = [cost for cost in costs if cost.stage == "folds"]
    partials = 8.0 * scaling.most_partials(work, steps.job.numerics) * 48**2
    assert folds.nbytes - partials == sum(read)


def test_a_stage_takes_rounds_or_the_hand_out() -> None:
    assert scaling.stage_seconds(10, 2.0, 5, 0.0) == 4.0
    assert scaling.stage_seconds(11, 2.0, 5, 0.0) == 6.0
    assert scaling.stage_seconds(1000, 0.1, 1000, 0.01) == pytest.approx(10.1)
    one, many = (scaling.stage_seconds(1000, 1.0, n, 1e-3) for n in (1, 10))
    assert 9.9 < one / many < 10.0


def test_more_workers_are_never_slower_and_more_columns_never_quicker() -> None:
    numerics = scaling.Numerics()
    hours = [
        [sum(scaling.run_seconds(work, CONSTANTS, n, numerics).values()) for n in (1, 10, 100)]
        for work in map(scaling.Workload.usual, scaling.COLUMNS)
    ]
    assert (np.diff(hours, axis=1) < 0).all()
    assert (np.diff(hours, axis=0) > 0).all()
    assert hours[0][0] > 1e8 * CONSTANTS.soap[0]


def test_the_model_takes_what_was_measured() -> None:
    def row(name: str, value: float, **size: int) -> Row:
        return Row(name, value, size=size)

    found = [
        *(row("dsyrk", 30.0, threads=1, columns=300), row("dsyrk", 50.0, threads=1, columns=2000)),
        *(row("dsyrk", 90.0, threads=2, columns=2000), row("dtrmm", 40.0, threads=1)),
        row("factorize", 2.0, columns=1000),
        row("SOAP", 0.2, columns=100, threads=1),
        row("SOAP", 0.6, columns=300, threads=1),
        *(row("disk read", 2.0), row("disk write", 0.5), row("page cache read", 8.0)),
        *(row("client and scheduler", 3.0, workers=10), row("client and scheduler", 5.0)),
        *(row(scaling.RIGIDITY, 0.9, columns=715), row(scaling.RIGIDITY, 0.7, columns=4000)),
        *(row("worker's own", 2.0), row("receipt", 1.0), row("smallest run", 6.0)),
    ]
    made = scaling.Constants.of(Bench(QUICK, Path(), found))
    assert made.soap == pytest.approx((0.0, 2e-6), abs=1e-12)
    assert made.fold == pytest.approx(50e9 * scaling.FLOOR)
    assert (made.solve, made.factorization) == (40e9 * 0.7, pytest.approx(2e-9))
    assert (made.disk, made.handed_out, made.own) == (0.5e9, pytest.approx(5e-3), 3e-3)


def test_samples_are_taken_in_turn_and_the_first_round_does_not_count() -> None:
    calls: list[str] = []

    def one(name: str, seconds: float) -> float:
        calls.append(name)
        return seconds

    samples = in_turn(
        lambda: one("dlpr", 2.0), {"a": lambda: one("a", 1.0), "b": lambda: one("b", 3.0)}, 2
    )
    assert calls == ["dlpr", "a", "b"] * 3
    assert samples == {"dlpr": [2.0, 2.0], "a": [1.0, 1.0], "b": [3.0, 3.0]}
    assert (ratio(samples), ratio(samples, max)) == (0.5, 1.5)


@pytest.mark.parametrize(
    ("value", "at_most", "reached"),
    [(0.9, False, True), (0.8, False, False), (0.8, True, True), (None, False, None)],
)
def test_a_row_knows_whether_it_was_reached(
    value: float | None, at_most: bool, reached: bool | None
) -> None:
    assert Row("x", value, reach=0.85, at_most=at_most).is_reached is reached
    assert Row("x", value).is_reached is None


def test_a_report_comes_back_and_grows(tmp_path: Path) -> None:
    first = Row("fold", 0.9, "", {"columns": 300}, "dsyrk", 0.85, samples={"dlpr": [1.0, 2.0]})
    report = Report.load(tmp_path)
    report.add("fold", QUICK, iter([first]), lambda row: None)
    report.add("sum", QUICK, iter([Row("sum", None, note="not installed")]), lambda row: None)
    again = Report.load(tmp_path)
    assert again.rows("fold") == [first]
    assert again.alike(QUICK) == ["fold", "sum"]
    assert again.alike(Sizes()) == []
    assert again.measured["fold"]["conditions"]["versions"]["skmatter"]
    again.add("fold", QUICK, iter([replace(first, value=0.5)]), lambda row: None)
    assert [row.value for row in Report.load(tmp_path).rows("fold")] == [0.5]
    cells = tables(again, ["fold"])[0].rows[0]
    assert cells[:5] == ["fold", "D 300", "0.5", ">= 0.85", "NOT reached"]
    (tmp_path / FILE).write_text('{"format_version": 99}')
    with pytest.raises(StoreError, match="another folder"):
        Report.load(tmp_path)


def test_only_what_is_asked_for_and_what_that_needs() -> None:
    assert suite.wanted(()) == list(suite.MEASUREMENTS)
    assert suite.wanted(("fold",)) == ["fold"]
    assert suite.wanted(("scaling",)) == ["limits", "simulate", "scaling"]
    assert suite.wanted(("scaling",), {"limits", "simulate"}) == ["scaling"]


def test_the_references_digits_are_right() -> None:
    rng = np.random.default_rng(0)
    rows, test = rng.standard_normal((400, 30)), rng.standard_normal((20, 30))
    gram = Gram.zeros(30)
    gram.update(rows)
    by_dlpr = factorize(gram, 1.0, 400, "cholesky")[0].rigidity(test)
    np.testing.assert_allclose(accuracy.reference(rows, test, 1.0), by_dlpr, rtol=1e-13)


def test_fabricated_rows_are_what_the_stages_hold(tmp_path: Path) -> None:
    steps = fabricated(tmp_path / "data", 20, store_test_features=True)
    rows = passes.rows_in_memory(steps)
    assert rows.shape == (600, 20)
    assert np.linalg.cond(rows) < 10
    assert passes.features_in_memory(steps, "test").shape == (128, 20)
    assert fabricate.again(steps, steps.rigidity("test")) > 0
    assert not steps.rigidity("test").missing()


def test_the_command_measures_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dlpr.bench import limits

    monkeypatch.setattr(limits, "_features", lambda bench: iter(()))
    options = ["--quick", "--only", "limits", "--columns", "32", "--output", str(tmp_path)]
    done = CliRunner().invoke(bench_command, options, catch_exceptions=False)
    assert done.exit_code == 0
    record = json.loads((tmp_path / FILE).read_text())["measured"]["limits"]
    assert record["sizes"]["columns"] == [32]
    rows = [Row(**row) for row in record["rows"]]
    (fold,) = [row for row in rows if row.name == "dsyrk" and row.size["threads"] == 1]
    assert fold.value == pytest.approx(4096 * 32**2 / median(fold.samples["seconds"]) * 1e-9)
    assert not list(tmp_path.glob("*.scratch"))


def test_pictures_of_what_there_is(tmp_path: Path) -> None:
    size = {"columns": 300, "rows": 10, "environments": 10}
    samples = {"dlpr": [1.0], "dsyrk": [2.0]}
    rows = [
        Row("fold of stored rows", 2.0, "", {**size, "columns": d}, "dsyrk", samples=samples)
        for d in (300, 600)
    ]
    report = Report.load(tmp_path)
    assert draw(report) == []
    report.add("fold", Sizes(), iter(rows), lambda row: None)
    assert [path.name for path in draw(report)] == ["columns.svg"]
    assert (tmp_path / "columns.svg").read_bytes().startswith(b"<?xml")
