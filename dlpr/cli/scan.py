"""The command that shows what the regularizer does."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from rich.console import Console

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(
    epilog="""\b
    Examples:
      dlpr scan results --on validation
      dlpr scan results --on validation --plot scan.svg --to scan.json
      dlpr scan results --on validation --from 1e-9 --up-to 1e-3 --points 61
    """
)
@click.argument("results", type=click.Path(path_type=Path, file_okay=False))
@click.option("--on", "name", required=True, help="A test set that took no part in the fit.")
@click.option("--from", "low", type=float, default=1e-12, show_default=True, help="The smallest.")
@click.option("--up-to", "high", type=float, default=1.0, show_default=True, help="The largest.")
@click.option("--points", type=click.IntRange(min=2), default=37, show_default=True)
@click.option("--plot", metavar="FILE", type=_FILE, help=".svg .png .pdf")
@click.option("--to", metavar="FILE", type=_FILE, help="Write all figures as JSON.")
def scan(
    results: Path,
    name: str,
    low: float,
    high: float,
    points: int,
    plot: Path | None,
    to: Path | None,
) -> None:
    """Compare regularizers for the finished run in RESULTS by their errors of a test set.

    One decomposition of what the run has folded serves all of them; features are computed of the
    test set alone. Printed and drawn are the errors of the training set and of the test set, and
    quantiles of the LPR of the test set, against the regularizer as a job file has it.
    """
    from dlpr.cli.report import ProgressLines, show
    from dlpr.plots import check_picture, plot_scan
    from dlpr.scanning import scan as do_scan
    from dlpr.store.files import write_json

    if not 0.0 < low < high < np.inf:
        raise click.BadParameter(f"--from {low:g} --up-to {high:g}: needs 0 < from < up-to")
    picture = check_picture(plot) if plot else None
    console = Console()
    with ProgressLines(console) as lines:
        found = do_scan(results, name, np.geomspace(low, high, points), listeners=(lines,))
    show(console, found.table())
    for line in found.notes():
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if picture:
        click.echo(str(plot_scan(picture, found)))
    if to:
        write_json(to.absolute(), found.to_json())
        click.echo(str(to.absolute()))
