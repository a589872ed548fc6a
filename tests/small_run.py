"""A tiny finished run, made once a session, without Dask."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from dlpr.api import work, worker
from dlpr.engine.output import write_job
from dlpr.engine.proposal import proposed
from dlpr.engine.sample import sample
from dlpr.job import Job

LARGE = 5832
"""Atoms of the frame that is stored sorted by space."""
SOAP: dict[str, Any] = {
    "cutoff": {"radius": 4.0, "smoothing": {"type": "ShiftedCosine", "width": 0.5}},
    # without its own density, an isolated atom has no features and an infinite rigidity
    "density": {"type": "Gaussian", "width": 0.4, "center_atom_weight": 0.0},
    "basis": {
        "type": "TensorProduct",
        "max_angular": 3,
        "radial": {"type": "Gto", "max_radial": 3},
    },
}


@dataclass(frozen=True)
class SmallRun:
    """Where its results are, and the frames it read."""

    output: Path
    sources: dict[str, list[Atoms]]


def _silicon(repeat: int, seed: int) -> Atoms:
    """A rattled crystal, its atoms shuffled."""
    rng = np.random.default_rng(seed)
    atoms = bulk("Si", cubic=True) * (repeat, repeat, repeat)
    atoms.positions += rng.normal(scale=0.1, size=atoms.positions.shape)
    atoms = atoms[rng.permutation(len(atoms))]
    atoms.numbers[: len(atoms) // 4] = 32
    return atoms


def _labelled(atoms: Atoms, seed: int) -> Atoms:
    rng = np.random.default_rng(seed)
    forces = rng.normal(size=(len(atoms), 3))
    stress = rng.normal(size=6)
    atoms.calc = SinglePointCalculator(atoms, energy=-4.0 - seed, forces=forces, stress=stress)
    return atoms


def _sources() -> dict[str, list[Atoms]]:
    train = [_labelled(_silicon(1, seed), seed) for seed in range(6)]
    for number, atoms in enumerate(train):
        atoms.info["config_type"] = ("bulk", 'odd = "name"')[number % 2]
    large = _labelled(_silicon(9, 10), 10)
    large.pbc = (True, True, False)
    assert len(large) == LARGE
    alone = Atoms("Si", positions=[(1.0, 2.0, 3.0)])
    film = [_labelled(_silicon(2, 11), 11), large, alone, _silicon(1, 12)]
    return {"train": train, "film": film, "bare": [_silicon(1, 13)]}


def _make(
    folder: Path, test: dict[str, Any], settings: dict[str, Any] | None = None, **numerics: int
) -> SmallRun:
    sources = _sources()
    folder.mkdir()
    for name, frames in sources.items():
        ase.io.write(folder / f"{name}.extxyz", frames)
    job = Job.from_dict(
        {
            "output": "results",
            "train": {"files": "train.extxyz", "group_by": "config_type"},
            "test": test,
            "descriptor": {"soap": SOAP},
            "model": {"linear": {"regularizer": 1e-6}},
            "solver": "cholesky",
            "numerics": {"block_environments": 1024, "task_environments": 2048, **numerics},
            **(settings or {}),
        },
        base=folder,
    )
    write_job(folder / "results", job)
    work(folder / "results", rank=0)
    # what a reader of the files sees: positions have the decimals that were written
    read = {name: ase.io.read(folder / f"{name}.extxyz", ":") for name in sources}
    return SmallRun(folder / "results", read)


_made: dict[Path, SmallRun] = {}
BARE = {"files": "bare.extxyz"}


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """The run; whoever changes it takes `copied_run`."""
    folder = tmp_path_factory.getbasetemp() / "small_run"
    if folder not in _made:
        film = {"files": "film.extxyz"}
        _made[folder] = _make(folder, {"train": "train", "film": film, "bare": BARE})
    return _made[folder]


@pytest.fixture(scope="session")
def tiled_run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """One whose Hessian is folded and factorized in tiles."""
    folder = tmp_path_factory.getbasetemp() / "tiled_run"
    if folder not in _made:
        _made[folder] = _make(folder, {"bare": BARE}, tile_columns=100)
    return _made[folder]


@pytest.fixture(scope="session")
def kernel_run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """One of a sparse kernel, trained on forces as well, with a committee and forces of its test
    sets; it picks its regularizer."""
    folder = tmp_path_factory.getbasetemp() / "kernel_run"
    if folder not in _made:
        scan = {"scan": [1e-6, 1e-4], "on": "some", "points": 2}
        settings = {
            "model": {"kernel": {"regularizer": scan, "references": {"count": 10}}},
            "loss": {"forces": 0.1},
            "committee": {"subsample": {"members": 3, "fraction": 0.6}},
            "test_forces": True,
        }
        some = {"files": "train.extxyz@:2"}
        _made[folder] = _make(folder, {"bare": BARE, "some": some}, settings)
    return _made[folder]


@pytest.fixture(scope="session")
def robust_run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """One whose loss is not squared."""
    folder = tmp_path_factory.getbasetemp() / "robust_run"
    if folder not in _made:
        loss = {"energy": {"weight": 1.0, "shape": {"huber": {"delta": 5.0}}}}
        _made[folder] = _make(folder, {"bare": BARE}, {"loss": loss})
    return _made[folder]


@pytest.fixture(scope="session")
def audited_run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """One with a cross-validation, picks of what to label next, and a sample for a map."""
    folder = tmp_path_factory.getbasetemp() / "audited_run"
    if folder not in _made:
        test = {"bare": BARE, "pool": {"files": "film.extxyz@3"}}
        made = _make(folder, test, {"cross_validation": {"folds": 2, "by": "stratified"}})
        steps = worker(made.output, rank=0)
        wanted = {"count": 1, "objective": "mean_variance", "n_targets": 5, "of": "environments"}
        proposed(steps, "pool", ["bare"], **wanted)
        sample(steps, 4)
        _made[folder] = made
    return _made[folder]


@pytest.fixture
def copied_run(small_run: SmallRun, tmp_path: Path) -> SmallRun:
    """A copy to be changed."""
    output = tmp_path / "results"
    shutil.copytree(small_run.output, output, symlinks=True)
    return SmallRun(output, small_run.sources)
