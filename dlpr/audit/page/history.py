"""What an audit's page shows of the audits before."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from dlpr.audit.page.diagrams import Chart, chart
from dlpr.audit.page.section import ORDER, Section
from dlpr.audit.record import NAME, AuditRecord, CheckRecord, SeriesRecord
from dlpr.audit.words import QUANTITY, among


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
    mildest_first = sorted(record.checks, key=lambda check: -ORDER.index(check.verdict))
    checks = {check.key: check for check in mildest_first}

    def urgency(series: SeriesRecord) -> int:
        check = checks.get(series.key)
        return len(ORDER) if check is None else ORDER.index(check.verdict)

    found: dict[str, History] = {}
    for series in sorted(record.series, key=urgency):
        if len(series.values) < 2:
            continue
        of_set = found.setdefault(series.set, History([], {}))
        check = checks.get(series.key)
        title = _title(series, check)
        if len({*series.values} - {None}) < 2 and (check is None or check.verdict == "pass"):
            of_set.constant[title] = series.values[-1]
        else:
            begun = [_begun(name) for name in series.audits]
            of_set.charts.append(
                chart(
                    title,
                    {title: series.values},
                    _ends(begun),
                    series.is_logarithmic,
                    check.bound if check else None,
                    at=[time.timestamp() for time in begun],
                )
            )
    return found


def _begun(name: str) -> datetime:
    """When an audit of this name began."""
    return datetime.strptime(name[: name.index("Z") + 1] + "+0000", NAME + "%z")


def _ends(begun: list[datetime]) -> tuple[str, str]:
    """The first and the last day; with hours within few days."""
    first, last = begun[0], begun[-1]
    shown = "%Y-%m-%d" if (last - first).days > 2 else "%Y-%m-%d %H:%M"
    return first.strftime(shown), last.strftime(shown)


def _title(series: SeriesRecord, check: CheckRecord | None) -> str:
    """What a figure is called below the name of its set."""
    quantile = re.fullmatch(r"(\w+)\.q([0-9.]+)", series.measure)
    part = among(series.group, series.species)
    place = f"{series.set}{part}: "
    if check is not None and not check.name.startswith(place):
        name = check.name
    elif check is not None:
        name = check.name.removeprefix(place) + part
    elif quantile:
        measure, q = quantile.groups()
        name = f"{QUANTITY.get(measure, measure)}, {100 * float(q):g} % quantile{part}"
    else:
        name, _, of = series.measure.removeprefix("n_").replace("_", " ").partition(".")
        name = (f"{name.upper()} of {of}" if of else name) + part
    return f"{name} ({series.unit})" if series.unit not in ("", name) else name
