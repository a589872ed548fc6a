"""The model of a plan, made from its settings."""

from __future__ import annotations

from dlpr.core.models import MODELS, Model
from dlpr.stages.features import open_descriptor
from dlpr.store.files import Json


def open_model(features: Json, model: Json) -> Model:
    """The model of a plan's settings.

    Parameters
    ----------
    features : dict
        With ``descriptor``.
    model : dict
        ``kind``, and what the job says of it.
    """
    calculator = open_descriptor(features["descriptor"])
    return MODELS[model["kind"]](model, calculator.n_features, len(calculator.species))
