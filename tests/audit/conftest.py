"""Nights in this process, without Dask."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from audit_cases import Nights

from dlpr import api
from dlpr.engine.executors import WorkExecutor


@pytest.fixture
def serial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks are done here, one after another; the outputs need not outlive the machine."""

    def here(*_: Any) -> WorkExecutor:
        return WorkExecutor(0)

    monkeypatch.setattr(api, "ClusterExecutor", here)
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def nights(tmp_path: Path, serial: None) -> Nights:
    return Nights(tmp_path)
