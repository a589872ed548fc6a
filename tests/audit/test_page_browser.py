"""The page of an audit in a browser: a desktop's and a phone's width, by day and by night."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_cases import full_page
from PIL import Image

pytestmark = pytest.mark.browser
WIDTHS = {"desktop": 1280, "phone": 360}
SCHEMES = ("light", "dark")

CONTRAST = """() => {
  const light = c => c <= 10 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4;
  const parse = s => (s.match(/[0-9.]+/g) || []).map(Number);
  const luminance = s => {
    const [r, g, b] = parse(s).map(light);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = e => {
    for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor, p = parse(c);
      if (p.length < 4 || p[3] > 0) return c;
    }
    return "rgb(255, 255, 255)";
  };
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || !e.getClientRects().length) continue;
    const drawn = e.closest("svg");
    if (drawn && e.matches(".letter, .letter *, title")) continue;
    const style = getComputedStyle(e);
    const [a, b] = [drawn ? style.fill : style.color, ground(e)].map(luminance);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    found.push([ratio, walk.currentNode.data.trim().slice(0, 40)]);
  }
  return found;
}"""
"""How far text stands out from what is behind it (WCAG 2.1)."""

OUTSIDE = """() => [...document.querySelectorAll("body *")].filter(e => {
  const box = e.getBoundingClientRect();
  return box.width && box.right > innerWidth + 1 && !e.closest(".scroll, pre");
}).map(e => e.outerHTML.slice(0, 80))"""
"""What reaches beyond the window, but for tables and listings that scroll by themselves."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install 'dlpr[browser]'"
    )
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Shown:
    """A page that is open, and what it did."""

    def __init__(self, browser: Any, path: Path, width: int, scheme: str) -> None:
        self.heard: list[str] = []
        self.asked: list[str] = []
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
        )
        self.page = context.new_page()
        self.page.on("console", lambda message: self.heard.append(message.text))
        self.page.on("pageerror", lambda error: self.heard.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        self.page.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return full_page(tmp_path_factory.mktemp("page"))


@pytest.fixture(
    scope="module",
    params=[(width, scheme) for width in WIDTHS for scheme in SCHEMES],
    ids="-".join,
)
def shown(request: pytest.FixtureRequest, chromium: Any, path: Path) -> Iterator[Shown]:
    width, scheme = request.param
    found = Shown(chromium, path, WIDTHS[width], scheme)
    yield found
    found.page.context.close()


def pixels(png: bytes) -> Any:
    return np.asarray(Image.open(BytesIO(png)).convert("RGB"), np.float64)


def test_it_says_nothing_and_asks_for_nothing(shown: Shown, path: Path) -> None:
    assert shown.heard == []
    assert [url for url in shown.asked if not url.startswith("data:")] == [path.as_uri()]
    assert shown.page.title().startswith("failed: Silicon")


def test_nothing_reaches_beyond_the_window(shown: Shown) -> None:
    width = shown.page.viewport_size["width"]
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= width
    assert shown.page.evaluate(OUTSIDE) == []


def test_pictures_are_not_blank(shown: Shown) -> None:
    drawings = shown.page.locator("svg[role=img]")
    assert drawings.count() > 30
    for k in range(drawings.count()):
        drawing = drawings.nth(k)
        seen = pixels(drawing.screenshot())
        ink = np.abs(seen - np.median(seen.reshape(-1, 3), axis=0)).max(axis=2) > 40
        assert 0.002 < ink.mean() < 0.9, drawing.get_attribute("aria-label")


def test_text_can_be_read(shown: Shown) -> None:
    found = shown.page.evaluate(CONTRAST)
    assert len(found) > 300
    assert [(ratio, text) for ratio, text in found if ratio < 4.5] == []


def test_day_is_light_and_night_is_dark(chromium: Any, path: Path) -> None:
    means = {}
    for scheme in SCHEMES:
        found = Shown(chromium, path, WIDTHS["desktop"], scheme)
        means[scheme] = pixels(found.page.screenshot()).mean()
        found.page.context.close()
    assert means["light"] > 220
    assert means["dark"] < 60


def test_a_link_to_an_environment_leads_there(shown: Shown) -> None:
    shown.page.evaluate("document.querySelectorAll('details').forEach(e => e.open = false)")
    shown.page.locator("a[href='#environment-30']").first.evaluate("e => location.hash = e.hash")
    box = shown.page.locator("#environment-30").bounding_box()
    assert box is not None
    assert 0 <= box["y"] <= 900
