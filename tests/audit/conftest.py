"""Nights in this process, without Dask."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from audit_cases import Nights

from dlpr import api
from dlpr.engine.executors import WorkExecutor


@pytest.fixture(scope="module")
def serial() -> Iterator[None]:
    """Tasks are done here, one after another; the outputs need not outlive the machine."""

    def here(*_: Any) -> WorkExecutor:
        return WorkExecutor(0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "ClusterExecutor", here)
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture
def nights(tmp_path: Path, serial: None) -> Nights:
    return Nights(tmp_path)
