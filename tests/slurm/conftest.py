"""A real SLURM, or none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import kills
import pytest
from slurm_desk import Desk, has_slurm


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.slurm)
            item.add_marker(pytest.mark.xdist_group("slurm"))
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    if "slurm" not in os.environ.get("DLPR_REQUIRED_TIERS", ""):
        pytest.skip("these tests submit jobs: set DLPR_REQUIRED_TIERS=slurm where they may")
    if not has_slurm():
        pytest.skip("there is no SLURM here: deploy/slurm-dev brings one up")
    folder = tmp_path_factory.mktemp("slurm")
    return folder, kills.undisturbed(folder)


@pytest.fixture
def desk(undisturbed: tuple[Path, dict[str, bytes]]) -> Iterator[Desk]:
    folder, expected = undisturbed
    desk = Desk(folder, expected)
    desk.profile("dev", jobs=2)
    yield desk
    desk.clear()
