"""What an audit's page shows of the candidates to label next."""

from __future__ import annotations

from collections.abc import Sequence

from dlpr.audit.page.diagrams import Chart, chart
from dlpr.audit.page.section import Section
from dlpr.audit.record import AuditRecord, NextRecord

STRATEGIES = {"d_optimal": "D-optimal"}
_GAIN = (
    "What each further label is expected to do, beside other ways to choose{of}. Where the curve "
    "flattens, further labels bring little: stop there. A label counts by its energy alone."
)
_OF = {
    "mean_variance": "the mean of 1/{rigidity} over",
    "mean_log_rigidity": "the mean of log {rigidity} over",
    "mean_rigidity": "the mean {rigidity} of",
    "min_rigidity": "the smallest {rigidity} of",
}
"""What an objective is."""


def section(record: AuditRecord) -> list[Section]:
    """The picks and what they bring; nothing without a pool."""
    if record.next is None:
        return []
    gain = _gain(record.next) if record.next.picks else None
    return [Section("next", "What to label next", {"gain": gain})]


def _about(found: NextRecord) -> str:
    """What the objective is taken of, for the caption; nothing in records that do not say it."""
    if found.n_targets is None:
        return ""
    what = _OF[found.objective].format(rigidity="LPR" if found.of == "environments" else "PR")
    least = f"{what} the {found.n_targets:,} least rigid {found.of} of {', '.join(found.sets)}"
    return f": {least}; from {found.n_candidates:,} candidates"


def _gain(found: NextRecord) -> Chart:
    """The objective after each pick, and that of other strategies."""
    curves: dict[str, Sequence[float | None]] = {
        "these picks": [found.before, *(pick.objective for pick in found.picks)]
    }
    for name, values in found.baselines.items():
        curves[STRATEGIES.get(name, name.replace("_", " "))] = [found.before, *values]
    is_logarithmic = all(value and value > 0 for curve in curves.values() for value in curve)
    ends = ("no new label", f"{len(found.picks)} labels")
    caption = _GAIN.format(of=_about(found))
    return chart(found.objective.replace("_", " "), curves, ends, is_logarithmic, caption=caption)
