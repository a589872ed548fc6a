"""What an audit says of the training set's cross-validation."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dlpr.audit.errors import QUANTITIES
from dlpr.audit.figures import MILLI, read
from dlpr.audit.record import (
    CrossValidationRecord,
    ErrorRecord,
    FoldRecord,
    Quantiles,
    SpreadRecord,
)
from dlpr.audit.spec import Check
from dlpr.handles import CrossValidation
from dlpr.store.files import Json

WORST = 3
"""Structures that a check of held-out errors names."""


def validation_record(found: CrossValidation | None) -> CrossValidationRecord | None:
    """Errors in meV and its kin; None: the job has no cross-validation."""
    if found is None:
        return None
    about: Json = dict(found.open().attrs)
    folds = zip(about["folds"], about["n_structures"], strict=True)
    rows = about["summary"]
    return CrossValidationRecord(
        by=about["by"],
        seed=about["seed"],
        folds=[
            FoldRecord(
                name=name,
                n_structures=n,
                errors=_errors(row for row in rows if row["fold"] == name),
            )
            for name, n in folds
        ],
        errors=_errors(row for row in rows if row["fold"] is None or row["group"] is not None),
        spread=[_spread(one) for one in about["spread"]],
    )


def _errors(rows: Iterable[Json]) -> list[ErrorRecord]:
    return [
        ErrorRecord(
            quantity=row["quantity"],
            unit=f"m{row['unit']}",
            group=row["group"],
            n=row["n"],
            mae=MILLI * row["mae"],
            rmse=MILLI * row["rmse"],
            percentiles=Quantiles(
                levels=row["levels"], values=[MILLI * value for value in row["quantiles"]]
            ),
        )
        for row in rows
    ]


def _spread(one: Json) -> SpreadRecord:
    figures = {name: MILLI * one[name] for name in ("mae_mean", "mae_std", "rmse_mean", "rmse_std")}
    return SpreadRecord(
        quantity=one["quantity"], unit=f"m{one['unit']}", n_folds=one["n_folds"], **figures
    )


def held_out(record: CrossValidationRecord | None, check: Check, group: str | None) -> float | None:
    """The figure of a check of held-out errors; None where there is none."""
    if record is None:
        return None
    for one in record.errors:
        if (one.quantity, one.group) == (QUANTITIES[check.quantity][0], group):
            return one.rmse if check.of == "cv_rmse" else one.mae
    return None


def worst_structures(found: CrossValidation | None, check: Check, group: str | None) -> str:
    """The structures with the largest held-out errors, by file and frame."""
    if found is None:
        return ""
    store = found.open()
    if check.quantity.startswith("energy"):
        error = read(store, "structure_energy") - read(store, "structure_energy_label")
        size, unit = np.abs(error) / read(store, "structure_n_atoms"), "meV/atom"
    else:
        size, unit = read(store, "structure_forces_rmse"), "meV/Å"
    meant = np.isfinite(size)
    if group is not None:
        groups = np.array(store["structure_group"].attrs["names"])
        meant &= groups[read(store, "structure_group")] == group
    order = np.flatnonzero(meant)[np.argsort(-size[meant], kind="stable")][:WORST]
    names: Any = store["structure_source_file"].attrs["names"]
    files = [Path(name).name for name in names]
    own, frame = read(store, "structure_source_file"), read(store, "structure_source_frame")
    told = [f"frame {frame[k]} of {files[own[k]]} ({MILLI * size[k]:.3g} {unit})" for k in order]
    return f"The worst: {', '.join(told)}."
