"""What an audit's page shows of sets, their history and the candidates: rows and diagrams."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ase.data import chemical_symbols

from dlpr.audit.diagrams import MARGIN, WIDTH, Axis, Chart, Strips, axis_of, chart, strips
from dlpr.audit.record import (
    AuditRecord,
    CheckRecord,
    ErrorRecord,
    GroupRecord,
    NextRecord,
    Quantiles,
    SeriesRecord,
    SetRecord,
)
from dlpr.audit.words import QUANTITY

MOST_ROWS = 30
"""Groups of a set that are drawn: of more, those that are known least."""
ORDER = ("fail", "warn", "pass")
STRATEGIES = {"d_optimal": "D-optimal"}
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
_GAIN = (
    "What each further label is expected to do for the flagged environments, beside other ways to "
    "choose. Where the curve flattens, further labels bring little: stop there."
)


def symbol(species: int | None) -> str:
    """What chemists call an atomic number; None: of all."""
    return "all" if species is None else chemical_symbols[species]


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


def compared(record: AuditRecord) -> list[Strips]:
    """All sets beside one another: rigidities, and errors where there are labels."""
    rows = [(one.name, one.name, one.groups[0]) for one in record.sets if one.groups]
    errors = [(one.name, e) for one in record.sets for e in one.errors if e.group is None]
    return [*_distributions(record, rows, _OF_SETS), *_errors(record, errors)]


def set_view(record: AuditRecord, one: SetRecord) -> SetView:
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


@dataclass(frozen=True)
class History:
    """Figures of one set over audits."""

    charts: list[Chart]
    """Of what has ever changed, or does not hold."""
    constant: dict[str, float | None]
    """What all audits have found alike, by name."""


def history(record: AuditRecord) -> dict[str, History]:
    """Figures over audits by set, those of checks that do not hold first."""
    checks = {(check.set, _key(check)): check for check in record.checks}

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


def _key(check: CheckRecord) -> str:
    """The key of a check's figure in the history."""
    among = [check.group, symbol(check.species) if check.species else None]
    return " ".join([check.measure, *(one for one in among if one)])


def gain(found: NextRecord) -> Chart:
    """The objective after each pick, and that of other strategies."""
    curves: dict[str, Sequence[float | None]] = {
        "these picks": [found.before, *(pick.objective for pick in found.picks)]
    }
    for name, values in found.baselines.items():
        curves[STRATEGIES.get(name, name.replace("_", " "))] = [found.before, *values]
    is_logarithmic = all(value and value > 0 for curve in curves.values() for value in curve)
    ends = ("no new label", f"{len(found.picks)} labels")
    return chart(found.objective.replace("_", " "), curves, ends, is_logarithmic, caption=_GAIN)
