"""What an audit's page shows of its sample: maps, coloured by LPR and by its change."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from dlpr.audit.page.diagrams import MARGIN, WIDTH, number
from dlpr.audit.page.section import Section, symbol
from dlpr.audit.page.sticks import CIVIDIS, Colors
from dlpr.audit.record import AuditRecord, FlaggedEnvironment, SampleRecord

DIVERGING = (
    *("#8c510a", "#bf812d", "#dfc27d", "#eedcb5", "#f5f5f5"),
    *("#b9e0da", "#80cdc1", "#35978f", "#01665e"),
)
"""Of ratios below and above 1: told apart by every kind of colour vision (Brewer's BrBG)."""
_LEAST = 1.1
"""Ratio up to which the scale reaches at least."""


@dataclass(frozen=True)
class Mark:
    """An environment on the map."""

    x: float
    y: float
    color: str
    text: str


@dataclass(frozen=True)
class Map:
    """Environments in the plane of two principal axes."""

    title: str
    height: float
    training: list[tuple[float, float]]
    marks: list[Mark]
    scale: tuple[str, ...]
    ends: tuple[str, str]
    """of the scale"""


def section(record: AuditRecord) -> list[Section]:
    """The map by LPR, and by the ratio to the baseline's where it is known."""
    sample = record.sample
    if sample is None or not sample.environments:
        return []
    maps = [_by_lpr(sample)]
    ratios = [one.lpr_ratio for one in sample.environments if one.lpr_ratio]
    if ratios:
        maps.append(_by_ratio(sample, ratios))
    shown = {"maps": maps, "width": WIDTH, "explained": sample.explained}
    return [Section("map", "Map", shown)]


def _by_lpr(sample: SampleRecord) -> Map:
    finite = [one.lpr for one in sample.environments if 0.0 < one.lpr < math.inf] or [1.0]
    colors = Colors(min(finite), max(finite))

    def color(one: FlaggedEnvironment) -> str:
        return colors.of(one.lpr)

    ends = (f"LPR {number(colors.low)}", number(colors.high))
    return _map("Coloured by LPR", sample, color, CIVIDIS, ends)


def _by_ratio(sample: SampleRecord, ratios: list[float]) -> Map:
    reach = max(_LEAST, *(max(ratio, 1.0 / ratio) for ratio in ratios))

    def color(one: FlaggedEnvironment) -> str | None:
        if not one.lpr_ratio:
            return None
        part = 0.5 + 0.5 * math.log(one.lpr_ratio) / math.log(reach)
        return DIVERGING[round(part * (len(DIVERGING) - 1))]

    ends = (f"LPR ratio {number(1.0 / reach)}", number(reach))
    return _map("Coloured by the change since the baseline", sample, color, DIVERGING, ends)


def _map(
    title: str,
    sample: SampleRecord,
    color: Callable[[FlaggedEnvironment], str | None],
    scale: tuple[str, ...],
    ends: tuple[str, str],
) -> Map:
    """Place all environments, and colour those that have one: equal lengths on both axes."""
    points = [*sample.coordinates, *sample.training]
    left, right = (f(point[0] for point in points) for f in (min, max))
    bottom, top = (f(point[1] for point in points) for f in (min, max))
    scaling = (WIDTH - 2 * MARGIN) / (max(right - left, top - bottom) or 1.0)

    def place(point: list[float]) -> tuple[float, float]:
        x, y = MARGIN + scaling * (point[0] - left), MARGIN + scaling * (top - point[1])
        return round(x, 1), round(y, 1)

    marks = [
        Mark(*place(point), own, _text(one))
        for one, point in zip(sample.environments, sample.coordinates, strict=True)
        if (own := color(one)) is not None
    ]
    height = round(2 * MARGIN + scaling * (top - bottom), 1)
    return Map(title, height, [place(point) for point in sample.training], marks, scale, ends)


def _text(one: FlaggedEnvironment) -> str:
    ratio = f", ratio {number(one.lpr_ratio)}" if one.lpr_ratio else ""
    where = f"{one.set}, {one.group}: atom {one.atom} of frame {one.frame}"
    return f"{symbol(one.species)} in {where}; LPR {number(one.lpr)}{ratio}"
