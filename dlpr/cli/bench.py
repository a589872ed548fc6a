"""The command that measures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from dlpr.bench.measure import DATA, FEWEST_COLUMNS, FEWEST_ENVIRONMENTS
from dlpr.bench.suite import MEASUREMENTS


@click.command(epilog="Example:  dlpr bench --quick   (then, on an idle machine: dlpr bench)")
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("dlpr-bench"),
    show_default=True,
    help="Folder for bench.json and the plots; what it has is kept. Its disk is measured.",
)
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(list(MEASUREMENTS)),
    help="Take this measurement only; may be given again.",
)
@click.option(
    "--columns",
    type=click.IntRange(min=FEWEST_COLUMNS),
    multiple=True,
    help="D, in place of the usual ones.",
)
@click.option(
    "--environments",
    type=click.IntRange(min=FEWEST_ENVIRONMENTS),
    multiple=True,
    help="Of whole runs, in place of the usual ones.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=DATA,
    show_default=True,
    help="Folder of the literature's carbon, for float32; without it that one is skipped.",
)
@click.option("--repeats", type=click.IntRange(min=1), help="Samples of each figure.")
@click.option("--quick", is_flag=True, help="Tiny sizes: shows that everything runs, no more.")
def bench(
    output: Path,
    only: tuple[str, ...],
    columns: tuple[int, ...],
    environments: tuple[int, ...],
    repeats: int | None,
    data: Path,
    quick: bool,
) -> None:
    """Measure this machine, dlpr on it, and others beside dlpr.

    Every pass of dlpr is timed in turn with its peer: BLAS and featomic alone, scikit-matter,
    dask.array. Needs an idle machine; the usual sizes take about an hour and 30 GB of disk.
    """
    from rich.console import Console

    from dlpr.bench.measure import QUICK, Row, Sizes, held_back
    from dlpr.bench.plots import draw
    from dlpr.bench.report import FILE, line, tables
    from dlpr.bench.suite import run_bench, wanted
    from dlpr.cli.report import show

    console = Console()

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    def tell(row: Row) -> None:
        say(f"  {line(row)}")

    sizes = QUICK if quick else Sizes()
    sizes = replace(
        sizes,
        columns=tuple(sorted(columns)) or sizes.columns,
        environments=tuple(sorted(environments)) or sizes.environments,
        repeats=repeats or sizes.repeats,
    )
    said = held_back()
    if said:
        say(said)
    report = run_bench(output, sizes, only, say, tell, data)
    for table in tables(report, wanted(only)):
        show(console, table)
    if quick:
        say("sizes were tiny: these figures say that everything runs, and nothing of its speed")
    if said:
        say(said)
    for path in [output / FILE, *draw(report)]:
        say(str(path))
