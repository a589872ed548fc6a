"""Local prediction rigidities of atomistic models, at any scale.

``dlpr.run(job)`` does a whole job; `ingest`, `featurize`, `hessian` and `rigidity` are its steps.
`local_prediction_rigidity` and `componentwise_prediction_rigidity` are scikit-matter's functions
for features that are at hand already.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlpr.api import cross_validate, featurize, hessian, ingest, rigidity, run, work
    from dlpr.clusters.connect import connect
    from dlpr.core.inmemory import (
        componentwise_prediction_rigidity,
        local_prediction_rigidity,
    )
    from dlpr.errors import DlprError
    from dlpr.exports import export
    from dlpr.exports.predictions import predict
    from dlpr.fitted import FittedModel, Prediction, load_model
    from dlpr.handles import CrossValidation, Features, Hessian, Result, Rigidities, Structures
    from dlpr.job import Job, load_job
    from dlpr.saving import fitted_model, save_model
    from dlpr.scanning import scan
    from dlpr.uncertainty import calibrate

__all__ = [
    "CrossValidation",
    "DlprError",
    "Features",
    "FittedModel",
    "Hessian",
    "Job",
    "Prediction",
    "Result",
    "Rigidities",
    "Structures",
    "calibrate",
    "componentwise_prediction_rigidity",
    "connect",
    "cross_validate",
    "export",
    "featurize",
    "fitted_model",
    "hessian",
    "ingest",
    "load_job",
    "load_model",
    "local_prediction_rigidity",
    "predict",
    "rigidity",
    "run",
    "save_model",
    "scan",
    "work",
]
__version__ = _version("dlpr")

_PLACES = {
    "DlprError": "dlpr.errors",
    "calibrate": "dlpr.uncertainty",
    "connect": "dlpr.clusters.connect",
    "export": "dlpr.exports",
    "predict": "dlpr.exports.predictions",
    **dict.fromkeys(("FittedModel", "Prediction", "load_model"), "dlpr.fitted"),
    **dict.fromkeys(("fitted_model", "save_model"), "dlpr.saving"),
    "scan": "dlpr.scanning",
    **dict.fromkeys(("Job", "load_job"), "dlpr.job"),
    **dict.fromkeys(
        ("cross_validate", "run", "ingest", "featurize", "hessian", "rigidity", "work"), "dlpr.api"
    ),
    **dict.fromkeys(
        ("CrossValidation", "Features", "Hessian", "Result", "Rigidities", "Structures"),
        "dlpr.handles",
    ),
    **dict.fromkeys(
        ("local_prediction_rigidity", "componentwise_prediction_rigidity"), "dlpr.core.inmemory"
    ),
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: `import dlpr` stays quick."""
    if name not in _PLACES:
        raise AttributeError(f"module 'dlpr' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
