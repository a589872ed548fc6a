"""torch in one thread: tests run side by side, and its threads wait by spinning."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'dlpr[torch]'")
    torch.set_num_threads(1)
