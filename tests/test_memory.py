"""The memory promised before the run is kept by every worker."""

from __future__ import annotations

from pathlib import Path

import ase.build
import ase.io
import numpy as np
import pytest

from dlpr.api import open_job
from dlpr.clusters.local import LocalStarter
from dlpr.descriptors import Soap
from dlpr.engine import memory
from dlpr.engine.executors import ClusterExecutor
from dlpr.engine.pipeline import Pipeline
from dlpr.engine.promise import task_nbytes
from dlpr.engine.proposal import proposed
from dlpr.engine.workspace import Workspace
from dlpr.structures.spatial import SORTED_FRAME_ATOMS

SOAP = {
    "cutoff": {"radius": 5.0, "smoothing": {"type": "ShiftedCosine", "width": 0.5}},
    "density": {"type": "Gaussian", "width": 0.4},
    "basis": {
        "type": "TensorProduct",
        "max_angular": 5,
        "radial": {"type": "Gto", "max_radial": 5},
    },
}


def write_frames(folder: Path) -> None:
    """Two species; many small frames, and one that is cut by space."""
    rng = np.random.default_rng(1)
    small = []
    for _ in range(120):
        atoms = ase.build.bulk("SiC", "zincblende", a=4.36 * rng.uniform(0.97, 1.1), cubic=True)
        atoms = atoms.repeat(2)
        atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
        atoms.info["energy"] = float(rng.normal())
        small.append(atoms)
    ase.io.write(folder / "small.xyz", small, format="extxyz")
    large = ase.build.bulk("SiC", "zincblende", a=4.4, cubic=True).repeat((11, 11, 11))
    large.positions += rng.normal(0, 0.1, large.positions.shape)
    ase.io.write(folder / "large.xyz", large, format="extxyz")


def test_forces_of_a_frame_of_any_size_need_no_more_than_those_of_a_run_of_its_atoms() -> None:
    soap = Soap(SOAP, [6, 14])
    mapping = memory.MapSize(2 * soap.n_features, soap.n_features)
    widths = (soap.n_features,) * 2

    def promised(n_atoms: int) -> tuple[int, int]:
        crowd = memory.Crowd(n_atoms, 0.1, 1, 10.0 * n_atoms)
        kinds = {"forces": True, "stress": False}
        rows = memory.derivatives_nbytes(soap, mapping, widths, crowd, **kinds)
        return rows, memory.derivative_part_nbytes(mapping.n_columns, crowd, **kinds)

    assert promised(400) < promised(4000)
    assert promised(10**5) == promised(10**7)
    assert promised(SORTED_FRAME_ATOMS)[1] == promised(10**7)[1]


@pytest.mark.timeout(600)
def test_no_worker_exceeds_the_promise(tmp_path: Path) -> None:
    write_frames(tmp_path)
    job = {
        "train": {"files": str(tmp_path / "small.xyz")},
        "test": {
            "large": {"files": str(tmp_path / "large.xyz")},
            "some": {"files": str(tmp_path / "small.xyz") + "@:9"},
            "train": "train",
        },
        "descriptor": {"soap": SOAP},
        "model": {"linear": {"regularizer": {"scan": [1e-7, 1e-3], "on": "some"}}},
        "committee": {"subsample": {"members": 3}},
        "test_forces": True,
    }
    executor = ClusterExecutor(LocalStarter(1, 1, 4 << 30))
    workspace = Workspace(tmp_path / "out", executor)
    try:
        steps = Pipeline(open_job(job), workspace)
        steps.result()
        wanted = {"count": 5, "objective": "mean_variance", "n_targets": 300}
        proposed(steps, "some", ["large"], **wanted, of="environments")
    finally:
        executor.close()
    promised = 0
    for role, folder in workspace.used.items():
        # a process's peak is that of all it has done so far
        promised = max(promised, memory.BASE_NBYTES + task_nbytes(folder))
        peak = max(receipt.cost["peak_nbytes"] for receipt in folder.receipts())
        assert peak <= promised, f"{role}: {peak} bytes, {promised} promised"
