"""Commands for fitted models: save one, and predict with it."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(epilog="Example:  dlpr save results model")
@click.argument("results", type=click.Path(path_type=Path, file_okay=False))
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--scale",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Of uncertainties: the a of a sqrt(1/R).",
)
def save(results: Path, folder: Path, scale: float) -> None:
    """Write the model that the run in RESULTS has fitted as one FOLDER.

    It needs nothing else, but for a Python function or network that its descriptor names: `dlpr
    predict`, dlpr.load_model and dlpr.ase.RigidityCalculator open it.
    """
    from dlpr.saving import save_model

    click.echo(str(save_model(results, folder, scale)))


@click.command(
    epilog="""\b
    Examples:
      dlpr predict model test.extxyz --to predicted.extxyz
      dlpr predict model 'md-*.traj@::10' --to md.extxyz.gz --forces --stress
    """
)
@click.argument("model", type=click.Path(path_type=Path, file_okay=False))
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--to", "target", metavar="FILE", required=True, type=click.Path(path_type=Path, dir_okay=False)
)
@click.option("--forces", is_flag=True, help="Predict forces as well.")
@click.option("--stress", is_flag=True, help="Predict stresses as well.")
@click.option("--uncertainty", is_flag=True, help="That of forces and stresses as well: slow.")
@click.option(
    "--key",
    "keys",
    metavar="LABEL=NAME",
    multiple=True,
    help="What a label is called in the files: --key energy=dft_energy.",
)
@click.option(
    "--trust", is_flag=True, help="Run the Python function or network that the model names."
)
def predict(
    model: Path,
    files: tuple[str, ...],
    target: Path,
    forces: bool,
    stress: bool,
    uncertainty: bool,
    keys: tuple[str, ...],
    trust: bool,
) -> None:
    """Predict the structures in FILE with a saved MODEL, and write them as extended xyz.

    Columns per atom: energies, lpr, prior_ratio, uncertainty (eV), unseen, and forces; of a model
    with a committee committee_variance (eV²), of a descriptor's parts lpr_NAME. FILE is of any
    format that ASE reads; labels in it are compared with what is predicted.
    """
    from rich.console import Console
    from rich.progress import Progress

    from dlpr.cli.report import show
    from dlpr.exports.predictions import predict as do_predict
    from dlpr.fitted import load_model
    from dlpr.tables import TextTable

    names = dict(_pair(key) for key in keys)
    console = Console()
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("predict", total=None)
        found = do_predict(
            load_model(model, trust=trust),
            files,
            target,
            forces=forces,
            stress=stress,
            uncertainty=uncertainty,
            keys=names,
            listener=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    units = {"energy": "eV/atom", "forces": "eV/Å", "stress": "eV/Å³"}
    rows = [
        [kind, units[kind], str(errors.n), f"{errors.rmse:.4g}"]
        for kind, errors in found.errors.items()
        if errors.n
    ]
    if rows:
        show(console, TextTable("Errors", ("label", "unit", "numbers", "RMSE"), 2, rows))
    text = f"{found.n_structures} structures, {found.n_atoms} atoms"
    if found.n_unseen:
        text += f", {found.n_unseen} of them unlike the training set (column unseen)"
    console.print(f"{text}: {found.path}", highlight=False, markup=False, soft_wrap=True)


def _pair(key: str) -> tuple[str, str]:
    label, equals, name = key.partition("=")
    if not equals or not name:
        raise click.BadParameter(f"{key!r} is no LABEL=NAME, such as energy=dft_energy")
    return label, name
