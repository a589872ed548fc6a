"""The command that turns rigidities into uncertainties."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

METHODS = ("likelihood", "squared", "absolute", "crps", "all")


@click.command(
    epilog="""\b
    Examples:
      dlpr calibrate results --set validation
      dlpr calibrate results --set validation --plot reliability.svg --to calibration.json
      dlpr calibrate results --set validation --method crps
    """
)
@click.argument("results", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--set", "name", required=True, help="A test set with energies that the fit has not seen."
)
@click.option(
    "--method", type=click.Choice(METHODS), default="all", show_default=True, help="See above."
)
@click.option(
    "--plot", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False), help=".svg .png .pdf"
)
@click.option(
    "--to",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write all figures as JSON, with conventions and what they were computed from.",
)
def calibrate(results: Path, name: str, method: str, plot: Path | None, to: Path | None) -> None:
    """Fit the scale a of uncertainties a / sqrt(PR) to the errors of a test set in RESULTS.

    The uncertainty of an environment's energy is then a / sqrt(LPR). Nothing is computed anew.

    \b
    likelihood  a^2 = mean of error^2 PR: the most likely of Gaussian errors
    squared     mean squared error = mean variance; large variances decide
    absolute    the same of absolute errors; bears outliers better
    crps        least continuous ranked probability score; bears outliers better

    The plot shows squared error against estimated variance in bins of equal count (on the diagonal
    where the estimates hold), and every error against its estimate with lines of 1, 2 and 3 sigma.
    """
    from dlpr.cli.report import show
    from dlpr.plots import check_picture, plot_reliability
    from dlpr.store.files import write_json
    from dlpr.uncertainty import calibrate as do_calibrate

    picture = check_picture(plot) if plot else None
    found = do_calibrate(results, name, method)
    console = Console()
    show(console, found.table())
    for line in found.notes():
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if picture:
        click.echo(str(plot_reliability(picture, found)))
    if to:
        write_json(to.absolute(), found.to_json())
        click.echo(str(to.absolute()))
