"""SIGKILL of each role alone, after a first receipt and before the last."""

from __future__ import annotations

from pathlib import Path

import kills
import pytest


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("kills")
    return folder, kills.undisturbed(folder)


@pytest.mark.parametrize(("kind", "workers"), [("worker", 2), ("scheduler", 2), ("everything", 3)])
def test_killed_run_continues_to_the_same_bits(
    kind: str, workers: int, expected: tuple[Path, dict[str, bytes]]
) -> None:
    folder, result = expected
    kills.disturbed_run(kind, workers, result, folder, seed=workers)
