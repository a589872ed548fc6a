"""Fixtures of all tests, and the rule that a required tier may not skip."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared"
REQUIRED = set(os.environ.get("DLPR_REQUIRED_TIERS", "").replace(",", " ").split())


def pytest_configure() -> None:
    """Hear Ctrl-C, and let children hear it, even where a shell started us in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The developers' datasets and reference numbers, which are no part of the project."""
    if not SHARED.is_dir():
        pytest.skip("the developers' folder shared/ is not beside this checkout")
    return SHARED


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> object:
    """Turn a skip inside a required tier into a failure."""
    report = yield
    tiers = {mark.name for mark in item.iter_markers()} & REQUIRED
    if report.skipped and tiers and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in the required tier {', '.join(tiers)}: {report.longrepr}"
    return report
