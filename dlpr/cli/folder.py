"""Commands that take an output folder or a store."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console

from dlpr.cli.report import ProgressLines, show, show_result
from dlpr.tables import TextTable
from dlpr.units import format_bytes

_FOLDER = click.argument("folder", type=click.Path(path_type=Path, file_okay=False))


@click.command(
    epilog="Examples:  dlpr work results &  dlpr work results    or    srun -n 64 dlpr work results"
)
@_FOLDER
@click.option("--rank", type=int, help="Number of this process among its fellows (SLURM's if any).")
def work(folder: Path, rank: int | None) -> None:
    """Do whatever the job in FOLDER lacks, without Dask, beside others that do the same.

    Start as many as there are cores, by hand, under srun or as a job array. They share the tasks,
    replace one another when one dies, and leave the same bytes as `dlpr run`.
    """
    from dlpr.api import worker
    from dlpr.engine.stopping import soft_stops

    console = Console()
    with soft_stops(), ProgressLines(console) as lines:
        show_result(console, worker(folder, rank=rank, listeners=(lines,)))


@click.command(epilog="Example:  dlpr status results")
@_FOLDER
@click.option("--verify", is_flag=True, help="Read all data and compare their checksums.")
def status(folder: Path, verify: bool) -> None:
    """Say which tasks of FOLDER are done and which are missing."""
    from dlpr.engine.output import owner_of, read_job, stage_states
    from dlpr.engine.verify import damaged_tasks

    read_job(folder)
    console = Console()
    rows = []
    any_damaged = False
    for state in stage_states(folder):
        done = state.folder.n_tasks - len(state.missing)
        damaged = damaged_tasks(state.folder) if verify else []
        any_damaged |= bool(damaged)
        missing = ", ".join(map(str, state.missing[:8])) + (" ..." if state.missing[8:] else "")
        rows.append(
            [
                state.folder.name,
                "yes" if state.live else "no: dlpr clean",
                missing or "-",
                ", ".join(map(str, damaged)) or ("-" if verify else "not looked at"),
                f"{done}/{state.folder.n_tasks}",
                format_bytes(state.nbytes),
            ]
        )
    columns = ("stage", "in use", "missing tasks", "damaged tasks", "done", "data")
    show(console, TextTable(str(folder), columns, 4, rows))
    if any_damaged:
        console.print(
            "damaged tasks are done anew by the next run that reads them", highlight=False
        )
    console.print(owner_of(folder), highlight=False, soft_wrap=True)


@click.command(epilog="Example:  dlpr clean results")
@_FOLDER
def clean(folder: Path) -> None:
    """Remove from FOLDER the stages that neither its result nor its latest run refers to."""
    from dlpr.engine.output import clean as do_clean

    removed, nbytes = do_clean(folder)
    for name in removed:
        click.echo(f"removed {name}")
    click.echo(f"{len(removed)} stages removed, {format_bytes(nbytes)} freed")


@click.command(epilog="Example:  dlpr info results    or    dlpr info results/rigidity.zarr")
@click.argument("store", type=click.Path(path_type=Path, exists=True))
def info(store: Path) -> None:
    """Say what is in STORE (an output folder, a stage, a Zarr store) and how it was made."""
    from dlpr.describe import describe_store

    title, rows, record = describe_store(store)
    console = Console()
    show(console, TextTable(title, ("what", "value"), 2, rows))
    console.print(json.dumps(record, indent=1), highlight=False, markup=False, soft_wrap=True)
