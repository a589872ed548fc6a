"""Fixtures of the tests that type commands."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_desk import Desk
from numpy.typing import NDArray


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Desk:
    return Desk(tmp_path, monkeypatch, capsys)


class _Silent:
    def readouterr(self) -> tuple[str, str]:
        return "", ""


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A run without any mistake."""
    with pytest.MonkeyPatch.context() as patch:
        desk = Desk(tmp_path_factory.mktemp("good"), patch, _Silent())
        desk.finish()
    return desk


@pytest.fixture(scope="module")
def expected(good: Desk) -> NDArray[np.float64]:
    """The rigidities of the probe without any mistake."""
    return good.of_probe("lpr")


@pytest.fixture
def done(desk: Desk, good: Desk) -> Desk:
    """A desk with a copy of the finished results."""
    shutil.copytree(good.results, desk.results, symlinks=True)
    return desk
