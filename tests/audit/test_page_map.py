"""Maps of a page: where environments are, in the colours of what is said of them."""

from __future__ import annotations

import numpy as np
import pytest
from page_cases import empty_record, sample

from dlpr.audit.page import map as page_map
from dlpr.audit.page.map import DIVERGING, Map


def maps(n: int = 40) -> list[Map]:
    (section,) = page_map.section(empty_record(sample=sample(n)))
    found: list[Map] = section.shows["maps"]
    return found


def test_distances_are_those_of_the_coordinates() -> None:
    given, drawn = sample(40), maps()[0]
    points = np.array([*given.coordinates, *given.training])[:, :2]
    places = np.array([*((mark.x, mark.y) for mark in drawn.marks), *drawn.training])
    assert (places >= 0).all()
    assert places[:, 0].max() <= 340
    assert places[:, 1].max() <= drawn.height
    scale = np.ptp(places[:, 0]) / np.ptp(points[:, 0])
    expected = scale * (points - points[0]) * [1.0, -1.0]
    np.testing.assert_allclose(places - places[0], expected, atol=0.2)


def test_ratios_are_coloured_alike_above_and_below_1() -> None:
    by_ratio = maps()[1]
    known = [one.lpr_ratio for one in sample(40).environments if one.lpr_ratio]
    assert len(by_ratio.marks) == len(known) == 30
    colors = dict(zip(known, (mark.color for mark in by_ratio.marks), strict=True))
    assert colors == {2.0: DIVERGING[-1], 0.5: DIVERGING[0], 1.0: DIVERGING[4]}
    assert by_ratio.ends == ("LPR ratio 0.5", "2")


@pytest.mark.parametrize("n", [0, 1])
def test_few_environments(n: int) -> None:
    assert len(page_map.section(empty_record(sample=sample(n)))) == n
    assert page_map.section(empty_record()) == []
