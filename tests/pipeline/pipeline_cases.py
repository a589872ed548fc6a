"""Small structures, whole runs in this process, and the plain serial evaluation to hold against."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import featomic
import numpy as np
import zarr
from ase import Atoms
from ase.build import bulk, diamond100, molecule, nanotube
from ase.io import read, write
from metatensor import Labels
from scipy.linalg import qr, solve_triangular, svd

from dlpr.engine.events import Event
from dlpr.engine.executors import Executor, WorkExecutor
from dlpr.engine.output import write_job
from dlpr.engine.pipeline import Pipeline
from dlpr.engine.workspace import Workspace
from dlpr.job import Job
from dlpr.store.arrays import chunk_files
from dlpr.store.folder import StageFolder

HYPERS: dict[str, Any] = {
    "cutoff": {"radius": 3.5, "smoothing": {"type": "ShiftedCosine", "width": 0.5}},
    "density": {"type": "Gaussian", "width": 0.5},
    "basis": {
        "type": "TensorProduct",
        "max_angular": 2,
        "radial": {"type": "Gto", "max_radial": 2},
    },
}
TINY = {
    **HYPERS,
    "basis": {
        "type": "TensorProduct",
        "max_angular": 1,
        "radial": {"type": "Gto", "max_radial": 1},
    },
}
"""Few enough columns that a dozen structures span them."""
SPECIES = {1: ("Si",), 2: ("Ga", "As"), 3: ("C", "H", "O")}

# structures --------------------------------------------------------------------------------------


def crystals(symbols: tuple[str, ...], n: int, seed: int = 0, big: int = 2) -> list[Atoms]:
    """Rattled and strained diamond lattices of 2 to 8 ``big`` atoms, with mixed species."""
    rng = np.random.default_rng(seed)
    frames = []
    for k in range(n):
        cell = bulk("Si", "diamond", a=5.43, cubic=k % 3 == 1)
        atoms = cell.repeat((1 + k % big, 1, 1))
        atoms.symbols[:] = [symbols[j] for j in rng.integers(0, len(symbols), len(atoms))]
        strain = np.eye(3) + rng.uniform(-0.06, 0.06, (3, 3))
        atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
        atoms.positions += rng.normal(0.0, 0.12, (len(atoms), 3))
        atoms.info["config_type"] = "odd" if k % 2 else "even"
        atoms.info["energy"] = float(rng.normal())
        frames.append(atoms)
    return frames


def shapes(symbols: tuple[str, ...], seed: int = 1) -> list[Atoms]:
    """A slab, two wires, a cluster, and frames of one atom, open and periodic."""
    rng = np.random.default_rng(seed)
    slab = diamond100("Si", (2, 2, 3), vacuum=2.0)
    slab.cell[2] = [3.0, 1.0, 17.0]  # not used: the slab is open along it
    slab.pbc = (True, True, False)
    wire = nanotube(3, 2, length=1, bond=1.6, vacuum=0.0)
    wire.pbc = (False, False, True)
    skew = bulk("Si", "fcc", a=4.4).repeat((1, 2, 1))
    skew.pbc = (False, True, False)
    one, lone = Atoms("Si", pbc=False), bulk("Si", "sc", a=2.6)
    frames = [slab, wire, skew, molecule("CH3CH2OH"), one, lone]
    for atoms in frames:
        atoms.symbols[:] = [symbols[j] for j in rng.integers(0, len(symbols), len(atoms))]
        if len(atoms) > 1:
            atoms.positions += rng.normal(0.0, 0.05, (len(atoms), 3))
        atoms.info["energy"] = float(len(atoms))
    return frames


def gas(n_atoms: int, symbols: tuple[str, ...], seed: int, pbc: Any = True) -> Atoms:
    """Atoms on a jittered grid in a skew cell."""
    rng = np.random.default_rng(seed)
    side = int(np.ceil(n_atoms ** (1 / 3)))
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), -1).reshape(-1, 3)
    sites = grid[rng.permutation(len(grid))[:n_atoms]] + rng.uniform(-0.25, 0.25, (n_atoms, 3))
    cell = np.eye(3) * side * 2.8 + rng.uniform(-0.5, 0.5, (3, 3))
    names = [symbols[j] for j in rng.integers(0, len(symbols), n_atoms)]
    atoms = Atoms(names, sites / side @ cell, cell=cell, pbc=pbc)
    atoms.info["energy"] = -1.0 * n_atoms
    return atoms


def load(path: Path) -> list[Atoms]:
    """All frames of a file."""
    return list(read(path, ":"))


def store(path: Path, frames: list[Atoms]) -> list[Atoms]:
    """Write frames and read them back: text keeps eight digits."""
    for atoms in frames:
        atoms.calc = None
        atoms.info = {k: v for k, v in atoms.info.items() if k in ("config_type", "energy")}
    write(path, frames, format="extxyz")
    return load(path)


# runs --------------------------------------------------------------------------------------------


@dataclass(repr=False)
class Outcome:
    """What a run left."""

    output: Path
    sets: dict[str, dict[str, Any]]
    events: list[Event]
    used: dict[str, StageFolder]

    def __repr__(self) -> str:
        return f"Outcome({self.output})"

    @property
    def facts(self) -> dict[str, Any]:
        """Facts of the factorization."""
        roles = ("triangle", "hessian", "tiles", "rows")
        folder = next(
            self.used[f"factor of the {role}"]
            for role in roles
            if f"factor of the {role}" in self.used
        )
        return folder.receipts()[-1].facts

    @property
    def accuracy(self) -> float:
        """Relative error of R that the run states."""
        return float(self.facts["conditioning"]["accuracy"])

    @property
    def tasks(self) -> dict[str, int]:
        """Tasks done in this run, by role."""
        done: dict[str, int] = {}
        for event in self.events:
            if event.kind == "task":
                done[event.stage] = done.get(event.stage, 0) + 1
        return done


def make_job(
    folder: Path,
    train: str | dict[str, Any] = "train.xyz",
    test: Mapping[str, Any] | None = None,
    linear: Mapping[str, Any] | None = None,
    hypers: Mapping[str, Any] | None = None,
    output: str = "out",
    **settings: Any,
) -> Job:
    """A job whose files are in ``folder``."""
    data = {
        "output": output,
        "train": {"files": train} if isinstance(train, str) else train,
        "test": {"train": "train"} if test is None else dict(test),
        "descriptor": {"soap": dict(HYPERS if hypers is None else hypers)},
        "model": {"linear": {"regularizer": 1e-4, **(linear or {})}},
        **settings,
    }
    return Job.from_dict(data, base=folder)


def run(job: Job, *listeners: Callable[[Event], None], executor: Executor | None = None) -> Outcome:
    """Do a whole job in this process, without Dask."""
    events: list[Event] = []
    workspace = Workspace(
        job.path(job.output), executor or WorkExecutor(0), events.append, *listeners
    )
    write_job(workspace.output, job)
    steps = Pipeline(job, workspace)
    steps.result()
    return Outcome(workspace.output, arrays_of(workspace.output), events, workspace.used)


def arrays_of(output: Path) -> dict[str, dict[str, Any]]:
    """All arrays of a published result, by set."""
    root = zarr.open_group(str(output / "rigidity.zarr"), mode="r")
    return {
        set_name: {name: np.asarray(array[...]) for name, array in group.arrays()}
        for set_name, group in root.groups()
    }


def chunks_of(output: Path) -> dict[str, bytes]:
    """The bytes of every published chunk."""
    root = (output / "rigidity.zarr").resolve()
    return {str(file.relative_to(root)): file.read_bytes() for file in chunk_files(root)}


def assert_same_bits(one: Path, other: Path) -> None:
    """Two outputs publish the same chunks, byte by byte, and at least one."""
    first, second = chunks_of(one), chunks_of(other)
    assert first
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def process(
    code: str, *arguments: object, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """A fresh Python whose BLAS nobody has told anything but ``environment``."""
    blas = ("OPENBLAS_", "OMP_NUM", "MKL_", "GOTO_")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(blas)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**clean, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output_of(running: subprocess.Popen[str]) -> str:
    """What a process printed; it must have ended well."""
    out, error = running.communicate(timeout=120)
    assert running.returncode == 0, error
    return out


# the plain serial evaluation ---------------------------------------------------------------------


def _periodic(atoms: Atoms, cutoff: float) -> Atoms:
    """Open directions of a slab or wire replaced by vacuum; what is open all round stays so."""
    if atoms.pbc.all() or not atoms.pbc.any():
        return atoms
    padded, cell = atoms.copy(), atoms.cell.array.copy()
    kept = [cell[axis] for axis in np.flatnonzero(atoms.pbc)]
    normals = svd(np.array(kept))[2][len(kept) :]
    for axis, normal in zip(np.flatnonzero(~atoms.pbc), normals, strict=True):
        cell[axis] = normal * (np.ptp(atoms.positions @ normal) + 3.0 * cutoff)
    padded.set_cell(cell)
    padded.pbc = True
    return padded


def full_features(
    frames: list[Atoms], species: list[int], hypers: Mapping[str, Any] = HYPERS
) -> np.ndarray[Any, Any]:
    """featomic's own full layout, all frames in one call."""
    systems = [_periodic(atoms, hypers["cutoff"]["radius"]) for atoms in frames]
    pairs = np.array([(a, b) for a in species for b in species if a <= b], dtype=np.int32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = featomic.SoapPowerSpectrum(**hypers).compute(systems)
        found = found.keys_to_samples("center_type")
        found = found.keys_to_properties(Labels(["neighbor_1_type", "neighbor_2_type"], pairs))
    block = found.block()
    samples = np.array(block.samples.values)
    return np.array(block.values)[np.lexsort((samples[:, 1], samples[:, 0]))]


@dataclass(repr=False)
class Oracle:
    """Rigidities by NumPy and SciPy alone, all in memory."""

    species: list[int]
    linear: dict[str, Any]
    train: list[Atoms]
    hypers: Mapping[str, Any]

    def __init__(
        self,
        train: list[Atoms],
        tests: list[list[Atoms]],
        hypers: Mapping[str, Any] = HYPERS,
        **linear: Any,
    ) -> None:
        everything = [*train, *(atoms for frames in tests for atoms in frames)]
        self.species = sorted({int(z) for atoms in everything for z in atoms.numbers})
        self.linear = {"regularizer": 1e-4, "rows": "mean", "scale": "rms"}
        self.linear |= {"centre_species": "separate", **linear}
        self.train, self.hypers = train, hypers
        features = full_features(train, self.species, hypers)
        self.mu = self.linear["regularizer"]
        if self.linear["scale"] == "rms":
            self.mu *= np.mean(np.sum(features**2, axis=1))
        self.rows = self.structure_rows(train, self.phi(train))

    def phi(self, frames: list[Atoms]) -> np.ndarray[Any, Any]:
        """Features in the columns of the model."""
        features = full_features(frames, self.species, self.hypers)
        if self.linear["centre_species"] == "shared":
            return features
        numbers = np.concatenate([atoms.numbers for atoms in frames])
        return np.hstack([features * (numbers == z)[:, None] for z in self.species])

    def structure_rows(
        self, frames: list[Atoms], phi: np.ndarray[Any, Any]
    ) -> np.ndarray[Any, Any]:
        """Rows of structures in the model's convention."""
        edges = np.cumsum([0, *map(len, frames)])
        reduce = {
            "mean": lambda x: x.mean(axis=0),
            "sum": lambda x: x.sum(axis=0),
            "sqrt": lambda x: x.sum(axis=0) / np.sqrt(len(x)),
        }[self.linear["rows"]]
        return np.array([reduce(phi[a:b]) for a, b in pairwise(edges)])

    def rigidity(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """``1/(g^T H^-1 g)``."""
        if self.mu == 0.0:
            return self._without_prior(rows)
        n_columns = self.rows.shape[1]
        stacked = np.vstack([self.rows, np.sqrt(self.mu) * np.eye(n_columns)])
        triangle = qr(stacked, mode="r")[0][:n_columns]
        solved = solve_triangular(triangle, rows.T, trans="T")
        with np.errstate(divide="ignore"):
            return 1.0 / np.sum(solved**2, axis=0)

    def _without_prior(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        _, sigma, right = svd(self.rows, full_matrices=False)
        rtol = max(self.rows.shape) * np.finfo(float).eps
        basis = right[sigma > rtol * sigma[0]]
        projection = rows @ basis.T
        outside = np.linalg.norm(rows - projection @ basis, axis=1)
        value = 1.0 / np.sum((projection / sigma[: len(basis)]) ** 2, axis=1)
        root = np.sqrt(np.finfo(float).eps)
        return np.where(outside > root * np.linalg.norm(rows, axis=1), 0.0, value)

    def expect(self, frames: list[Atoms]) -> dict[str, np.ndarray[Any, Any]]:
        """The arrays of one set, as a result names them."""
        phi = self.phi(frames)
        lpr = self.rigidity(phi)
        found = {
            "environment_lpr": lpr,
            "structure_pr": self.rigidity(self.structure_rows(frames, phi)),
        }
        if self.mu > 0.0:
            found["environment_prior_ratio"] = lpr * np.sum(phi**2, axis=1) / self.mu
        return found


def check_against(
    found: Mapping[str, Any], oracle: Oracle, frames: list[Atoms], rtol: float = 1e-9
) -> None:
    """A set's arrays equal the oracle's, and say which environment is which."""
    for name, expected in oracle.expect(frames).items():
        np.testing.assert_allclose(found[name], expected, rtol=rtol, err_msg=name)
    numbers = np.concatenate([atoms.numbers for atoms in frames])
    np.testing.assert_array_equal(found["environment_species"], numbers)
    np.testing.assert_array_equal(
        found["structure_offset"], np.cumsum([0, *map(len, frames)], dtype=np.int64)
    )
    np.testing.assert_array_equal(found["structure_source_frame"], np.arange(len(frames)))
