"""What an audit's page shows of the sets: tables and distributions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dlpr.audit.page.diagrams import Strips, strips, strips_axis
from dlpr.audit.page.section import Section, symbol
from dlpr.audit.record import AuditRecord, CheckRecord, GroupRecord, SetRecord

MOST_ROWS = 30
"""Groups of a set that are drawn: of more, those that are known least."""
_TITLES = {
    "lpr": "local prediction rigidity (LPR)",
    "prior_ratio": "prior ratio: 1 where the data say nothing",
}
_OF_SETS = {
    "lpr": "How firmly the training data fix the environments of each set (how many, at the "
    "right). The farther left a violin reaches, the less is known there: label structures like "
    "those.",
    "prior_ratio": "How many times more the data say than nothing at all. Where violins come near "
    "1, do not rely on the model before such structures are labelled.",
}
_OF_GROUPS = {
    "lpr": "The same by group and species, the least known first: label structures of the topmost.",
    "prior_ratio": "How far the data go beyond knowing nothing, which is 1: a group that comes "
    "near it needs labels most.",
}


@dataclass(frozen=True)
class SetView:
    """What is shown of one set."""

    record: SetRecord
    rows: list[GroupRecord]
    """Of the table: all, each group and each species, where there are several."""
    details: list[GroupRecord]
    """Of each group and species."""
    diagrams: list[Strips]
    n_left_out: int
    """Groups and species that are not drawn."""


def section(record: AuditRecord) -> Section:
    """All sets, beside one another and one by one."""
    views = [_view(record, one) for one in record.sets]
    return Section("sets", "Data", {"sets": views, "compared": _compared(record)})


def _compared(record: AuditRecord) -> list[Strips]:
    """All sets beside one another."""
    rows = [(one.name, one.name, one.groups[0]) for one in record.sets if one.groups]
    return _distributions(record, rows, _OF_SETS)


def _view(record: AuditRecord, one: SetRecord) -> SetView:
    """Table and diagrams of a set; a single group, or a single species, is not told apart."""
    has_groups = len({group.group for group in one.groups} - {None}) > 1
    has_species = len({group.species for group in one.groups} - {None}) > 1
    parts = [
        group
        for group in one.groups[1:]
        if (has_groups and group.species is None) or (has_species and group.group is None)
    ]
    shown = sorted(parts, key=_lowest)[:MOST_ROWS]
    rows = [(g.group or f"species {symbol(g.species)}", one.name, g) for g in shown]
    return SetView(
        one,
        [*one.groups[:1], *parts],
        [g for g in one.groups if None not in (g.group, g.species)] if has_species else [],
        _distributions(record, rows, _OF_GROUPS),
        len(parts) - len(shown),
    )


def _lowest(group: GroupRecord) -> float:
    at = dict(zip(group.lpr.levels, group.lpr.values, strict=False))
    return at.get(0.05, float("inf"))


def _distributions(
    record: AuditRecord, rows: Sequence[tuple[str, str, GroupRecord]], captions: dict[str, str]
) -> list[Strips]:
    """Of each measure, on one axis for the whole page: label, set and group of each row."""
    found = []
    groups = [group for one in record.sets for group in one.groups]
    for measure, caption in captions.items():
        fixed = _bounds(record.checks, "lpr") if measure == "lpr" else [1.0]
        axis = strips_axis((getattr(group, measure) for group in groups), fixed)
        shown = [
            (
                label,
                f"{group.n_environments:,}",
                getattr(group, measure),
                _bounds(record.checks, measure, (name, group.group, group.species)),
            )
            for label, name, group in rows
            if getattr(group, measure).values
        ]
        if shown:
            found.append(strips(_TITLES[measure], caption, axis, shown))
    return found


def _bounds(
    checks: Sequence[CheckRecord],
    measure: str,
    of: tuple[str, str | None, int | None] | None = None,
) -> list[float]:
    """Bounds of quantiles of a measure: all, or those of one set, group and species."""
    return [
        check.bound
        for check in checks
        if check.bound is not None
        and check.measure.startswith(f"{measure}.q")
        and of in (None, (check.set, check.group, check.species))
    ]
