"""What an audit's page shows of the audits before."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dlpr.audit.page.diagrams import Chart, chart
from dlpr.audit.page.section import ORDER, Section
from dlpr.audit.record import AuditRecord, CheckRecord, SeriesRecord
from dlpr.audit.series import key_of
from dlpr.audit.words import QUANTITY


@dataclass(frozen=True)
class History:
    """Figures of one set over audits."""

    charts: list[Chart]
    """Of what has ever changed, or does not hold."""
    constant: dict[str, float | None]
    """What all audits have found alike, by name."""


def section(record: AuditRecord) -> Section:
    """Figures over audits by set, those of checks that do not hold first."""
    return Section("history", "History", {"history": _history(record)})


def _history(record: AuditRecord) -> dict[str, History]:
    checks = {(check.set, key_of(check)): check for check in record.checks}

    def urgency(series: SeriesRecord) -> int:
        check = checks.get((series.set, series.measure))
        return len(ORDER) if check is None else ORDER.index(check.verdict)

    found: dict[str, History] = {}
    for series in sorted(record.series, key=urgency):
        if len(series.values) < 2:
            continue
        of_set = found.setdefault(series.set, History([], {}))
        check = checks.get((series.set, series.measure))
        title = _title(series, check)
        if len({*series.values} - {None}) < 2 and (check is None or check.verdict == "pass"):
            of_set.constant[title] = series.values[-1]
        else:
            ends = series.audits[0], series.audits[-1]
            bound = check.bound if check else None
            curve = {title: series.values}
            of_set.charts.append(chart(title, curve, ends, series.is_logarithmic, bound))
    return found


def _title(series: SeriesRecord, check: CheckRecord | None) -> str:
    """What a figure is called below the name of its set."""
    quantile = re.fullmatch(r"(\w+)\.q([0-9.]+)(.*)", series.measure)
    if check is not None:
        name = check.name.removeprefix(f"{series.set}: ")
    elif quantile:
        measure, q, among = quantile.groups()
        name = f"{QUANTITY.get(measure, measure)}, {100 * float(q):g} % quantile{among}"
    else:
        name, _, of = series.measure.removeprefix("n_").replace("_", " ").partition(".")
        name = f"{name.upper()} of {of}" if of else name
    return f"{name} ({series.unit})" if series.unit not in ("", name) else name
