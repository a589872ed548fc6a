"""A saved model: a folder of two files.

``model.json`` says how the model was made and what its numbers mean; ``arrays.npz`` has weights,
references of a kernel and the factors of the Hessian. Nothing in it is unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dlpr.core.fit import Fit, load_fit
from dlpr.core.kernel import Kernel, load_kernel
from dlpr.core.models import FeatureMap, Identity, Model
from dlpr.descriptors import NETWORKS, Descriptor, descriptor
from dlpr.errors import JobError, StoreError
from dlpr.fitted.model import FittedModel
from dlpr.store.files import Json, atomic_folder, read_arrays, read_json, write_arrays, write_json
from dlpr.store.folder import digest

MODEL_VERSION = 1
"""Version of the folder of a saved model."""
RECORD, ARRAYS = "model.json", "arrays.npz"


def write_model(model: FittedModel, folder: str | PathLike[str]) -> Path:
    """Write a model as one folder, which appears whole.

    Parameters
    ----------
    model : FittedModel
        With weights.
    folder : path
        New, empty, or an older saved model, which it replaces.

    Returns
    -------
    Path
        The folder, absolute.

    Raises
    ------
    JobError
        If the features follow from files of the user's, not from atoms.
    StoreError
        If something else is there.
    """
    target = Path(folder).absolute()
    if model.descriptor.reads_rows:
        raise JobError(
            "the features of this model are rows of files (descriptor.features), which no other "
            "structure has: it cannot be saved. Name a descriptor that is computed from atoms, "
            "such as soap or python."
        )
    is_free = not target.exists() or (target.is_dir() and not any(target.iterdir()))
    if not is_free and not (target / RECORD).is_file():
        raise StoreError(
            f"{target} exists and is no saved model; nothing is written over it. Name a new folder."
        )
    columns = model.fit.model
    with atomic_folder(target) as partial:
        record: Json = {
            "model_version": MODEL_VERSION,
            "descriptor": model.descriptor.settings(),
            "training_species": list(model.seen),
            "kind": "kernel" if isinstance(columns.map, Kernel) else "linear",
            "rows": columns.rows,
            "shared": columns.shared,
            "constant": columns.constant,
            "mu": model.fit.mu,
            "scale": model.scale,
            "record": model.record,
            "arrays": write_arrays(partial / ARRAYS, _arrays(model.fit)),
        }
        write_json(partial / RECORD, {**record, "digest": digest(record)})
    return target


def load_model(folder: str | PathLike[str], *, trust: bool = False) -> FittedModel:
    """Open a saved model.

    Parameters
    ----------
    folder : path
    trust : bool
        Allow a descriptor that is a Python function or a network: opening such a model runs the
        code that it names.

    Raises
    ------
    StoreError
        If there is no model, it is damaged, or a newer dlpr wrote it.
    JobError
        If its descriptor cannot be made here.
    """
    path = Path(folder).absolute()
    record = read_json(path / RECORD)
    if record is None:
        raise StoreError(
            f"{path} is no saved model: it has no readable {RECORD}. `dlpr save RESULTS FOLDER` "
            "writes one."
        )
    version = record.get("model_version")
    if not isinstance(version, int) or version > MODEL_VERSION:
        raise StoreError(
            f"{path} is a saved model of version {version!r}; this dlpr reads up to "
            f"{MODEL_VERSION}. Use the dlpr that wrote it, or a newer one."
        )
    if record.pop("digest", None) != digest(record):
        raise _damaged(path, f"{RECORD} does not match its digest")
    settings: Json = record["descriptor"]
    named = [settings, *settings.get("parts", {}).values()]
    runs_code = [kind for kind in ("python", *NETWORKS) if any(kind in one for one in named)]
    if not trust and runs_code:
        raise JobError(
            f"the descriptor of {path} is a {runs_code[0]}, and to open the model runs code that "
            "is not dlpr's. If you trust where the model comes from, open it with trust=True "
            "(--trust)."
        )
    calculator = descriptor(settings)
    try:
        fit = _fit(record, read_arrays(path / ARRAYS, record["arrays"]), calculator)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise _damaged(path, error) from error
    return FittedModel(
        calculator, fit, tuple(record["training_species"]), record["scale"], record["record"]
    )


def _damaged(path: Path, error: object) -> StoreError:
    return StoreError(
        f"the saved model {path} is damaged: {error}. Copy it again, or write it anew with "
        "`dlpr save`."
    )


def _arrays(fit: Fit) -> dict[str, NDArray[Any]]:
    """All arrays of a model."""
    arrays: dict[str, NDArray[Any]] = {"isolated": fit.isolated, **fit.to_arrays()}
    if isinstance(fit.model.map, Kernel):
        arrays |= {f"kernel.{key}": value for key, value in fit.model.map.to_arrays().items()}
    return arrays


def _fit(record: Json, arrays: Mapping[str, NDArray[Any]], calculator: Descriptor) -> Fit:
    """The inverse of `_arrays`."""
    n_species = len(calculator.species)
    mapping: FeatureMap
    if record["kind"] == "kernel":
        head = "kernel."
        own = {k.removeprefix(head): v for k, v in arrays.items() if k.startswith(head)}
        mapping = load_kernel(own)
    else:
        mapping = Identity.of(n_species, calculator.components)
    model = Model(mapping, record["rows"], record["shared"], record["constant"])
    weights, isolated, n_columns = arrays["weights"], arrays["isolated"], model.layout.n_columns
    if (len(weights), len(isolated)) != (n_columns, n_species):
        raise ValueError(
            f"it has {len(weights)} weights and {len(isolated)} energies of atoms; needed are "
            f"{n_columns} and {n_species}"
        )
    return load_fit(arrays, model, float(record["mu"]), isolated)
