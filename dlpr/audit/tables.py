"""An audit as tables and as one paragraph."""

from __future__ import annotations

from pathlib import Path

from dlpr.audit.changes import setting_changes
from dlpr.audit.history import PAGE, PastAudit
from dlpr.audit.record import AuditRecord, CheckRecord, Quantiles, SetRecord
from dlpr.core.drift import drift
from dlpr.tables import TextTable

_WORDS = {"pass": "all checks hold", "warn": "holds, with warnings", "fail": "FAILED"}


def check_table(record: AuditRecord) -> TextTable:
    """What was expected and found, what does not hold first."""
    order = ("fail", "warn", "pass")
    checks = sorted(record.checks, key=lambda check: order.index(check.verdict))
    rows = [
        [one.verdict, one.name, one.expected, number(one.found), number(one.baseline), one.unit]
        for one in checks
    ]
    baseline = f"; baseline: {record.baseline}" if record.baseline else ""
    columns = ("verdict", "check", "expected", "found", "baseline", "unit")
    title = f"{record.title}, {record.name}: {_WORDS[record.verdict]}"
    return TextTable(title, columns, 3, rows, f"begun {record.begun}{baseline}")


def set_table(record: AuditRecord) -> TextTable:
    """What each set is tonight."""
    rows = [
        [
            one.name,
            one.role,
            *map(str, (one.n_files, one.n_new_files, one.n_changed_files)),
            *map(str, (one.n_structures, one.n_environments)),
            *(number(at(one.groups[0].lpr, q)) for q in (0.05, 0.5)),
            number(at(one.groups[0].prior_ratio, 0.05)),
        ]
        for one in record.sets
    ]
    columns = ("set", "role", "files", "new", "changed", "structures", "environments")
    return TextTable("Sets", (*columns, "LPR 5 %", "50 %", "ratio 5 %"), 2, rows)


def work_table(record: AuditRecord) -> TextTable:
    """What was computed, and why."""
    rows = [
        [one.stage, one.reason, f"{one.n_computed}/{one.n_tasks}", f"{one.seconds:.1f}"]
        for one in record.work
    ]
    return TextTable("Work", ("stage", "why", "tasks computed", "seconds"), 2, rows)


def list_table(audits: list[PastAudit]) -> TextTable:
    """Audits, the newest last."""
    rows = []
    for one in (audit.record for audit in audits):
        counts = [sum(c.verdict == v for c in one.checks) for v in ("fail", "warn", "pass")]
        seconds = sum(work.seconds for work in one.work)
        baseline = one.baseline or "-"
        rows.append([one.name, one.verdict, baseline, *map(str, counts), f"{seconds:.1f}"])
    columns = ("audit", "verdict", "baseline", "failed", "warned", "held", "seconds")
    return TextTable("Audits", columns, 3, rows)


def comparison(before: PastAudit, now: PastAudit) -> tuple[TextTable, list[str]]:
    """Two audits side by side, and what else is different."""
    old, new = before.record, now.record
    known = {one.name: one for one in old.sets}
    rows = [_compared(before, now, known[one.name], one) for one in new.sets if one.name in known]
    columns = ("set", "environments", "then", "LPR 5 %", "then", "50 %", "then", "KS distance")
    caption = f"{new.name} beside {old.name}; KS distance: of the distributions of LPR, 0 to 1"
    notes = [f"setting {line}" for line in setting_changes(new.conventions["settings"], old)]
    names = {one.name for one in new.sets}
    notes += [f"set {name} is new" for name in names - known.keys()]
    notes += [f"set {name} is gone" for name in known.keys() - names]
    verdicts = {one.key: one.verdict for one in old.checks}
    for one in new.checks:
        was = verdicts.get(one.key, one.verdict)
        if was != one.verdict:
            notes.append(f"{one.name}: {was} -> {one.verdict}")
    return TextTable("Comparison", columns, 1, rows, caption), notes


def _compared(before: PastAudit, now: PastAudit, old: SetRecord, new: SetRecord) -> list[str]:
    sketches = [audit.distributions.of(new.name, "lpr") for audit in (before, now)]
    ks = drift(*sketches).ks if all(one.n_finite for one in sketches) else None
    cells = [str(new.n_environments), str(old.n_environments)]
    for q in (0.05, 0.5):
        cells += [number(at(one.groups[0].lpr, q)) for one in (new, old)]
    return [new.name, *cells, number(ks)]


def paragraph(record: AuditRecord, folder: Path) -> str:
    """An audit in one paragraph of plain text, for a mail or a chat."""
    parts = [f"{record.title}, {record.name}: {_WORDS[record.verdict]}."]
    for verdict, word in (("fail", "Failed"), ("warn", "Warnings")):
        found = [one for one in record.checks if one.verdict == verdict]
        told = "; ".join(_told(one) for one in found[:5])
        more = f"; and {len(found) - 5} more" * (len(found) > 5)
        parts += [f"{word}: {told}{more}."] if found else []
    held = sum(one.verdict == "pass" for one in record.checks)
    parts.append(f"{held} of {len(record.checks)} checks hold.")
    n_new, n_changed = (
        sum(getattr(one, name) for one in record.sets)
        for name in ("n_new_files", "n_changed_files")
    )
    n_computed, n_tasks = (
        sum(getattr(one, name) for one in record.work) for name in ("n_computed", "n_tasks")
    )
    parts.append(
        f"{n_new} new and {n_changed} changed files; {n_computed} of {n_tasks} tasks computed."
    )
    parts.append(f"Report: {folder / record.name / PAGE}")
    return " ".join(parts)


def _told(check: CheckRecord) -> str:
    unit = f" {check.unit}" if check.unit else ""
    was = f" (baseline {number(check.baseline)})" if check.baseline is not None else ""
    return f"{check.name}: {number(check.found)}{unit}, expected {check.expected}{was}"


def at(quantiles: Quantiles, level: float) -> float | None:
    """One of the quantiles, if it is there."""
    found = dict(zip(quantiles.levels, quantiles.values, strict=False))
    return found.get(level)


def number(value: float | None) -> str:
    """Four digits; a dash where there is nothing."""
    return "-" if value is None else f"{value:.4g}"
