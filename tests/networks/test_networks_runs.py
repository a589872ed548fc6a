"""Jobs on networks as users run them: clusters, kills, growth, checkpoints, large frames."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from networks_cases import (
    MODULE,
    SOAP,
    job_of,
    lpr_of,
    pieces,
    rigidity,
    silicon,
    torch,
    worked,
    write_nets,
    write_sets,
)
from networks_cases import _silicon as crystal
from scipy.spatial import cKDTree
from scipy.stats import spearmanr

import dlpr
from dlpr.cli import cli
from dlpr.descriptors import Soap
from dlpr.engine.output import write_job
from dlpr.errors import JobError

pytestmark = pytest.mark.torch

SPECIES = [14, 32]
N_INPUTS = Soap(SOAP, SPECIES).n_features
NETWORK: dict[str, Any] = {
    "call": f"{MODULE}:mlp",
    "options": {"sizes": [N_INPUTS, 6, 1]},
    "input": {"soap": SOAP},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_sets(tmp_path)
    write_nets(tmp_path)
    return tmp_path


def stages(output: Path) -> set[str]:
    return {path.name for path in (output / "work").iterdir() if path.is_dir()}


def test_workers_of_a_cluster_give_the_bits_of_one_process(folder: Path) -> None:
    section = {"network": NETWORK}
    expected = worked(folder, section, "alone")
    local = {"local": {"workers": 2, "memory_per_worker": "1GiB"}}
    dlpr.run(job_of(folder, section, "crowd", cluster=local, store_test_features=True))
    assert lpr_of(folder / "crowd").tobytes() == expected.tobytes()


def test_a_run_that_is_killed_goes_on_to_the_same_bits(folder: Path) -> None:
    section = {"network": NETWORK}
    expected = worked(folder, section, "whole")
    made = job_of(folder, section, "killed")
    write_job(made.path(made.output), made)
    code = """
import os, sys
from dlpr.api import work
from dlpr.descriptors import Network
compute = Network.compute
def dying(self, pieces):
    if len(os.listdir(sys.argv[1])) > 1:
        os._exit(9)
    return compute(self, pieces)
Network.compute = dying
work(sys.argv[2])
"""
    output = folder / "killed"
    features = next(name for name in stages(folder / "whole") if name.startswith("features-"))
    receipts = output / "work" / features / "receipts"
    receipts.mkdir(parents=True)
    command = [sys.executable, "-c", code, str(receipts), str(output)]
    done = subprocess.run(command, env=os.environ, capture_output=True, check=False)
    assert done.returncode == 9, done.stderr
    assert not (output / "rigidity.zarr").exists()
    assert len(list(receipts.glob("*.json"))) >= 1
    dlpr.work(output)
    assert lpr_of(output).tobytes() == expected.tobytes()


def test_a_checkpoint_that_changes_makes_new_features(folder: Path) -> None:
    nets = write_nets(folder)
    found = {}
    for epoch in range(2):
        module = nets.mlp([N_INPUTS, 6, 1], seed=epoch)
        torch.save(module.state_dict(), folder / "weights.pt")
        section = {"network": {**NETWORK, "layer": "2", "state": "weights.pt"}}
        found[epoch] = worked(folder, section)
    assert np.abs(found[0] / found[1] - 1.0).max() > 0.01
    assert sum(name.startswith("features-") for name in stages(folder / "out")) == 2
    assert sum(name.startswith("structures-") for name in stages(folder / "out")) == 2  # the sets
    before = stages(folder / "out")
    assert worked(folder, section).tobytes() == found[1].tobytes()
    assert stages(folder / "out") == before


def test_structures_that_are_added_leave_the_others_features(folder: Path) -> None:
    section = {"network": {**NETWORK, "layer": "2"}}
    before = worked(folder, section)
    ase.io.write(folder / "more.xyz", silicon(4, 50))
    grown = {"files": ["train.xyz", "more.xyz"]}
    after = worked(folder, section, train=grown)
    shutil.rmtree(folder / "out")
    assert worked(folder, section, train=grown).tobytes() == after.tobytes()
    assert (after > before * (1.0 - 1e-9)).all()  # FD24 app. B
    assert np.median(after / before) > 1.01


def test_a_large_frame_is_cut_for_a_module_of_atoms(folder: Path) -> None:
    large = crystal(9, 10)
    ase.io.write(folder / "film.xyz", large)
    large = ase.io.read(folder / "film.xyz")
    assert len(large) > 4096
    nets = write_nets(folder)
    torch.set_default_dtype(torch.float64)
    try:
        module = nets.OfAtoms()
    finally:
        torch.set_default_dtype(torch.float32)
    large.wrap()
    tree = cKDTree(large.positions, boxsize=large.cell.lengths())
    near = tree.sparse_distance_matrix(tree, 4.0, output_type="coo_matrix")
    columns = []
    for k in range(3):
        columns.append(np.bincount(near.row, nets.of_neighbours(near.data, k), len(large)))
    first = module.net[:2]
    frames = ase.io.read(folder / "train.xyz", ":")
    distance = [atoms.get_all_distances(mic=True) for atoms in frames]
    small = [[nets.of_neighbours(d, k).sum(1) for k in range(3)] for d in distance]
    g = {"film": np.stack(columns, 1), "train": np.concatenate([np.stack(s, 1) for s in small])}
    g = {name: first(torch.from_numpy(rows)).detach().numpy() for name, rows in g.items()}
    made = {"call": f"{MODULE}:OfAtoms", "layer": "net.2", "cutoff": 4.0}
    numerics = {"block_environments": 512, "task_environments": 2048}
    found = worked(folder, {"network": made}, numerics=numerics)
    expected = rigidity(g["train"], [8] * len(frames), g["film"], 1e-3)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_command_line_plans_runs_saves_and_asks_for_trust(folder: Path) -> None:
    made = job_of(folder, {"network": {**NETWORK, "layer": "2"}})
    output = made.path(made.output)
    write_job(output, made)
    dlpr.work(output)
    saved = folder / "model"
    assert CliRunner().invoke(cli, ["save", str(output), str(saved)]).exit_code == 0
    command = ["predict", str(saved), str(folder / "film.xyz"), "--to", str(folder / "p.extxyz")]
    refused = CliRunner().invoke(cli, command)
    assert isinstance(refused.exception, JobError)
    assert "is a network, and to open the model runs code" in str(refused.exception)
    done = CliRunner().invoke(cli, [*command, "--trust"])
    assert done.exit_code == 0, done.output
    lpr = np.concatenate([a.arrays["lpr"] for a in ase.io.read(folder / "p.extxyz", ":")])
    np.testing.assert_allclose(lpr, lpr_of(output), rtol=1e-6)


def test_latent_rigidities_at_random_weights_have_the_trend_of_trained_ones(folder: Path) -> None:
    """FD24 fig. 3a, and that a training converges them: a job for every checkpoint."""
    nets = write_nets(folder)
    frames = ase.io.read(folder / "train.xyz", ":")
    x = torch.from_numpy(Soap(SOAP, SPECIES).compute(pieces(frames))).float()
    energy = torch.tensor([np.std(a.get_all_distances(mic=True)) for a in frames])
    module = nets.mlp([N_INPUTS, 16, 1])
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    network = {**NETWORK, "options": {"sizes": [N_INPUTS, 16, 1]}, "layer": "2", "state": "w.pt"}
    found = {}
    for epoch in range(201):
        if epoch in (0, 150, 200):
            torch.save(module.state_dict(), folder / "w.pt")
            found[epoch] = worked(folder, {"network": network})
        optimizer.zero_grad()
        ((module(x).view(len(frames), 8).mean(1) - energy) ** 2).sum().backward()
        optimizer.step()
    assert spearmanr(found[150], found[200])[0] > spearmanr(found[0], found[200])[0] > 0.3


def test_a_result_says_which_network_and_torch_made_it(folder: Path) -> None:
    worked(folder, {"network": {**NETWORK, "layer": "2"}})
    group: Any = zarr.open_group(str(folder / "out" / "rigidity.zarr"), mode="r")["film"]
    found = group.attrs["features"]["descriptor"]
    assert found["network"]["layer"] == "2"
    assert found["network"]["made_by"]["torch"] == torch.__version__
