"""The page of an audit: whole, closed to the outside, and showing all that there is."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from pathlib import Path

import ase.io
import pytest
from ase.neighborlist import neighbor_list
from hypothesis import given
from hypothesis import strategies as st
from page_cases import (
    HOSTILE,
    INF,
    Parsed,
    check,
    empty_record,
    full_page,
    full_record,
    group,
    one_set,
    series,
    write_frames,
)

from dlpr.audit.page import MOST_LINES, history, prose, sentence, write_page
from dlpr.audit.page.diagrams import axis_of, chart, number
from dlpr.audit.page.environments import MOST_PICTURES
from dlpr.audit.page.sets import MOST_ROWS
from dlpr.audit.page.sticks import CIVIDIS, Colors
from dlpr.audit.record import AuditRecord


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Parsed:
    return Parsed(full_page(tmp_path_factory.mktemp("page")).read_text())


def parsed(record: AuditRecord, folder: Path) -> Parsed:
    return Parsed(write_page(record, folder).read_text())


def test_nothing_is_fetched_and_nothing_runs(page: Parsed) -> None:
    assert {tag for tag, _ in page.tags} & {"script", "img", "iframe", "object", "embed"} == set()
    links = page.values("href", "src", "xlink:href", "data", "action", "srcset", "poster")
    files = {"flagged.extxyz"}  # beside the page, for people who click
    assert {link for link in links if not link.startswith(("#", "data:,"))} == files
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    for style in [page.style, *page.values("style")]:
        assert "url(" not in style
        assert "@import" not in style
    (policy,) = (attrs["content"] for _, attrs in page.tags if "http-equiv" in attrs)
    assert "default-src 'none'" in policy


def test_hostile_names_are_text(page: Parsed) -> None:
    shown = " ".join(HOSTILE.split())
    # check, its heading, groups, environments, candidates, work
    assert page.text.count(shown) > 30
    assert "49" not in re.findall(r"\{\{.*?\}\}|\b49\b", page.text)


def test_every_check_and_what_it_means_is_there(page: Parsed) -> None:
    record = full_record()
    for one in record.checks:
        assert " ".join(one.name.split()) in page.text
        assert page.text.count("What it says; look at files .") == len(record.checks)
    order = [page.text.rindex(word) for word in ("✕ failed", "! warning", "✓ holds")]
    assert order == sorted(order)


def test_every_environment_is_there_and_can_be_jumped_to(page: Parsed) -> None:
    for one in full_record().flagged:
        assert f"film-{one.frame}.extxyz" in page.text
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in page.values("href") if link.startswith("#")} <= set(ids)
    assert {f"environment-{k + 1}" for k in range(30)} <= set(ids)
    assert (
        sum(name.startswith("Environment ") for name in page.values("aria-label")) == MOST_PICTURES
    )


def test_people_who_hear_the_page_are_told_what_is_in_it(page: Parsed) -> None:
    heads = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert heads[0] == 1
    assert heads.count(1) == 1
    assert all(b <= a + 2 for a, b in pairwise(heads))
    for tag, attrs in page.tags:
        if tag == "th":
            assert attrs["scope"] in ("col", "row")
        if tag == "svg":
            assert attrs.get("aria-hidden") or (attrs["role"] == "img" and attrs["aria-label"])
    labels = set(page.values("aria-labelledby"))
    assert labels
    assert labels <= set(page.values("id"))


def test_numbers_of_drawings_are_finite(page: Parsed) -> None:
    drawn = page.values("x", "y", "cx", "cy", "r", "x1", "x2", "y1", "y2", "width", "height")
    assert len(drawn) > 1000
    assert all(math.isfinite(float(value)) and -1 <= float(value) <= 2000 for value in drawn)
    points = " ".join(page.values("points")).replace(",", " ").split()
    assert points
    assert all(math.isfinite(float(value)) for value in points)
    assert all(float(r) > 0 for r in page.values("r"))


def test_held_out_errors_are_told_and_drawn(tmp_path: Path) -> None:
    page = write_page(full_record(), tmp_path).read_text()
    assert "into 2 folds, over which each group is spread evenly" in page
    assert "4.25 ± 0.75" in page
    start = page.index('id="cross_validation"')
    drawn = page[start : page.index("</svg>", start)]
    assert [label in drawn for label in ("all", "fold 0", "fold 1")] == [True, True, False]


def test_a_page_of_nothing(tmp_path: Path) -> None:
    page = parsed(empty_record(), tmp_path)
    assert "Nothing was judged" in page.text
    assert "No environment was flagged" in page.text
    assert "first audit" in page.text
    assert "label next" not in page.text


def test_what_to_label_next_says_what_it_is_for(tmp_path: Path) -> None:
    told = {"sets": ["film", "md"], "n_targets": 1234, "n_candidates": 9}
    proposed = full_record().next.model_copy(update=told)
    page = parsed(empty_record(next=proposed), tmp_path)
    of = "the 1,234 least rigid environments of film, md; from 9 candidates"
    assert f"the mean of 1/LPR over {of}" in page.text
    other = {"of": "structures", "objective": "min_rigidity"}
    page = parsed(empty_record(next=proposed.model_copy(update=other)), tmp_path)
    assert "the smallest PR of the 1,234 least rigid structures of film, md" in page.text
    none = proposed.model_copy(update={"picks": [], "baselines": {}})
    page = parsed(empty_record(next=none), tmp_path)
    assert "No candidate helps" in page.text
    assert "next.extxyz" not in page.text


def test_without_the_file_of_environments_they_are_told_all_the_same(tmp_path: Path) -> None:
    page = parsed(full_record(), tmp_path)
    assert "film-29.extxyz" in page.text
    assert {link[1:] for link in page.values("href") if link[0] == "#"} <= set(page.values("id"))
    assert not any(name.startswith("Environment ") for name in page.values("aria-label"))


def test_a_page_is_the_same_twice(tmp_path: Path) -> None:
    assert full_page(tmp_path).read_bytes() == full_page(tmp_path).read_bytes()


def test_long_lists_are_cut_and_say_so(tmp_path: Path) -> None:
    groups = [group(None, None, 1.0), *(group(f"g{k}", None, k + 1.0) for k in range(40))]
    many = {f"file{k}": k for k in range(MOST_LINES + 7)}
    record = empty_record(
        sets=[one_set("film", "test", groups)],
        checks=[check(f"c{k}", "warn") for k in range(20)],
        conventions={"inputs": many},
    )
    page = parsed(record, tmp_path)
    assert f"{40 - MOST_ROWS} more are in the table" in page.text
    assert "... and 7 lines in audit.json" in page.text
    assert "and 12 more below" in page.text
    assert page.text.count(" g0 ") > page.text.count(" g39 ") > 0  # the least known are drawn


def test_bounds_are_drawn_where_they_belong(tmp_path: Path) -> None:
    def n_bounds(record: AuditRecord) -> int:
        page = parsed(record, tmp_path)
        return sum(attrs.get("class") == "bound" for _, attrs in page.tags)

    # of one check: in the strip of its set, in its history, and in the key
    record = full_record()
    bound = record.model_copy(update={"checks": record.checks[1:2]})
    free = bound.checks[0].model_copy(update={"bound": None})
    assert n_bounds(bound) == 3
    assert n_bounds(bound.model_copy(update={"checks": [free]})) == 0


def test_what_never_changed_is_not_drawn(tmp_path: Path) -> None:
    flat = [series("rmse.energy", [1.5, 1.5], False), series("lpr.q0.5", [1.0, 2.0], True)]
    page = parsed(empty_record(series=flat), tmp_path)
    assert "RMSE of energy: 1.5" in page.text
    charts = [name for name in page.values("aria-label") if name.startswith("LPR, 50 % quantile")]
    assert len(charts) == 1


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["pass", "pass"], "2 of 2 checks hold"),
        (["pass", "warn"], "Nothing failed, but 1 of 2 checks"),
        (["fail", "warn", "warn"], r"1 of 3 checks failed \(film\), and 2 more gave a warning"),
        (["fail"], r"1 of 1 checks failed \(film\): read"),
        ([], "Nothing was judged"),
    ],
)
def test_the_verdict_in_one_sentence(verdicts: list[str], expected: str) -> None:
    checks = [check(f"c{k}", verdict) for k, verdict in enumerate(verdicts)]
    found = sentence(empty_record(checks=checks))
    assert re.search(expected, found)
    assert found.count(". ") == 0


def test_prose_keeps_code_and_escapes_the_rest() -> None:
    assert prose("<b> `a<b` >= 1") == "&lt;b&gt; <code>a&lt;b</code> ≥ 1"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (INF, "∞"),
        (-INF, "−∞"),
        (0.0, "0"),
        (0.012345, "0.0123"),
        (-1.5, "−1.5"),
        (12345.6, "12,300"),
        (999_600.0, "1,000,000"),
        (1e-5, "10⁻⁵"),
        (1.2e-5, "1.2·10⁻⁵"),
        (-3.456e12, "−3.46·10¹²"),
    ],
)
def test_numbers_as_people_write_them(value: float | None, expected: str) -> None:
    assert number(value) == expected


@given(values=st.lists(st.none() | st.floats(allow_nan=False)), log=st.booleans())
def test_an_axis_keeps_order_and_has_ticks(values: list[float | None], log: bool) -> None:
    axis = axis_of(values, log, 10.0, 330.0)
    shown = sorted(v for v in values if v is not None and (v > 0 or not log))
    places = [axis.place(v) for v in shown]
    assert places == sorted(places)
    assert all(10.0 <= place <= 330.0 for place in [*places, axis.place(0.0), axis.place(-INF)])
    ticks = axis.ticks
    assert 2 <= len(ticks) <= 12
    assert [place for place, _ in ticks] == sorted({place for place, _ in ticks})
    assert len({text for _, text in ticks}) == len(ticks)


def test_a_logarithmic_axis_is_one() -> None:
    axis = axis_of([1e-6, 1e2], True, 0.0, 800.0)
    steps = [axis.place(10.0 ** (k + 1)) - axis.place(10.0**k) for k in range(-6, 2)]
    assert max(steps) - min(steps) < 0.2
    assert dict(axis.ticks)[axis.place(1e-4)] == "10⁻⁴"


def test_a_line_is_broken_where_nothing_was_found() -> None:
    drawn = chart("x", {"x": [1.0, None, 2.0, float("nan"), 3.0, 4.0]}, ("a", "b"), False)
    assert [len(line.split()) for line in drawn.curves[0].lines] == [1, 1, 2]
    assert len(drawn.curves[0].points) == 4


def test_history_is_drawn_by_the_time_of_audits() -> None:
    audits = ["2026-11-01T02-00-00Z", "2026-11-02T02-00-00Z", "2026-11-11T02-00-00Z"]
    one = series("lpr.q0.5", [1.0, 2.0, 4.0], True).model_copy(update={"audits": audits})
    (drawn,) = history.section(empty_record(series=[one])).shows["history"]["film"].charts
    (first, _), (second, _), (third, _) = drawn.curves[0].points
    assert (second - first) / (third - first) == pytest.approx(0.1, abs=0.001)
    assert drawn.ends == ("2026-11-01", "2026-11-11")
    same = [*audits[:1], f"{audits[0]}-002", f"{audits[0]}-003"]
    one = one.model_copy(update={"audits": same})
    (drawn,) = history.section(empty_record(series=[one])).shows["history"]["film"].charts
    assert drawn.ends == ("2026-11-01 02:00", "2026-11-01 02:00")
    assert len(drawn.curves[0].points) == 3


def test_the_bound_in_history_is_that_of_the_check_that_does_not_hold() -> None:
    checks = [check("a", verdict, bound=bound) for verdict, bound in (("fail", 1.0), ("warn", 9.0))]
    record = empty_record(checks=checks, series=[series("lpr.q0.05", [1.0, 2.0], True)])
    (drawn,) = history.section(record).shows["history"]["film"].charts
    assert drawn.bound == drawn.axis.place(1.0)


@given(lpr=st.lists(st.floats(0.0, INF), min_size=2))
def test_colours_go_with_the_rigidity(lpr: list[float]) -> None:
    colors = Colors(1e-6, 1e2)
    yellow = [int(colors.of(value)[1:3], 16) for value in sorted(lpr)]
    assert yellow == sorted(yellow)
    assert colors.of(0.0) == colors.of(1e-9) == CIVIDIS[0]
    assert colors.of(INF) == colors.of(1e9) == CIVIDIS[-1]


def test_neighbours_are_those_of_the_periodic_structure(tmp_path: Path) -> None:
    write_frames(tmp_path, 20)
    page = parsed(full_record(20), tmp_path)
    for k, atoms in enumerate(ase.io.iread(tmp_path / "flagged.extxyz")):
        centre = int(atoms.arrays["is_flagged"].argmax())
        expected = int((neighbor_list("i", atoms, 4.5) == centre).sum())
        (label,) = (
            name for name in page.values("aria-label") if name.startswith(f"Environment {k + 1}:")
        )
        assert f"with {expected} neighbours" in label
