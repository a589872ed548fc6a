"""Runs in this process; the outputs need not outlive the machine."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def nothing_outlives_the_machine() -> Iterator[None]:
    """What durability costs is no part of these tests: tests/store and tests/chaos look at it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield
