"""What is not as it was in an earlier audit: files, settings, data that are gone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlpr.audit.record import AuditRecord, SetRecord
from dlpr.audit.spec import HELD_OUT, OF_DATA
from dlpr.engine.pipeline import Pipeline
from dlpr.engine.regularizer_choice import regularizer
from dlpr.engine.workspace import differences
from dlpr.store.files import Json

_MODEL = ("descriptor", "model", "loss", "solver", "storage")
_OF_FILES = {"files", "fingerprint"}


def settings_of(steps: Pipeline) -> Json:
    """What decides the meaning of a job's figures, but for the files themselves."""
    resolved = steps.job.resolved()
    is_picked = steps.job.model.spec.scan is not None
    test = {name: _without_files(spec) for name, spec in resolved["test"].items()}
    return {
        **{name: resolved[name] for name in _MODEL},
        "cross_validation": resolved["cross_validation"],
        "train": _without_files(resolved["train"]),
        "test": test,
        "picked_regularizer": regularizer(steps) if is_picked else None,  # may go with the data
    }


def _without_files(spec: Any) -> Any:
    if not isinstance(spec, dict):
        return spec
    return {name: value for name, value in spec.items() if name not in _OF_FILES}


def setting_changes(now: Json, before: AuditRecord) -> list[str]:
    """Settings, of `settings_of`, that were others in an earlier audit."""
    return differences(now, before.conventions["settings"])


def changes_for(name: str, now: Json, before: AuditRecord, of: str) -> list[str]:
    """Settings that change what a figure of one set means.

    Parameters
    ----------
    name : str
    now : dict
        Of `settings_of`.
    before : AuditRecord
    of : str
        What a check measures: of structures alone, of held-out errors, or of rigidities.
    """
    own, old = (
        {**one, "test": one["test"].get(name)} for one in (now, before.conventions["settings"])
    )
    if of not in HELD_OUT:
        own, old = ({**one, "cross_validation": None} for one in (own, old))
    if of in OF_DATA:
        kept = "train" if name == "train" else "test"
        own, old = ({kept: one[kept]} for one in (own, old))
    return differences(own, old)


def inputs_of(sources: list[Json]) -> dict[str, str]:
    """Files of a set, and what tells their contents apart; a file that is only touched is equal."""
    found = {}
    for source in sources:
        mark = source["fingerprint"]
        digest = mark.get("sha256") or mark["ends_sha256"]
        found[source["path"]] = f"{mark['size']} {digest[:16]}"
    return found


def file_changes(now: Mapping[str, str], before: Mapping[str, str]) -> tuple[int, int]:
    """Files that are new, and files that are others than before."""
    new = sum(path not in before for path in now)
    changed = sum(before.get(path, mark) != mark for path, mark in now.items())
    return new, changed


def lost_environments(now: SetRecord, before: SetRecord) -> dict[str, tuple[int, int]]:
    """By group: environments that an earlier audit had and that are gone, and those it had."""
    counts = [
        {one.group: one.n_environments for one in record.groups if one.species is None}
        for record in (now, before)
    ]
    return {
        group: (n - counts[0].get(group, 0), n)
        for group, n in counts[1].items()
        if group is not None and counts[0].get(group, 0) < n
    }
