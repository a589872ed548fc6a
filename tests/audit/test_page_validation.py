"""Figures of validation on the page of an audit."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from page_cases import (
    HOSTILE,
    Parsed,
    empty_record,
    error,
    full_page,
    group,
    one_set,
    quantiles,
    rank,
    validation,
)

from dlpr.audit.page import write_page
from dlpr.audit.page.diagrams import LEFT, VIOLIN_HEIGHT, WIDTH, strips, strips_axis
from dlpr.audit.page.scatter import HEIGHT, across, scatter
from dlpr.audit.page.sticks import CIVIDIS, Colors
from dlpr.audit.page.validation import meaning
from dlpr.audit.record import SetRecord


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Parsed:
    return Parsed(full_page(tmp_path_factory.mktemp("page")).read_text())


def parsed(folder: Path, *sets: SetRecord) -> Parsed:
    return Parsed(write_page(empty_record(sets=list(sets)), folder).read_text())


def places(path: str) -> list[tuple[float, float]]:
    found = re.findall(r"M(\S+) (\S+)h0", path)
    return [(float(x), float(y)) for x, y in found]


def test_every_point_is_drawn_where_it_can_be_seen(page: Parsed) -> None:
    paths = [attrs for tag, attrs in page.tags if tag == "path" and attrs["class"] == "cloud"]
    drawn = [place for attrs in paths for place in places(attrs["d"])]
    assert len(drawn) == 100  # 50 errors, 50 energies
    assert all(LEFT <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in drawn)
    assert {attrs["style"][8:15] for attrs in paths if "style" in attrs} <= set(CIVIDIS)


def test_what_is_drawn_is_told_in_words(page: Parsed) -> None:
    labels = page.values("aria-label")
    assert "film: absolute errors of energies over the PR of structures" in labels
    assert "film: energy over volume" in labels
    assert "local prediction rigidity (LPR), from frame 0 to frame 237" in labels
    assert "Low rigidity finds high errors" in page.text
    assert "50 of 700 structures, the extreme ones first" in page.text
    assert "1 of 4" in page.text  # trajectories
    assert "A point is 3 frames" in page.text
    assert "/data/" not in page.text[page.text.index("Along the") : page.text.index("Ranks of")]


def test_errors_are_told_once(tmp_path: Path) -> None:
    page = parsed(tmp_path, one_set("film", "test", [group(None, None, 1.0)], errors=[error(None)]))
    assert page.text.count("energy per atom, RMSE") == 1
    assert "−0.5" in page.text  # its mean


def test_a_page_without_errors_has_no_such_section(tmp_path: Path) -> None:
    page = parsed(tmp_path, one_set("film", "test", [group(None, None, 1.0)]))
    assert "validation" not in page.values("id")


def test_a_constant_error_is_called_by_its_name(tmp_path: Path) -> None:
    one = error(None).model_copy(update={"rmse": 1000.0, "bias": -990.0})
    more = {"validation": validation()}
    page = parsed(tmp_path, one_set("film", "test", [], errors=[one], **more))
    assert "one constant, −990 meV/atom" in page.text
    assert "finds high errors" not in page.text
    two = one.model_copy(update={"bias": 500.0})
    page = parsed(tmp_path, one_set("film", "test", [], errors=[two], **more))
    assert "constant" not in page.text
    assert "finds high errors" in page.text


def test_scales_of_colours_are_one_for_all_sets(tmp_path: Path) -> None:
    sets = []
    for name, power in (("a", 1.0), ("b", 1e3)):
        found = validation()
        assert found.energy_volume is not None
        plane = found.energy_volume.model_copy(
            update={"rigidity": [power * one for one in found.energy_volume.rigidity]}
        )
        more = found.model_copy(update={"energy_volume": plane})
        sets.append(one_set(name, "test", [], errors=[], validation=more))
    page = parsed(tmp_path, *sets)
    scales = re.findall(r"PR (\S*\d\S*) (\S*\d\S*) Each", page.text)
    assert len(scales) == 2
    assert len(set(scales)) == 1
    assert scales[0][0] != scales[0][1]


@pytest.mark.parametrize(
    ("rho", "n", "expected"),
    [
        (0.7, 100, "finds high errors"),
        (0.3, 100, "finds some"),
        (0.1, 100, "does not find"),
        (0.3, 20, "does not find"),
        (-0.1, 100, "does not find"),
        (-0.6, 100, "most rigid structures have the largest"),
        (None, 100, "say nothing"),
    ],
)
def test_a_rank_correlation_in_words(rho: float | None, n: int, expected: str) -> None:
    found = meaning(rank(None, rho, n))
    assert expected in found
    assert (rho is None) or f"among the 5 least rigid structures (by chance: {5 / n:g})" in found


def test_a_violin_is_symmetric_and_keeps_to_its_row() -> None:
    one = quantiles(0.1)
    (strip,) = strips("t", "c", strips_axis([one]), [("a", "1", one, ())]).strips
    drawn = [tuple(map(float, place.split(","))) for place in strip.violin.split()]
    assert sorted(drawn) == sorted((x, -y) for x, y in drawn)
    assert max(y for _, y in drawn) == VIOLIN_HEIGHT
    assert [x for x, y in drawn if y > 0] == sorted(x for x, y in drawn if y > 0)
    flat = one.model_copy(update={"outline": None})
    (strip,) = strips("t", "c", strips_axis([flat]), [("a", "1", flat, ())]).strips
    assert strip.violin == ""
    assert strip.bar is not None


@given(st.lists(st.floats(0.0, 1e30), min_size=1), st.booleans())
def test_points_are_sorted_into_colours(rigidity: list[float], log: bool) -> None:
    y = np.linspace(1.0, 2.0, len(rigidity)).tolist()
    colors = Colors(1e-6, 1e2)
    axis = across(rigidity, log)
    drawn = scatter("t", ("x", "y"), axis, rigidity, y, rigidity=rigidity, colors=colors)
    found = [place for cloud in drawn.clouds for place in places(cloud.path)]
    expected = [(axis.place(a), drawn.y.place(b)) for a, b in zip(rigidity, y, strict=True)]
    assert sorted(found) == sorted(expected)
    assert all(math.isfinite(x) and math.isfinite(y) for x, y in found)
    shades = [CIVIDIS.index(cloud.color or "") for cloud in drawn.clouds]
    assert shades == sorted(shades, reverse=True)  # the least rigid lie above


def test_hostile_names_of_files_are_text(page: Parsed) -> None:
    assert HOSTILE.split("<img")[0].strip() in " ".join(page.words)
