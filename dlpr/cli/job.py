"""Commands that take a job file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console

from dlpr.api import pipeline
from dlpr.cli.report import ProgressLines, show_result
from dlpr.engine.pipeline import Pipeline
from dlpr.engine.stopping import soft_stops
from dlpr.handles import Features, Handle, Hessian, Rigidities, Structures

_JOB = click.argument("job", type=click.Path(path_type=Path))
_OUTPUT = click.option(
    "--output", "-o", type=click.Path(path_type=Path), help="In place of the job's own folder."
)
_CLUSTER = click.option(
    "--cluster", "-c", help="A running cluster of `dlpr cluster start`, in place of the job's."
)
_SET = click.option("--set", "name", help="One set only: train, or a test set of the job.")


@contextmanager
def _steps(
    job: Path, output: Path | None, cluster: str | None
) -> Iterator[tuple[Console, Pipeline]]:
    console = Console()
    with (
        soft_stops(),
        ProgressLines(console) as lines,
        pipeline(job, output=output, cluster=cluster, listeners=(lines,)) as steps,
    ):
        yield console, steps


@click.command(
    epilog="Example:  dlpr run carbon.yaml --output /scratch/$USER/carbon",
)
@_JOB
@_OUTPUT
@_CLUSTER
def run(job: Path, output: Path | None, cluster: str | None) -> None:
    """Do the whole JOB; run again, it continues.

    The result is rigidity.zarr in the output folder, a group per test set; summary.json has the
    table that is printed at the end.
    """
    with _steps(job, output, cluster) as (console, steps):
        show_result(console, steps)


@click.command(epilog="Example:  dlpr plan carbon.yaml   (then: dlpr run carbon.yaml)")
@_JOB
@_OUTPUT
def plan(job: Path, output: Path | None) -> None:
    """Say what a run of JOB would do: tasks, files, bytes, memory, core-hours, what is reused.

    The files are scanned for their frames; nothing else is computed. The output folder then holds
    the job, ready for `dlpr run` or `dlpr work`.
    """
    from dlpr.cli.plan import show_plan

    show_plan(job, output)


def _step(
    job: Path,
    output: Path | None,
    cluster: str | None,
    make: Callable[[Pipeline], list[Handle]],
) -> None:
    with _steps(job, output, cluster) as (console, steps):
        handles = steps.mended(lambda: make(steps))
    for handle in handles:
        console.print(f"[bold]{type(handle).__name__}[/bold]")
        for name, value in handle.facts().items():
            console.print(f"  {name}: {value}", highlight=False, markup=False, soft_wrap=True)


def _names(steps: Pipeline, name: str | None, every: list[str]) -> list[str]:
    if name is None:
        return every
    known = dict.fromkeys(["train", *steps.job.test])
    if name not in known:
        raise click.BadParameter(f"the job has no set {name!r}; it has: {', '.join(known)}")
    return [name]


@click.command(epilog="Example:  dlpr ingest carbon.yaml --set film")
@_JOB
@_OUTPUT
@_CLUSTER
@_SET
def ingest(job: Path, output: Path | None, cluster: str | None, name: str | None) -> None:
    """Read, check and store the structures of JOB."""

    def make(steps: Pipeline) -> list[Handle]:
        names = _names(steps, name, steps.set_names())
        return [Structures(steps.ingest(one).path) for one in names]

    _step(job, output, cluster, make)


@click.command(epilog="Example:  dlpr featurize carbon.yaml --set train")
@_JOB
@_OUTPUT
@_CLUSTER
@_SET
def featurize(job: Path, output: Path | None, cluster: str | None, name: str | None) -> None:
    """Compute and store the features of JOB's sets."""

    def make(steps: Pipeline) -> list[Handle]:
        names = _names(steps, name, steps.set_names())
        return [Features(steps.featurize(one).path) for one in names]

    _step(job, output, cluster, make)


@click.command(epilog="Example:  dlpr hessian carbon.yaml")
@_JOB
@_OUTPUT
@_CLUSTER
def hessian(job: Path, output: Path | None, cluster: str | None) -> None:
    """Fold JOB's training set into the Hessian and factorize it."""
    _step(job, output, cluster, lambda steps: [Hessian(steps.factor().path)])


@click.command(epilog="Example:  dlpr rigidity carbon.yaml --set film")
@_JOB
@_OUTPUT
@_CLUSTER
@_SET
def rigidity(job: Path, output: Path | None, cluster: str | None, name: str | None) -> None:
    """Compute the rigidities of JOB's test sets. `dlpr run` also publishes them."""

    def make(steps: Pipeline) -> list[Handle]:
        names = _names(steps, name, list(steps.job.test))
        return [Rigidities(steps.rigidity(one).path) for one in names]

    _step(job, output, cluster, make)
