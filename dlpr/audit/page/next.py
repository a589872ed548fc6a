"""What an audit's page shows of the candidates to label next."""

from __future__ import annotations

from collections.abc import Sequence

from dlpr.audit.page.diagrams import Chart, chart
from dlpr.audit.page.section import Section
from dlpr.audit.record import AuditRecord, NextRecord

STRATEGIES = {"d_optimal": "D-optimal"}
_GAIN = (
    "What each further label is expected to do for the flagged environments, beside other ways to "
    "choose. Where the curve flattens, further labels bring little: stop there."
)


def section(record: AuditRecord) -> list[Section]:
    """The picks and what they bring; nothing without a pool."""
    if record.next is None:
        return []
    return [Section("next", "What to label next", {"gain": _gain(record.next)})]


def _gain(found: NextRecord) -> Chart:
    """The objective after each pick, and that of other strategies."""
    curves: dict[str, Sequence[float | None]] = {
        "these picks": [found.before, *(pick.objective for pick in found.picks)]
    }
    for name, values in found.baselines.items():
        curves[STRATEGIES.get(name, name.replace("_", " "))] = [found.before, *values]
    is_logarithmic = all(value and value > 0 for curve in curves.values() for value in curve)
    ends = ("no new label", f"{len(found.picks)} labels")
    return chart(found.objective.replace("_", " "), curves, ends, is_logarithmic, caption=_GAIN)
