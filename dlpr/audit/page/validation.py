"""What an audit's page shows of errors: beside rigidities, along trajectories, over volumes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np

from dlpr.audit.page.diagrams import Axis, Chart, Strips, chart, number, strips, strips_axis
from dlpr.audit.page.scatter import HEIGHT, Scatter, across, scatter
from dlpr.audit.page.section import Section
from dlpr.audit.page.sets import MOST_ROWS
from dlpr.audit.page.sticks import CIVIDIS, Colors, colors_of
from dlpr.audit.record import AuditRecord, ErrorRecord, SetRecord
from dlpr.audit.record_validation import (
    EnergyVolumeRecord,
    RankRecord,
    RigidityErrorRecord,
    TrajectoryRecord,
)

_ERRORS = (
    "How far the model is from the labels. What lies to the right of the others needs more "
    "training data, or has wrong labels."
)
_SHIFTED = "All errors have one constant in common, see above: their ranks say nothing yet."
_MOSTLY = 0.9
"""Part of the RMSE that is one constant where energies have another zero."""
_COLORED = (0.01, 0.99)
"""Quantiles of rigidities at the ends of the scale of colours."""
_STRONG = 0.5
"""Rank correlation from which rigidities are said to find errors."""


@dataclass(frozen=True)
class TrajectoryView:
    """A file frame by frame."""

    file: str
    rigidities: Chart
    errors: Chart | None
    """Where frames have labels."""
    caption: str


@dataclass(frozen=True)
class SetView:
    """What is shown of one set."""

    name: str
    errors: list[ErrorRecord]
    note: str
    """What to know before the errors are read."""
    diagrams: list[Strips]
    n_left_out: int
    """Groups whose errors are not drawn."""
    ranks: list[RankRecord]
    beside: Scatter | None
    trajectories: list[TrajectoryView]
    n_trajectories: int
    plane: Scatter | None


def section(record: AuditRecord) -> list[Section]:
    """Sets with labels or trajectories, beside one another and one by one."""
    known = [one.validation for one in record.sets if one.validation]
    beside = [one.rigidity_error for one in known if one.rigidity_error]
    axis = across([rigidity for one in beside for rigidity in one.rigidity], True)
    planes = [one.energy_volume for one in known if one.energy_volume]
    positive = [pr for one in planes for pr in one.rigidity if pr > 0]
    colors = colors_of([np.quantile(positive, _COLORED)] if positive else [])
    views = [
        _view(record, one, axis, colors) for one in record.sets if one.errors or one.validation
    ]
    views = [one for one in views if one.errors or one.beside or one.trajectories or one.plane]
    if not views:
        return []
    rows = [(one.name, e) for one in record.sets for e in one.errors if e.group is None]
    shown = {
        "sets": views,
        "compared": _errors(record, rows),
        "height": HEIGHT,
        "colors": colors,
        "scale": CIVIDIS,
    }
    return [Section("validation", "Errors and rigidity", shown)]


def _view(record: AuditRecord, one: SetRecord, axis: Axis, colors: Colors) -> SetView:
    has_groups = len({error.group for error in one.errors} - {None}) > 1
    of_groups = sorted(
        (e for e in one.errors if e.group is not None and has_groups), key=lambda e: -e.rmse
    )
    groups = list(dict.fromkeys(e.group for e in of_groups))
    rows = [(e.group or "", e) for e in of_groups if e.group in groups[:MOST_ROWS]]
    note, found = _note(one.errors), one.validation
    errors = found.rigidity_error if found else None
    energies = found.energy_volume if found else None
    return SetView(
        name=one.name,
        errors=[e for e in one.errors if e.group is None or has_groups],
        note=note,
        diagrams=_errors(record, rows),
        n_left_out=max(len(groups) - MOST_ROWS, 0),
        ranks=errors.groups if errors else [],
        beside=_rigidity_error(one.name, errors, axis, bool(note)) if errors else None,
        trajectories=[_trajectory(t) for t in found.trajectories] if found else [],
        n_trajectories=found.n_trajectories if found else 0,
        plane=_energy_volume(one.name, energies, colors) if energies else None,
    )


def _errors(record: AuditRecord, rows: Sequence[tuple[str, ErrorRecord]]) -> list[Strips]:
    """Of the first quantity of each kind, energies and forces, on one axis for the whole page."""
    every = [error for one in record.sets for error in one.errors]
    first = {error.quantity.split()[0]: error for error in reversed(every)}
    found = []
    for kind in sorted(first):
        quantity, unit = first[kind].quantity, first[kind].unit
        axis = strips_axis(e.percentiles for e in every if e.quantity == quantity)
        own = [(label, e) for label, e in rows if e.quantity == quantity and e.percentiles.values]
        shown = [(label, f"{e.n:,}", e.percentiles, ()) for label, e in own]
        if shown:
            found.append(strips(f"absolute error, {quantity} ({unit})", _ERRORS, axis, shown))
    return found


def _note(errors: Sequence[ErrorRecord]) -> str:
    """Energies whose zero is not the training set's have one error in common."""
    for one in errors:
        of_all = one.group is None and one.unit == "meV/atom" and one.n > 1
        if of_all and one.bias is not None and abs(one.bias) > _MOSTLY * one.rmse:
            return (
                f"Nearly all of the error in energy is one constant, {number(one.bias)} meV/atom: "
                "these labels have another zero than the training set's, or other settings. Make "
                "them alike before you read errors of energies."
            )
    return ""


def _rigidity_error(name: str, found: RigidityErrorRecord, axis: Axis, is_shifted: bool) -> Scatter:
    curve = zip(found.bin_rigidity, found.bin_error, strict=True)
    title = f"{name}: absolute errors of energies over the PR of structures"
    all_of = found.groups[0]
    drawn = _drawn(len(found.error), all_of.n)
    told = _SHIFTED if is_shifted else meaning(all_of)
    caption = f"{drawn}; the curve is the median. {told}"
    titles = "prediction rigidity (PR)", f"absolute error ({found.unit})"
    x, y = found.rigidity, found.error
    return scatter(title, titles, axis, x, y, curve=curve, caption=caption)


def meaning(found: RankRecord) -> str:
    """Does low rigidity find high errors? What it says and what to do, in plain words."""
    rho, n = found.rank_correlation, found.n
    worst = found.enrichments[0]
    where = (
        f"{worst.n_found} of the {worst.n_worst} largest errors are among the {worst.n_least} "
        f"least rigid structures (by chance: {number(worst.n_worst * worst.n_least / n, 2)})"
    )
    if rho is None:
        return "All rigidities, or all errors, are equal: ranks say nothing."
    if abs(rho) < 2 / math.sqrt(n - 1):
        return (
            f"Low rigidity does not find high errors here, as far as {n:,} structures tell (rank "
            f"correlation {number(rho, 2)}): look for errors elsewhere, in labels or in what the "
            f"model cannot describe; {where}."
        )
    if rho < 0:
        return (
            f"The most rigid structures have the largest errors (rank correlation "
            f"{number(rho, 2)}): look at their labels, and at the zero of their energies; {where}."
        )
    how = "finds high errors" if rho >= _STRONG else "finds some of the high errors"
    return (
        f"Low rigidity {how} (rank correlation {number(rho, 2)} of 1 at best): labels for what is "
        f"least rigid will lower them; {where}."
    )


def _drawn(n: int, of: int) -> str:
    few = f"{n:,} structures" if n == of else f"{n:,} of {of:,} structures, the extreme ones first"
    return f"Each dot is a structure ({few})"


def _trajectory(found: TrajectoryRecord) -> TrajectoryView:
    curves = {"median": found.median, "5 %": found.low, "lowest": found.minimum}
    frames = found.frames
    ends = f"frame {frames[0]:,}", f"frame {frames[-1]:,}"
    name = PurePath(found.file).name
    errors = None
    if any(error is not None for error in found.error):
        title = "error, energy per atom (meV/atom)"
        errors = chart(title, {"error": found.error}, ends, True)
    per_point = (
        f" A point is {found.frames_per_point} frames: the lowest LPR, the median of the others, "
        "the root mean square of errors."
        if found.frames_per_point > 1
        else ""
    )
    caption = (
        "Where the curves fall, the simulation reaches what the training data do not know; label "
        f"frames from there.{' Errors that rise at the same time agree.' if errors else ''}"
        f"{per_point}"
    )
    return TrajectoryView(
        name, chart("local prediction rigidity (LPR)", curves, ends, True), errors, caption
    )


def _energy_volume(name: str, found: EnergyVolumeRecord, colors: Colors) -> Scatter:
    of = "labelled" if found.is_labelled else "predicted"
    caption = (
        f"{_drawn(len(found.energy), found.n)} with its {of} energy, coloured by its PR: blue ones "
        "are known least. Where these have low energies, label them first: searches end there."
    )
    return scatter(
        f"{name}: energy over volume",
        ("volume (Å³/atom)", "energy (eV/atom)"),
        across(found.volume, False),
        found.volume,
        found.energy,
        rigidity=found.rigidity,
        colors=colors,
        caption=caption,
    )
