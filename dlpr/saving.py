"""From a finished run to a model that is saved by itself."""

from __future__ import annotations

from dataclasses import replace
from os import PathLike
from pathlib import Path

import numpy as np

from dlpr.core.factor import Factor, TriangularFactor
from dlpr.core.fit import parts_of
from dlpr.core.tilefactor import TiledFactor
from dlpr.errors import StoreError
from dlpr.fitted import FittedModel, write_model
from dlpr.handles import Result
from dlpr.stages.committee import describe_committee, open_members
from dlpr.stages.factor import open_factors
from dlpr.stages.features import open_descriptor
from dlpr.stages.structures import open_structures
from dlpr.store.folder import StageFolder

UNITS = "energies eV, lengths Å, forces eV/Å, stress eV/Å³ (tension positive)"


def fitted_model(results: str | PathLike[str], scale: float = 1.0) -> FittedModel:
    """The fitted model of a finished run.

    Parameters
    ----------
    results : path
        The output folder of the run.
    scale : float
        Of uncertainties, see `FittedModel`.

    Raises
    ------
    StoreError
        If there is no finished run, or it has no weights.
    """
    result = Result(Path(results))
    path = result.path.resolve().parent
    if not (path / "plan.json").exists():
        raise StoreError(
            f"{result.path} lies apart from its run: there is no {path / 'plan.json'}. Save the "
            "model from the run's own output folder."
        )
    folder = StageFolder(path)
    rigidity = folder.input(folder.settings["sets"][0])
    factor = rigidity.input("factor")
    rows = factor.input("rows")
    factors = open_factors(factor)
    fit = factors.fit
    if fit.weights is None:
        raise StoreError(
            f"{result.output} has no weights: its training set has no energies to fit. Name them "
            "in train.keys and run the job again."
        )
    attributes = folder.settings["attributes"]
    training = rows.input("structures")
    record = {
        "job": attributes["job"],
        "versions": attributes["versions"],
        "model": factor.settings["model"],
        "map": factor.settings["map"],
        "loss": factor.settings["loss"],
        "factor": factors.facts,
        "inputs": {"factor": factor.output_digest(), **factor.plan["inputs"]},
        "sources": training.input("index").settings["sources"],
        "units": UNITS,
        "uncertainty": "sqrt(scale^2 (1/R + residual/mu)); scale in the units of the loss's rows",
    }
    if factors.is_tiled:
        layout = fit.model.layout
        blocks = tuple(_held(one, layout.slice(b)) for b, one in enumerate(fit.blocks))
        whole = blocks[0] if len(blocks) == 1 else None
        components = parts_of(fit.model, whole, blocks)
        fit = replace(fit, whole=whole, blocks=blocks, components=components)
    if "committee" in rigidity.plan["inputs"]:
        committee = rigidity.input("committee")
        fit = replace(fit, members=open_members(committee))
        record["committee"] = describe_committee(committee)
    calculator = open_descriptor(rows.settings["features"]["descriptor"])
    return FittedModel(calculator, fit, open_structures(training).species, scale, record)


def save_model(
    results: str | PathLike[str], folder: str | PathLike[str], scale: float = 1.0
) -> Path:
    """Write the fitted model of a finished run as one folder.

    `load_model`, ``dlpr.ase.RigidityCalculator`` and ``dlpr predict`` open it, without the run.

    Parameters
    ----------
    results : path
        The output folder of the run.
    folder : path
        New, or an older saved model, which it replaces.
    scale : float
        ``a`` of the uncertainties ``a sqrt(1/R)``, such as a calibration gave.

    Returns
    -------
    Path
        The folder, absolute.

    Raises
    ------
    StoreError, JobError
        As `fitted_model` and `write_model`.
    """
    return write_model(fitted_model(results, scale), folder)


def _held(factor: Factor, columns: slice) -> TriangularFactor:
    """A block's factor in one piece: the tiles of the block come last in their order."""
    assert isinstance(factor, TiledFactor)
    tiling = factor.tiling
    tiles = [tile for tile in factor.order if tile in set(tiling.touched(columns))]
    stops = np.cumsum([tiling.widths[tile] for tile in tiles]).tolist()
    starts = [0, *stops[:-1]]
    triangle = np.zeros((stops[-1], stops[-1]), order="F")
    for j, (second, a, b) in enumerate(zip(tiles, starts, stops, strict=True)):
        for first, c, d in zip(tiles[: j + 1], starts, stops, strict=False):
            triangle[c:d, a:b] = factor.read_tile(first, second)
    return TriangularFactor(triangle)
