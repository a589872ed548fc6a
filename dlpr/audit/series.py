"""Figures over audits: each takes those of the audit before and adds its own."""

from __future__ import annotations

from dlpr.audit.errors import QUANTITIES
from dlpr.audit.figures import LEVELS
from dlpr.audit.history import PastAudit
from dlpr.audit.record import CheckRecord, Key, SeriesRecord, SetRecord
from dlpr.audit.tonight import Tonight

MOST = 400
"""Audits that a series goes back, at most."""
_LOGARITHMIC = ("lpr.q", "prior_ratio.q", "structure_pr.q", "uncertainty.q")
_SHOWN = {"lpr": (0.05, 0.5), "prior_ratio": (0.05,)}
"""Quantiles of every set that are kept, whatever the checks are."""


def series_of(
    name: str, tonight: Tonight, checks: list[CheckRecord], newest: PastAudit | None
) -> list[SeriesRecord]:
    """All figures of tonight, each behind those of the audits before.

    Parameters
    ----------
    name : str
        Of this audit.
    tonight : Tonight
    checks : list of CheckRecord
    newest : PastAudit, optional
        The audit before.
    """
    found: dict[Key, tuple[float | None, str]] = {}
    for one in tonight.view.sets.values():
        found |= _of_set(one)
    for check in checks:
        found.setdefault(check.key, (check.found, check.unit))
    before = {} if newest is None else {one.key: one for one in newest.record.series}
    series = []
    for (measure, of_set, group, species), (value, unit) in found.items():
        old = before.get((measure, of_set, group, species))
        audits, values = (old.audits, old.values) if old else ([], [])
        series.append(
            SeriesRecord(
                measure=measure,
                set=of_set,
                group=group,
                species=species,
                unit=unit,
                audits=[*audits, name][-MOST:],
                values=[*values, value][-MOST:],
                is_logarithmic=measure.startswith(_LOGARITHMIC),
            )
        )
    return series


def _of_set(one: SetRecord) -> dict[Key, tuple[float | None, str]]:
    found: dict[Key, tuple[float | None, str]] = {}
    all_of_it = one.name, None, None
    found["n_environments", *all_of_it] = float(one.n_environments), "environments"
    whole = one.groups[0]
    for measure, shown in _SHOWN.items():
        values = getattr(whole, measure).values
        for q in shown if values else ():
            found[f"{measure}.q{q:g}", *all_of_it] = values[LEVELS.index(q)], ""
    for error in one.errors:
        if error.group is None and error.quantity == QUANTITIES["energy"][0]:
            found["rmse.energy", *all_of_it] = error.rmse, error.unit
    return found
