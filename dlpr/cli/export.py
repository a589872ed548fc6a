"""The command that writes results for other programs."""

from __future__ import annotations

from pathlib import Path

import click

FORMATS = ("extxyz", "chemiscope", "csv", "parquet")


@click.command(
    epilog="""\b
    Examples:
      dlpr export results --set film --to film.extxyz.gz
      dlpr export results --set film --structures 0:10 --to film.json.gz
      dlpr export results --to summary.csv
    """
)
@click.argument("output", type=click.Path(path_type=Path, file_okay=False))
@click.option("--set", "name", help="A test set; needed for structures if there are several.")
@click.option("--format", type=click.Choice(FORMATS), help="Without it: what FILE ends in.")
@click.option(
    "--to", "file", metavar="FILE", required=True, type=click.Path(path_type=Path, dir_okay=False)
)
@click.option("--structures", metavar="SLICE", help="Some of the set: 0:10, ::5, -1.")
def export(
    output: Path, name: str | None, format: str | None, file: Path, structures: str | None
) -> None:
    """Write the result in OUTPUT for other programs.

    \b
    extxyz      structures with columns lpr and prior_ratio per atom (OVITO, ASE)
                .extxyz .xyz .extxyz.gz .xyz.gz
    chemiscope  structures for chemiscope.org, coloured by LPR    .json .json.gz
    csv         the summary: counts and quantiles per set, group and species    .csv .csv.gz
    parquet     the same    .parquet
    """
    from dlpr.exports import export as do_export

    click.echo(str(do_export(output, file, name=name, format=format, structures=structures)))
