"""Nights in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from audit_cases import Nights, shorten


@pytest.fixture(scope="module")
def serial() -> Iterator[None]:
    """Short nights, whose outputs need not outlive the machine."""
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch, lambda _: None)
        yield


@pytest.fixture
def nights(tmp_path: Path, serial: None) -> Nights:
    return Nights(tmp_path)
