"""Diagrams of an audit's page: where everything goes, for the templates that draw it.

Drawn by templates rather than by Matplotlib, they take fonts and colours, also those of the dark
mode, from the page around them, and a page of a hundred of them takes no time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from dlpr.audit.record import OutlineRecord, Quantiles

WIDTH = 340.0
"""Of every diagram, in units of which a phone shows one in a pixel."""
MARGIN = 10.0
VIOLIN_HEIGHT = 10.0
"""Of the half of a violin, where it is widest."""
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_MOST_TICKS = 6
_MOST_DOTS = 60
"""Of a curve: of more, the line alone is drawn."""
_LARGEST = 1e100
"""Numbers beyond it are drawn at the end of an axis, as infinite ones are."""
_THINNEST = 6.0
"""Width of a bar that would hardly be seen."""


def number(value: float | None, digits: int = 3) -> str:
    """A few digits, as people write them."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return f"{float(f'{value:.{digits}g}'):,.10g}".replace("-", "−")
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".").replace("-", "−")
    power = "10" + str(int(exponent)).translate(_SUPERSCRIPTS)
    return power if mantissa == "1" else f"{mantissa}·{power}"


@dataclass(frozen=True)
class Axis:
    """Numbers along a line of a drawing."""

    low: float
    high: float
    is_logarithmic: bool
    start: float
    stop: float
    """Where ``low`` and ``high`` are drawn."""

    def place(self, value: float) -> float:
        """Where a number is drawn; one beyond the ends at the end."""
        if self.is_logarithmic:
            low, high = math.log(self.low), math.log(self.high)
            value = math.log(value) if value > 0 else -math.inf
        else:
            low, high = self.low, self.high
        part = min(max((value - low) / (high - low), 0.0), 1.0)
        return round(self.start + part * (self.stop - self.start), 1)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """A few round numbers: their places, and what they read."""
        values, digits = (self._powers(), 1) if self.is_logarithmic else ([], 1)
        if len(values) < 2:
            values, digits = self._multiples()
        return [(self.place(value), number(value, digits)) for value in values]

    def _powers(self) -> list[float]:
        """Powers of ten, and within few of them twice and five times each."""
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        step = max(1, math.ceil((last - first) / _MOST_TICKS))
        fine = (1, 2, 5) if last - first <= 2 else (1,)
        powers = (10.0**n for n in range(first, last + 1) if n % step == 0)
        return self._shown(m * power for power in powers for m in fine)

    def _multiples(self) -> tuple[list[float], int]:
        """Multiples of a round step, and the digits that tell them apart."""
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
        first, last = math.floor(self.low / step), math.ceil(self.high / step)
        values = self._shown(k * step for k in range(first, last + 1))
        largest = max(map(abs, values))
        return values, 1 + math.floor(math.log10(largest)) - math.floor(math.log10(power))

    def _shown(self, values: Iterable[float]) -> list[float]:
        return [v for v in values if self.low <= v <= self.high]


def axis_of(
    values: Iterable[float | None], is_logarithmic: bool, start: float, stop: float
) -> Axis:
    """An axis with room for all finite values; on a logarithmic one, for the positive ones."""
    finite = [v for v in values if v is not None and abs(v) < _LARGEST]
    if is_logarithmic:
        finite = [v for v in finite if v > 1 / _LARGEST] or [1.0]
        low, high = min(finite), max(finite)
        room = max((high / low) ** 0.05, 1.2)
        return Axis(low / room, high * room, True, start, stop)
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    room = max(0.08 * (high - low), 1e-6 * abs(high)) if high > low else 0.1 * abs(high) or 1.0
    return Axis(low - room if low < 0 or low > room else 0.0, high + room, False, start, stop)


@dataclass(frozen=True)
class Strip:
    """A distribution as a violin, the middle half as a bar in it, the median, bounds of checks."""

    label: str
    note: str
    violin: str
    """Points of its outline around its line, as SVG has them; none where values do not spread."""
    bar: tuple[float, float] | None
    """Start and width."""
    median: float | None
    median_text: str
    bounds: list[float]


@dataclass(frozen=True)
class Strips:
    """Distributions below one another, on one axis."""

    title: str
    caption: str
    axis: Axis
    strips: list[Strip]

    @property
    def has_bounds(self) -> bool:
        """Whether a check has one here."""
        return any(strip.bounds for strip in self.strips)


def strips_axis(quantiles: Iterable[Quantiles], fixed: Iterable[float] = ()) -> Axis:
    """A logarithmic axis for all that violins show of distributions, and for some numbers."""
    shown = [
        value
        for one in quantiles
        for level, value in zip(one.levels, one.values, strict=False)
        if 0.01 <= level <= 0.99
    ]
    return axis_of([*shown, *fixed], True, MARGIN, WIDTH - MARGIN)


def strips(
    title: str,
    caption: str,
    axis: Axis,
    rows: Sequence[tuple[str, str, Quantiles, Sequence[float]]],
) -> Strips:
    """Place distributions: label, note, quantiles, and bounds of checks, of each."""
    return Strips(title, caption, axis, [_strip(axis, *row) for row in rows])


def _strip(
    axis: Axis, label: str, note: str, quantiles: Quantiles, bounds: Sequence[float]
) -> Strip:
    at = dict(zip(quantiles.levels, map(axis.place, quantiles.values), strict=False))
    bar = None
    if 0.25 in at and 0.75 in at:
        width = max(at[0.75] - at[0.25], _THINNEST)
        bar = round(0.5 * (at[0.25] + at[0.75] - width), 1), round(width, 1)
    value = dict(zip(quantiles.levels, quantiles.values, strict=False)).get(0.5)
    return Strip(
        label,
        note,
        _violin(axis, quantiles.outline),
        bar,
        at.get(0.5),
        number(value),
        [axis.place(bound) for bound in bounds],
    )


def _violin(axis: Axis, outline: OutlineRecord | None) -> str:
    if outline is None:
        return ""
    steps = len(outline.height) - 1
    ratio = outline.high / outline.low
    side = [
        (axis.place(outline.low * ratio ** (k / steps)), round(VIOLIN_HEIGHT * height, 1))
        for k, height in enumerate(outline.height)
    ]
    return points([*side, *((x, -y) for x, y in reversed(side))])


def points(places: Iterable[tuple[float, float]]) -> str:
    """Places as SVG has them."""
    return " ".join(f"{x:g},{y:g}" for x, y in places)


@dataclass(frozen=True)
class Curve:
    """A figure over audits or picks; where there is none, the line is broken."""

    name: str
    lines: list[str]
    """Points of each unbroken piece, as SVG has them."""
    points: list[tuple[float, float]]

    @property
    def has_dots(self) -> bool:
        """Whether every point is seen."""
        return len(self.points) <= _MOST_DOTS


@dataclass(frozen=True)
class Chart:
    """Curves over one horizontal axis."""

    title: str
    axis: Axis
    curves: list[Curve]
    ends: tuple[str, str]
    """What the first and the last step are."""
    bound: float | None
    caption: str


HEIGHT = 110.0
LEFT = 58.0
_TOP, _BOTTOM = 12.0, 24.0


def chart(
    title: str,
    curves: Mapping[str, Sequence[float | None]],
    ends: tuple[str, str],
    is_logarithmic: bool,
    bound: float | None = None,
    caption: str = "",
    at: Sequence[float] | None = None,
) -> Chart:
    """Place curves, all from the first step on; steps are equal, or ``at`` ascending numbers."""
    values = [value for curve in curves.values() for value in curve]
    axis = axis_of([*values, bound], is_logarithmic, HEIGHT - _BOTTOM, _TOP)
    at = at or range(max(map(len, curves.values())))
    across = Axis(at[0], max(at[-1], at[0] + 1), False, LEFT + MARGIN, WIDTH - MARGIN)
    steps = [across.place(one) for one in at]
    found = [_curve(axis, name, of_curve, steps) for name, of_curve in curves.items()]
    return Chart(title, axis, found, ends, None if bound is None else axis.place(bound), caption)


def _curve(axis: Axis, name: str, values: Sequence[float | None], steps: Sequence[float]) -> Curve:
    places = [
        None if value is None or math.isnan(value) else (step, axis.place(value))
        for step, value in zip(steps, values, strict=False)
    ]
    pieces = [
        points(place for place in piece if place)
        for is_there, piece in groupby(places, key=bool)
        if is_there
    ]
    return Curve(name, pieces, [place for place in places if place])
