"""The model of a plan, made from its settings and from what its rows were made with."""

from __future__ import annotations

from dlpr.core.models import FeatureMap, Identity, Model
from dlpr.stages.features import open_descriptor
from dlpr.stages.references import open_kernel
from dlpr.store.files import Json
from dlpr.store.folder import StageFolder


def open_map(rows: StageFolder) -> FeatureMap:
    """The feature map of a "rows" or "derivatives" stage, planned or finished."""
    if "references" in rows.plan["inputs"]:
        return open_kernel(rows.input("references"))
    calculator = open_descriptor(rows.settings["features"]["descriptor"])
    return Identity.of(len(calculator.species), calculator.components)


def open_model(rows: StageFolder, model: Json, constant: float = 0.0) -> Model:
    """The model of a plan's settings.

    Parameters
    ----------
    rows : StageFolder
        Planned or finished: says what the columns are.
    model : dict
        ``rows`` and ``centre_species``.
    constant : float
        See `Model`.
    """
    shared = model["centre_species"] == "shared"
    return Model(open_map(rows), model["rows"], shared, constant)


def open_sums(rows: StageFolder) -> Model:
    """What every model of the same rows has in common: their sums over structures."""
    return Model(open_map(rows), "sum")
