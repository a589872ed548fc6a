"""What a factorization takes from the job: the weights of the loss and its regularizer."""

from __future__ import annotations

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from dlpr.core.folds import Gram, Triangle
from dlpr.core.models import Model
from dlpr.errors import InputError
from dlpr.stages.features import open_descriptor
from dlpr.stages.fold import Wanted, Weights, anything, combined
from dlpr.stages.model import open_model
from dlpr.stages.rows import open_rows
from dlpr.stages.sources import lambda_of
from dlpr.store.files import Json
from dlpr.store.folder import StageFolder


def weights_of(loss: Json) -> Weights:
    """Weight of a kind of target in a group: lambda, times the group's own (FD24 eq. 5-6)."""

    def weight(kind: str, group: str) -> float:
        return float(lambda_of(loss, kind) * loss["groups"].get(group, 1.0))

    return weight


def chosen_fold(folder: StageFolder, model: Model, wanted: Wanted = anything) -> Gram | Triangle:
    """The weighted fold of a "factor" or "fit", or of what is wanted of it: the model's columns,
    and the target."""
    fold = combined(folder.input("fold"), 0, weights_of(folder.settings["loss"]), wanted)
    fold.shift_target(model.constants, isolated_energies(folder))
    columns, scale = np.append(model.columns, len(fold.matrix) - 1), np.append(model.scale, 1.0)
    return fold.select(columns, scale)


def factor_model(folder: StageFolder, facts: Json) -> Model:
    """The model of a "factor" or "cholesky" with what its regularizer says of the baseline."""
    return open_model(folder.input("rows"), folder.settings["model"], facts["constant"])


def regularizer_of(rows: StageFolder, model: Json) -> Json:
    """The regularizer mu, the square of the features' scale that is in it, and `Model.constant`.

    Raises
    ------
    InputError
        If the features have no scale.
    """
    scale_square = scale_square_of(rows, model)
    mu, composition = model["regularizer"] * scale_square, model["baseline"].get("composition")
    constant = np.sqrt(mu / composition["regularizer"]) if composition else 0.0
    return {"scale_square": scale_square, "mu": mu, "constant": float(constant)}


def scale_square_of(rows: StageFolder, model: Json) -> float:
    """The square of the features' scale: mu is the regularizer times this.

    Raises
    ------
    InputError
        If the features have no scale.
    """
    found = open_rows(rows).mean_square if model["scale"] == "rms" else 1.0
    if found == 0.0:
        raise InputError("all features of the training set are 0: they have no scale")
    return float(found)


def isolated_energies(folder: StageFolder) -> NDArray[np.float64]:
    """(n_species,) energies of isolated atoms that are taken off the targets; 0 by default."""
    given = folder.settings["model"]["baseline"].get("isolated") or {}
    species = open_descriptor(folder.settings["features"]["descriptor"]).species
    return np.array([given.get(chemical_symbols[z], 0.0) for z in species])
