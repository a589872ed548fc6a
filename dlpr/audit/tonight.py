"""The figures of a finished run, and those of earlier audits in the same shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import zarr

from dlpr.audit.changes import file_changes, inputs_of, settings_of
from dlpr.audit.cross_validation import held_out, validation_record
from dlpr.audit.errors import QUANTITIES, errors_of, measure
from dlpr.audit.figures import (
    Distributions,
    Key,
    Scale,
    distributions_of,
    group_records,
    quantiles,
    summary_of,
)
from dlpr.audit.history import PastAudit
from dlpr.audit.record import CrossValidationRecord, ErrorRecord, GroupRecord, SetRecord
from dlpr.audit.spec import DISTRIBUTED, ERRORS, FINDINGS, HELD_OUT, POOL, AuditSpec, Check
from dlpr.audit.validation import finding, validation_of
from dlpr.audit.worst import RESIDUAL, Environments
from dlpr.core.quantiles import QuantileSketch
from dlpr.engine.pipeline import Pipeline
from dlpr.handles import CrossValidation, Result
from dlpr.stages.structures import StructureStore, open_structures
from dlpr.store.files import Json
from dlpr.store.folder import StageFolder
from dlpr.uncertainty import calibrate

CERTAINTY = "certainty"
"""1 / (1/LPR + residual/mu): the rigidity of a kernel's environment, with what its references do
not see."""


@dataclass(frozen=True)
class Target:
    """What one check is about: a set, and a group or a species of it."""

    check: Check
    set: str
    group: str | None = None
    species: int | None = None


@dataclass(frozen=True)
class View:
    """What checks read of one audit."""

    sets: dict[str, SetRecord]
    distributions: Distributions
    scale: Scale | None
    cross_validation: CrossValidationRecord | None = None

    @classmethod
    def of(cls, audit: PastAudit) -> View:
        """An earlier audit's."""
        found = audit.record.conventions["uncertainty"]
        scale = Scale(found["a"], found["measure"]) if found else None
        sets = {one.name: one for one in audit.record.sets}
        return cls(sets, audit.distributions, scale, audit.record.cross_validation)

    def figure(self, target: Target) -> float | None:
        """What a check measures, as far as one audit says it; None where there is nothing."""
        check, name = target.check, target.set
        if check.of in ERRORS:
            return self._error(target)
        if check.of in FINDINGS:
            return finding(self.sets[name].validation, check.of, target.group)
        if check.of in HELD_OUT:
            return held_out(self.cross_validation, check, target.group)
        if check.of == "unseen":
            place = (target.group, target.species)
            own = [one for one in self.sets[name].groups if (one.group, one.species) == place]
            return float(own[0].n_unseen) if own else 0.0
        if check.of not in DISTRIBUTED or (check.of == "uncertainty" and self.scale is None):
            return None
        scale = self.scale if check.of == "uncertainty" else None
        of = measure(check.quantity) if check.of == "error" else check.of
        values = self.distributions.of(
            name, scale.measure if scale else of, target.group, target.species
        )
        if not values.n_finite:
            return None
        if check.quantile is not None:
            return (
                scale.quantile(values, check.quantile) if scale else values.quantile(check.quantile)
            )
        assert check.share_below is not None
        bound = check.share_below
        return scale.share_below(values, bound) if scale else values.share_below(bound)

    def _error(self, target: Target) -> float | None:
        quantity, _ = QUANTITIES[target.check.quantity]
        for one in self.sets[target.set].errors:
            if (one.quantity, one.group) == (quantity, target.group):
                return one.rmse if target.check.of == "rmse" else one.mae
        return None


@dataclass(frozen=True)
class Tonight:
    """A finished run as an audit sees it."""

    spec: AuditSpec
    view: View
    result: StageFolder
    cross_validation: CrossValidation | None
    structures: dict[str, StructureStore]
    """of the training set and of each rated set"""
    results: dict[str, zarr.Group]
    """of the rated sets"""
    environments: dict[str, Environments]
    rows: StageFolder
    """of the training set"""
    conventions: Json
    """of the record"""

    @property
    def settings(self) -> Json:
        """See `dlpr.audit.changes.settings_of`."""
        found: Json = self.conventions["settings"]
        return found


def look(spec: AuditSpec, steps: Pipeline, result: Result, before: PastAudit | None) -> Tonight:
    """All figures of a finished run.

    Parameters
    ----------
    spec : AuditSpec
    steps : Pipeline
        Of the audit's job.
    result : Result
    before : PastAudit, optional
        What says which files are new.
    """
    results = {name: result.open(name) for name in spec.rated()}
    names = list(dict.fromkeys(["train", *results]))
    structures = {name: open_structures(steps.ingest(name)) for name in names}
    root: Json = dict(zarr.open_group(str(result.path), mode="r").attrs)
    of_set: Json = dict(next(iter(results.values())).attrs)
    factor = of_set["factor"]
    environments = {
        name: Environments(name, one, float(factor["mu"])) for name, one in results.items()
    }
    scale, calibration = _scale(spec, result, results)
    conventions = {
        "job": root["job"],
        "versions": root["versions"],
        "factor": factor,
        "references": steps.references().output_digest() if steps.job.model.kernel else None,
        "settings": settings_of(steps),
        "inputs": {name: inputs_of(steps.index(name).settings["sources"]) for name in names},
        "uncertainty": calibration,
    }
    tonight = Tonight(
        spec=spec,
        view=View({}, Distributions(), scale, validation_record(result.cross_validation)),
        result=StageFolder(result.path.resolve().parent),
        cross_validation=result.cross_validation,
        structures=structures,
        results=results,
        environments=environments,
        rows=steps.rows(),
        conventions=conventions,
    )
    old: Json = {} if before is None else before.record.conventions["inputs"]
    for name in names:
        tonight.view.sets[name] = _look_at_set(tonight, name, old.get(name, {}))
    return tonight


def _look_at_set(tonight: Tonight, name: str, before: dict[str, str]) -> SetRecord:
    """The record of a set, whose distributions are put among those of all."""
    store, inputs = tonight.structures[name], tonight.conventions["inputs"][name]
    distributions, scale = tonight.view.distributions, tonight.view.scale
    groups, validation = _counts(store), None
    errors: list[ErrorRecord] = []
    if name in tonight.results:
        result = tonight.results[name]
        summary = summary_of(tonight.result, name)
        distributions.sketches |= distributions_of(name, summary, result)
        if scale is not None and scale.measure == CERTAINTY:
            distributions.sketches |= _certainties(tonight.environments[name])
        groups = group_records(distributions, name, summary, scale)
        errors, of_errors = errors_of(name, result, store)
        distributions.sketches |= of_errors
        validation = validation_of(result, store, tonight.spec.validation.plots.get(name))
    n_new, n_changed = file_changes(inputs, before)
    return SetRecord(
        name=name,
        role=_role(name),
        n_files=len(inputs),
        n_new_files=n_new,
        n_changed_files=n_changed,
        n_structures=store.n_structures,
        n_environments=store.n_environments,
        groups=groups,
        errors=errors,
        validation=validation,
    )


def _role(name: str) -> Literal["train", "test", "pool"]:
    if name == POOL:
        return "pool"
    return "train" if name == "train" else "test"


def _scale(
    spec: AuditSpec, result: Result, results: dict[str, zarr.Group]
) -> tuple[Scale | None, Json | None]:
    """The scale of uncertainties, and how it was found."""
    if spec.uncertainty is None:
        return None, None
    name, method = spec.uncertainty.set, spec.uncertainty.method
    (fit,) = calibrate(result, name, method).fits
    scale = Scale(fit.scale, CERTAINTY if RESIDUAL in results[name] else "lpr")
    about = {"a": scale.a, "measure": scale.measure, "set": name, "method": method, "n": fit.n}
    return scale, about


def _certainties(environments: Environments) -> dict[Key, QuantileSketch]:
    """Of each group and species, read chunk by chunk."""
    found: dict[Key, QuantileSketch] = {}
    for start, chunk in environments.chunks():
        at = np.arange(start, start + len(chunk["lpr"]))
        group = environments.number[environments.structure_of(at)]
        label = group.astype(np.int64) * 256 + chunk["species"]
        for one in np.unique(label).tolist():
            number, species = divmod(one, 256)
            key = Key(environments.name, CERTAINTY, environments.groups[number], species)
            found.setdefault(key, QuantileSketch()).add(chunk[CERTAINTY][label == one])
    return found


def _counts(store: StructureStore) -> list[GroupRecord]:
    """Environments of a set without rigidities, of all and by group."""
    n_atoms = np.diff(store.structure_offset)
    by_group = np.bincount(store.group, n_atoms, len(store.group_names)).astype(int).tolist()
    counts = zip([None, *store.group_names], [store.n_environments, *by_group], strict=True)
    nothing = quantiles(QuantileSketch())
    return [
        GroupRecord(
            group=group,
            species=None,
            n_environments=n,
            n_inf=0,
            n_unseen=0,
            lpr=nothing,
            prior_ratio=nothing,
        )
        for group, n in counts
    ]
