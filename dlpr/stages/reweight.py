"""Rows of losses that are not squared, weighed by their residuals at an earlier fit."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache

import numpy as np

from dlpr.core.losses import LOSSES, Given, Loss
from dlpr.core.models import Model, Targets
from dlpr.core.rows import FloatArray
from dlpr.descriptors.user_code import check_source, imported, source_digest
from dlpr.stages.sources import kinds_of
from dlpr.store.files import Json, canonical_json
from dlpr.store.folder import StageFolder

BY = ("weight", "second")
"""What a row is weighed by: ``l'(r)/r`` for the next fit, ``l''(r)`` for the Hessian."""


def shapes_of(loss: Json, folder: str) -> Json:
    """Shapes of the losses that are not squared, by kind, with all that decides them.

    Parameters
    ----------
    loss : dict
    folder : str
        That of the job.
    """
    found: Json = {}
    for kind in kinds_of(loss):
        if isinstance(loss[kind], dict):
            ((name, shape),) = loss[kind]["shape"].items()
            if name == "python":
                function = imported(shape["call"], folder, _key(kind))
                source = source_digest(function, shape["options"], folder)
                shape = {**shape, "folder": folder, "source_sha256": source}
            found[kind] = {name: shape}
    return found


def _key(kind: str) -> str:
    return f"loss.{kind}.shape.python.call"


@lru_cache(maxsize=8)
def _open(shape: bytes, kind: str) -> Loss:
    ((name, options),) = json.loads(shape).items()
    if name != "python":
        return LOSSES[name](**options)
    function = imported(options["call"], options["folder"], _key(kind))
    source = source_digest(function, options["options"], options["folder"])
    check_source(options["call"], source, options["source_sha256"], "rows")
    return Given(function, options["options"], f"loss.{kind}: {options['call']}")


def open_loss(shape: Json, kind: str) -> Loss:
    """The loss of a kind of targets, opened once per process.

    Raises
    ------
    JobError
        If a user's function cannot be imported, or is not the one of the plan.
    """
    return _open(canonical_json(shape), kind)


class Reweighing:
    """Weights of the rows of one kind at a fit.

    Parameters
    ----------
    folder : StageFolder
        Planned "hessian" or "triangle" with ``reweight`` in its settings and a "fit" among its
        inputs.
    kind : str
        One whose loss is not squared.

    Attributes
    ----------
    square : float
        ``sum l'(r) r`` so far, of rows times their weights: what is left of the loss.
    n_flat : int
        Rows so far on which the loss has no second derivative.
    """

    def __init__(self, folder: StageFolder, kind: str) -> None:
        settings = folder.settings["reweight"]
        self._by: str = settings["by"]
        self._loss = open_loss(settings["shapes"][kind], kind)
        self._fit: FloatArray = folder.input("fit").read_part(0, ("folded",))["folded"]
        self.square, self.n_flat = 0.0, 0

    def of(self, model: Model, targets: Targets) -> Targets:
        """The rows with their weights times ``l'(r)/r`` or ``l''(r)``."""
        residual = residuals(model, targets, self._fit)
        if self._by == "weight":
            weight = self._loss.weight(residual)
            self.square += float(np.sum(targets.weight * weight * np.square(residual)))
        else:
            weight = self._loss.second(residual)
            self.n_flat += int(np.count_nonzero(weight == 0.0))
        return replace(targets, weight=targets.weight * weight)

    @property
    def facts(self) -> Json:
        """What the next fit or the factor says of the rows."""
        return {"square": self.square} if self._by == "weight" else {"n_flat": self.n_flat}


def residuals(model: Model, targets: Targets, folded: FloatArray) -> FloatArray:
    """Predictions less labels (n,), as the loss takes them.

    Parameters
    ----------
    model : Model
    targets : Targets
    folded : (model.folded.n_columns + 1,) float64
        Weights of all columns that are folded; -1 of the target.
    """
    found, start = np.zeros(len(targets.y)), 0
    for side in model.sides(targets):
        found += side @ folded[start : start + side.shape[1]]
        start += side.shape[1]
    return found * targets.factor
