"""Fixtures of the tests of stages."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from stages_cases import Exact

from dlpr.descriptors import KINDS


@pytest.fixture(scope="module", autouse=True)
def exact() -> Iterator[None]:
    """Stages know the descriptor of whole numbers; nothing has to outlive the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(KINDS, "exact", Exact)  # type: ignore[arg-type]
        patch.setattr(os, "fsync", lambda _: None)
        yield
