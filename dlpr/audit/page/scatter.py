"""Structures as points on a plane: places and colours for the template."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dlpr.audit.page.diagrams import LEFT, MARGIN, WIDTH, Axis, axis_of, points
from dlpr.audit.page.sticks import CIVIDIS, Colors

HEIGHT = 230.0
_TOP, _BOTTOM = 8.0, 40.0


@dataclass(frozen=True)
class Cloud:
    """Points of one colour."""

    color: str | None
    """None: that of the page's data"""
    path: str
    """Dots as SVG has them: lines of no length."""


@dataclass(frozen=True)
class Scatter:
    """Points on a plane, and a curve through their middle."""

    title: str
    x: Axis
    y: Axis
    x_title: str
    y_title: str
    clouds: list[Cloud]
    curve: list[tuple[float, float]]
    line: str
    caption: str


def across(x: Iterable[float], is_logarithmic: bool) -> Axis:
    """A horizontal axis with room for all points, which several diagrams may share."""
    return axis_of(x, is_logarithmic, LEFT + MARGIN, WIDTH - MARGIN)


def scatter(
    title: str,
    titles: tuple[str, str],
    x_axis: Axis,
    x: Sequence[float],
    y: Sequence[float],
    *,
    rigidity: Sequence[float] = (),
    colors: Colors | None = None,
    curve: Iterable[tuple[float, float]] = (),
    caption: str = "",
) -> Scatter:
    """Place points; where they have colours, those of low rigidity lie above the others.

    The vertical axis is logarithmic where the horizontal one is.
    """
    y_axis = axis_of(y, x_axis.is_logarithmic, HEIGHT - _BOTTOM, _TOP)
    dots: defaultdict[str | None, list[str]] = defaultdict(list)
    shades = [_shade(colors, one) for one in rigidity] if colors else [None] * len(x)
    for shade, a, b in zip(shades, x, y, strict=True):
        dots[shade].append(f"M{x_axis.place(a):g} {y_axis.place(b):g}h0")
    order = [*reversed(CIVIDIS), None]
    clouds = [Cloud(shade, "".join(dots[shade])) for shade in order if shade in dots]
    places = [(x_axis.place(a), y_axis.place(b)) for a, b in curve]
    return Scatter(title, x_axis, y_axis, *titles, clouds, places, points(places), caption)


def _shade(colors: Colors, rigidity: float) -> str:
    """The nearest colour of the scale."""
    return CIVIDIS[round(colors.part(rigidity) * (len(CIVIDIS) - 1))]
