"""Fixtures of the tests that type commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cli_desk import Desk


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Desk:
    return Desk(tmp_path, monkeypatch, capsys)
