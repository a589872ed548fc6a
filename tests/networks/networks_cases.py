"""Small networks and what they are trained on; structures; a whole run in this process."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import zarr
from ase import Atoms
from numpy.typing import NDArray
from small_run import SOAP as SOAP
from small_run import _labelled, _silicon

from dlpr.api import work
from dlpr.engine.output import write_job
from dlpr.job import Job
from dlpr.structures.frames import Piece

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'dlpr[torch]'")

MODULE = "nets_of_the_tests"
SOURCE = '''
import numpy as np
import torch


def of_neighbours(distance, k):
    return np.clip(1.0 - distance / 4.0, 0.0, None) ** 2 * np.cos(k * distance)


def mlp(sizes, bias=False, seed=0, activation="Sigmoid"):
    """Layers of some sizes; none: a network with no hidden layer."""
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for n_in, n_out in zip(sizes, sizes[1:]):
        layer = torch.nn.Linear(n_in, n_out, bias=bias)
        for weight in layer.parameters():
            torch.nn.init.normal_(weight, std=n_in**-0.5, generator=generator)
        layers += [layer, getattr(torch.nn, activation)()]
    return torch.nn.Sequential(*layers[:-1])


class OfAtoms(torch.nn.Module):
    """Takes structures: three functions of the distances to all neighbours, then a network."""

    def __init__(self):
        super().__init__()
        self.net = mlp([3, 4, 1], seed=1)

    def forward(self, frames):
        found = []
        for atoms in frames:
            distance = atoms.get_all_distances(mic=bool(atoms.pbc.any()))
            found.append(np.stack([of_neighbours(distance, k).sum(1) for k in range(3)], 1))
        return self.net(torch.from_numpy(np.concatenate(found)))


class Twice(torch.nn.Module):
    """A layer that is used twice."""

    def __init__(self, n):
        super().__init__()
        self.layer = torch.nn.Linear(n, n)

    def forward(self, x):
        return self.layer(self.layer(x))


def random(n):
    return torch.nn.Linear(n, 1)


def nothing():
    return 3


def failing(n):
    class Fails(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.last = torch.nn.Linear(n, 1)

        def forward(self, x):
            raise RuntimeError("no such graph")

    return Fails()
'''
Floats = NDArray[np.float64]


def write_nets(folder: Path) -> Any:
    """Write the user's module of networks, and import it as a job would."""
    (folder / f"{MODULE}.py").write_text(SOURCE)
    sys.modules.pop(MODULE, None)
    sys.path[:] = [path for path in sys.path if not (Path(path) / f"{MODULE}.py").exists()]
    sys.path.append(str(folder))
    return __import__(MODULE)


def silicon(n: int, seed: int = 0) -> list[Atoms]:
    """Rattled cells of silicon and germanium with energies."""
    return [_labelled(_silicon(1, seed + k), seed + k) for k in range(n)]


def pieces(frames: list[Atoms]) -> list[Piece]:
    """Structures as a descriptor takes them."""
    return [Piece(a.positions, a.numbers.astype(np.uint8), np.array(a.cell), a.pbc) for a in frames]


def write_sets(folder: Path) -> None:
    """A training set and a test set."""
    ase.io.write(folder / "train.xyz", silicon(6))
    ase.io.write(folder / "film.xyz", [_silicon(1, 11), _silicon(2, 12)])


def job_of(folder: Path, descriptor: Mapping[str, Any], name: str = "out", **other: Any) -> Job:
    """A job with the model that networks are for: shared weights, features as they are."""
    linear = {"regularizer": 1e-3, "centre_species": "shared", "scale": "none"}
    job = {
        "output": name,
        "train": {"files": "train.xyz"},
        "test": {"film": {"files": "film.xyz"}},
        "descriptor": descriptor,
        "model": {"linear": linear | other.pop("linear", {})},
        "numerics": {"block_environments": 16, "task_environments": 32},
    }
    return Job.from_dict(job | other, base=folder)


def lpr_of(output: Path, name: str = "film") -> Floats:
    """The published rigidities of a set."""
    group = zarr.open_group(str(output / "rigidity.zarr"), mode="r")
    return np.asarray(group[f"{name}/environment_lpr"])


def worked(folder: Path, descriptor: Mapping[str, Any], name: str = "out", **other: Any) -> Floats:
    """Rigidities of the test set by `dlpr work`, in this process."""
    made = job_of(folder, descriptor, name, **other)
    write_job(made.path(made.output), made)
    work(made.path(made.output))
    return lpr_of(folder / name)


def rigidity(train: Floats, sizes: list[int], test: Floats, mu: float) -> Floats:
    """R of rows with mean rows of structures, by plain NumPy."""
    edges = np.cumsum([0, *sizes])
    rows = np.stack([train[a:b].mean(0) for a, b in pairwise(edges)])
    hessian = rows.T @ rows + mu * np.eye(rows.shape[1])
    return 1.0 / np.sum(test * np.linalg.solve(hessian, test.T).T, axis=1)
