"""A fitted model by itself: what it predicts, and the folder that it is saved as."""

from __future__ import annotations

from dlpr.fitted.folder import load_model, write_model
from dlpr.fitted.model import FittedModel, Prediction

__all__ = ["FittedModel", "Prediction", "load_model", "write_model"]
