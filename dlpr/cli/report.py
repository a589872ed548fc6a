"""What people see: a progress line per stage, and tables at the end."""

from __future__ import annotations

import time

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from dlpr.clusters import starter
from dlpr.engine.events import Event, family
from dlpr.engine.notes import notes
from dlpr.engine.output import run_cost
from dlpr.engine.pipeline import Pipeline
from dlpr.handles import Result
from dlpr.job import Job
from dlpr.regularizer_scan import CURVE, PICTURE, write_curve
from dlpr.stages.factor import factor_facts
from dlpr.store.files import Json
from dlpr.tables import TextTable, cost_table, rigidity_table


class ProgressLines:
    """A listener that draws one bar per stage on a terminal, and is silent elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description:<27}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> ProgressLines:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, event: Event) -> None:
        if event.kind == "note":
            text = f"note: {event.text}"
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)
        elif event.kind == "stage" and event.n_done < event.n_tasks:
            name = family(event.stage)
            if name in self._bars:  # the next of many fits
                self._progress.reset(self._bars[name], total=event.n_tasks)
            else:
                self._bars[name] = self._progress.add_task(name, total=event.n_tasks)
            if event.text.startswith("changed"):
                text = f"{event.stage} is computed anew, {event.text}"
                self._console.print(text, highlight=False, markup=False, soft_wrap=True)
        if family(event.stage) in self._bars:
            self._progress.update(self._bars[family(event.stage)], completed=event.n_done)


def show(console: Console, table: TextTable) -> None:
    """Print a table."""
    drawn = Table(title=table.title, caption=table.caption, title_justify="left")
    for k, name in enumerate(table.columns):
        drawn.add_column(name, justify="left" if k < table.n_names else "right")
    for row in table.rows:
        drawn.add_row(*row)
    if not console.is_terminal:
        console.width = max(console.width, 160)
    console.print(drawn, markup=False)


def show_result(console: Console, steps: Pipeline) -> None:
    """Finish a job, and print what came out of it and what it took."""
    start = time.perf_counter()
    steps.mended(steps.result)
    curve = steps.mended(lambda: write_curve(steps))
    result = Result(steps.workspace.output)
    if curve:
        show(console, curve.table())
    show(console, rigidity_table(result.summary))
    if result.cross_validation:
        show(console, result.cross_validation.table())
    show(console, cost_table(run_cost(steps.workspace.used)))
    lines = solver_lines(factor_facts(steps.factor())) + fit_lines(result)
    lines += committee_lines(result) + notes(steps)
    if curve:
        lines += [*curve.notes(), f"the curve: {steps.workspace.output / PICTURE} and {CURVE}"]
    lines.append(thread_line(steps.job))
    lines.append(f"{result.path} after {time.perf_counter() - start:.1f} s")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def solver_lines(facts: Json) -> list[str]:
    """How the Hessian was factorized, and how far to trust the digits."""
    found = facts["conditioning"]
    lines = [f"solver {found['solver']}: {found['n_rows']} rows, {found['n_columns']} columns"]
    if found["rank"] is not None:
        lines[0] += f", rank {found['rank']} (rtol {found['rank_rtol']:.1e})"
    if found["n_determined"] is not None:
        lines[0] += f"; the data outweigh the regularizer in {found['n_determined']} directions"
    if "fit" in facts:
        fit = facts["fit"]
        lines.append(
            f"loss fitted in {fit['iteration']} iterations: its minimum is {fit['left']:.1e} away "
            f"(in the norm of H, over the root of the loss); {fit['n_flat']} rows have no second "
            f"derivative there, and no part in the Hessian"
        )
    return [
        *lines,
        f"condition of the Hessian {found['condition']:.2e}; relative error of a rigidity to "
        f"expect: below {found['accuracy']:.1e}",
        f"regularizer mu = {facts['mu']:.6g} (scale^2 = {facts['scale_square']:.6g})",
    ]


def fit_lines(result: Result) -> list[str]:
    """How far the fitted energies of structures are from their labels."""
    lines = []
    for name in result.sets:
        errors = result.energy_errors(name)
        if len(errors):
            rmse, mae = float(np.sqrt(np.mean(errors**2))), float(np.mean(np.abs(errors)))
            lines.append(
                f"{name}: fitted energies of {len(errors)} structures: RMSE {1e3 * rmse:.3g}, "
                f"MAE {1e3 * mae:.3g} meV/atom"
            )
    return lines


def committee_lines(result: Result) -> list[str]:
    """What the committee is, and how its variance goes with LPR over each set."""
    lines = []
    for name in result.sets:
        about = result.committee(name)
        if about is not None:
            scale = f", scale {about['scale']:g}" if "scale" in about else ""
            found = about["rank_correlation"]
            told = "no two ranks" if found is None else f"Spearman {found:.3f}"
            lines.append(
                f"{name}: committee of {about['members']} ({about['kind']}, seed {about['seed']}"
                f"{scale}): its variance against LPR: {told}"
            )
    return lines


def thread_line(job: Job) -> str:
    """How the cores of a worker are shared out: see `worker_environment` for Rayon's."""
    numerics, size = job.numerics, starter(job.cluster, job.base).size
    return (
        f"threads of a worker: Dask {size.threads} (tasks at once), BLAS {numerics.blas_threads} a "
        f"task ({numerics.factor_threads} in the factorization), Rayon {size.threads} (featomic)"
    )
