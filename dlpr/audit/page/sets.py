"""What an audit's page shows of the sets: tables, distributions and errors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dlpr.audit.page.diagrams import MARGIN, WIDTH, Axis, Strips, axis_of, strips
from dlpr.audit.page.section import Section, symbol
from dlpr.audit.record import (
    AuditRecord,
    CheckRecord,
    ErrorRecord,
    GroupRecord,
    Quantiles,
    SetRecord,
)

MOST_ROWS = 30
"""Groups of a set that are drawn: of more, those that are known least."""
_TITLES = {
    "lpr": "local prediction rigidity (LPR)",
    "prior_ratio": "prior ratio: 1 where the data say nothing",
}
_OF_SETS = {
    "lpr": "How firmly the training data fix the environments of each set (how many, at the "
    "right). The farther left a bar reaches, the less is known there: label structures like those.",
    "prior_ratio": "How many times more the data say than nothing at all. Where bars come near 1, "
    "do not rely on the model before such structures are labelled.",
}
_OF_GROUPS = {
    "lpr": "The same by group and species, the least known first: label structures of the topmost.",
    "prior_ratio": "How far the data go beyond knowing nothing, which is 1: a group that comes "
    "near it needs labels most.",
}
_ERRORS = (
    "How far the model is from the labels. What lies to the right of the others needs more "
    "training data, or has wrong labels."
)


@dataclass(frozen=True)
class SetView:
    """What is shown of one set."""

    record: SetRecord
    rows: list[GroupRecord]
    """Of the table: all, each group and each species, where there are several."""
    details: list[GroupRecord]
    """Of each group and species."""
    errors: list[ErrorRecord]
    diagrams: list[Strips]
    n_left_out: int
    """Groups and species that are not drawn."""


def section(record: AuditRecord) -> Section:
    """All sets, beside one another and one by one."""
    views = [_view(record, one) for one in record.sets]
    return Section("sets", "Data", {"sets": views, "compared": _compared(record)})


def _compared(record: AuditRecord) -> list[Strips]:
    """All sets beside one another: rigidities, and errors where there are labels."""
    rows = [(one.name, one.name, one.groups[0]) for one in record.sets if one.groups]
    errors = [(one.name, e) for one in record.sets for e in one.errors if e.group is None]
    return [*_distributions(record, rows, _OF_SETS), *_errors(record, errors)]


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
    of_groups = [e for e in one.errors if e.group is not None and has_groups]
    errors = [(e.group or "", e) for e in of_groups[: MOST_ROWS * len(one.errors)]]
    return SetView(
        one,
        [*one.groups[:1], *parts],
        [g for g in one.groups if None not in (g.group, g.species)] if has_species else [],
        [e for e in one.errors if e.group is None or has_groups],
        [*_distributions(record, rows, _OF_GROUPS), *_errors(record, errors)],
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
        axis = _axis([*_ends(getattr(group, measure) for group in groups), *fixed])
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


def _errors(record: AuditRecord, rows: Sequence[tuple[str, ErrorRecord]]) -> list[Strips]:
    """Of the first quantity of each kind, energies and forces, on one axis for the whole page."""
    every = [error for one in record.sets for error in one.errors]
    first = {error.quantity.split()[0]: error for error in reversed(every)}
    found = []
    for kind in sorted(first):
        quantity, unit = first[kind].quantity, first[kind].unit
        axis = _axis(_ends(e.percentiles for e in every if e.quantity == quantity))
        own = [(label, e) for label, e in rows if e.quantity == quantity and e.percentiles.values]
        shown = [(label, f"{e.n:,}", e.percentiles, ()) for label, e in own]
        if shown:
            found.append(strips(f"absolute error, {quantity} ({unit})", _ERRORS, axis, shown))
    return found


def _ends(quantiles: Iterable[Quantiles]) -> list[float]:
    """Between what bars are drawn."""
    return [
        value
        for one in quantiles
        for level, value in zip(one.levels, one.values, strict=False)
        if 0.01 <= level <= 0.99
    ]


def _axis(values: Sequence[float]) -> Axis:
    return axis_of(values, True, MARGIN, WIDTH - MARGIN)


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
