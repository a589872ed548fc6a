"""The table of `dlpr plan`."""

from __future__ import annotations

from pathlib import Path

from ase.data import chemical_symbols
from rich.console import Console

from dlpr.api import open_job
from dlpr.cli.report import show
from dlpr.clusters import starter
from dlpr.engine import memory
from dlpr.engine.estimate import Estimate, estimate
from dlpr.engine.executors import WorkExecutor
from dlpr.engine.output import planned_kernel, write_job
from dlpr.engine.pipeline import Pipeline
from dlpr.engine.reused import reused
from dlpr.engine.training_costs import ITERATIONS
from dlpr.engine.workspace import Workspace
from dlpr.job import Job
from dlpr.tables import TextTable
from dlpr.units import format_bytes


def show_plan(path: Path, output: Path | None) -> None:
    """Estimate a run and print it."""
    job = open_job(path, output)
    workspace = Workspace(job.path(job.output), WorkExecutor())
    with workspace.owned():
        write_job(workspace.output, job)
        steps = Pipeline(job, workspace, planned_kernel(workspace.output))
        found = estimate(steps)
        before = reused(steps)
    console = Console()
    show(console, _table(job, found))
    symbols = " ".join(chemical_symbols[z] for z in found.species)
    lines = [f"species of the sampled frames: {symbols}; {found.layout.n_columns} columns"]
    lines += [
        f"{name}: {size.n_structures} structures, {size.n_environments} environments, "
        f"largest {size.largest_frame}"
        for name, size in found.sets.items()
    ]
    size = starter(job.cluster, job.base).size
    worst = max(stage.task_nbytes for stage in found.stages)
    at_once = memory.tasks_at_once(worst, size.memory, size.threads)
    lines.append(
        f"peak memory of a worker: at most {format_bytes(memory.BASE_NBYTES + at_once * worst)} "
        f"({at_once} task(s) at once) of {format_bytes(size.memory)}"
    )
    lines += _loss(job, found)
    longest = found.longest_task
    lines.append(f"longest task: about {longest.task_seconds:.0f} s, of {longest.stage}")
    lines.append(f"reused: {', '.join(before) or 'nothing'}")
    lines.append(f"the folder is ready: dlpr run {path}, or dlpr work {workspace.output}")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _loss(job: Job, found: Estimate) -> list[str]:
    """What another program's weights come to, and how a loss that is not squared is fitted."""
    loss, size, lines = job.loss, found.sets["train"], []
    if loss.preset is not None:
        of = loss.translated(size.n_structures, size.n_environments)
        lines.append(
            f"loss in lambdas, for {size.n_structures} structures of {size.n_environments} atoms: "
            f"{of.lambdas} (common factor: the first is 1; the regularizer is the job's)"
        )
    if loss.is_reweighted:
        lines.append(
            f"loss of {' and '.join(loss.reweighted)}: not squared, so rows are folded anew for "
            f"every fit, until less than {loss.tolerance:.1e} is to go; {ITERATIONS} fits are "
            f"reckoned with, {loss.iterations} allowed"
        )
    return lines


def _table(job: Job, found: Estimate) -> TextTable:
    stages = found.stages
    rows = [
        [
            stage.stage,
            str(stage.n_tasks),
            str(stage.n_files),
            format_bytes(stage.nbytes),
            format_bytes(memory.BASE_NBYTES + stage.task_nbytes),
            f"{stage.core_hours:.4f}",
        ]
        for stage in stages
    ]
    rows.append(
        [
            "all",
            str(sum(stage.n_tasks for stage in stages)),
            str(sum(stage.n_files for stage in stages)),
            format_bytes(sum(stage.nbytes for stage in stages)),
            format_bytes(found.peak_nbytes),
            f"{sum(stage.core_hours for stage in stages):.4f}",
        ]
    )
    numbers = ("tasks", "files", "data", "memory of a worker", "core-hours")
    return TextTable(
        f"Plan of {job.output}",
        ("stage", *numbers),
        1,
        rows,
        "estimated from the index of the files and a sample of frames; memory: one task at a time",
    )
