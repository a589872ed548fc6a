"""Labelled crystals, whole runs of models on them, and the same models by plain NumPy."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from pipeline_cases import TINY, Outcome, crystals, full_features, make_job, run
from scipy.linalg import qr, solve_triangular

Array = np.ndarray[Any, Any]
SPECIES = [31, 33]
MU = 1e-3
STEP = 1e-4
KERNEL = {"regularizer": MU, "references": {"count": 5}}
LINEAR = {"regularizer": MU, "scale": "none"}
FORMS = [("cholesky", 12), ("cholesky", 4096), ("qr", 4096), ("dual", 4096)]
"""Solver and tile columns: tiles, and the three forms of one piece."""
VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


def labelled(n: int, seed: int) -> list[Atoms]:
    """Crystals of GaAs, of two groups; every third lacks a stress, every fourth its forces."""
    rng = np.random.default_rng(seed)
    frames = crystals(("Ga", "As"), n, seed)
    for k, atoms in enumerate(frames):
        results = {"energy": atoms.info.pop("energy") * len(atoms)}
        if k % 4:
            results["forces"] = rng.normal(size=(len(atoms), 3))
        if k % 3:
            results["stress"] = rng.normal(size=6)
        atoms.calc = SinglePointCalculator(atoms, **results)
    return frames


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write(folder / "train.xyz", labelled(9, 0), format="extxyz")
    write(folder / "test.xyz", labelled(4, 1), format="extxyz")
    return folder


def load(data: Path, name: str) -> list[Atoms]:
    return list(read(data / f"{name}.xyz", ":"))


def done(data: Path, output: str, **settings: Any) -> Outcome:
    job = make_job(
        data,
        {"files": "train.xyz", "group_by": "config_type"},
        {"train": "train", "test": {"files": "test.xyz"}},
        hypers=TINY,
        output=output,
        **settings,
    )
    return run(job)


class Plain:
    """A model by NumPy and SciPy: derivatives by differences, everything in memory."""

    def __init__(self, references: dict[int, Array] | None, constant: float = 0.0) -> None:
        """References by species, of a kernel of unit vectors with zeta 2; None: linear."""
        self.references, self.constant = references, constant

    def phi(self, frames: list[Atoms]) -> Array:
        """Rows of environments: a block for each species, energies of atoms behind each."""
        features = full_features(frames, SPECIES, TINY)
        number = np.concatenate([atoms.numbers for atoms in frames])
        blocks = []
        for z in SPECIES:
            rows = features
            if self.references is not None:
                rows = self._kernel(features, self.references[z])
            if self.constant:
                rows = np.hstack([rows, np.full((len(rows), 1), self.constant)])
            blocks.append(rows * (number == z)[:, None])
        return np.hstack(blocks)

    @staticmethod
    def _kernel(features: Array, references: Array) -> Array:
        unit, points = (x / np.linalg.norm(x, axis=1)[:, None] for x in (features, references))
        eigenvalue, vectors = np.linalg.eigh((points @ points.T) ** 2)
        kept = eigenvalue > 1e-12 * eigenvalue[-1]
        return (unit @ points.T) ** 2 @ (vectors[:, kept] / np.sqrt(eigenvalue[kept]))

    def total(self, atoms: Atoms) -> Array:
        return self.phi([atoms]).sum(axis=0)

    def forces(self, atoms: Atoms) -> Array:
        rows = []
        for j in range(len(atoms)):
            for a in range(3):
                sides = []
                for step in (STEP, -STEP):
                    moved = atoms.copy()
                    moved.positions[j, a] += step
                    sides.append(self.total(moved))
                rows.append((sides[1] - sides[0]) / (2 * STEP))
        return np.array(rows)

    def stress(self, atoms: Atoms) -> Array:
        rows = []
        for a, b in VOIGT:
            sides = []
            for step in (STEP, -STEP):
                strain = np.eye(3)
                strain[a, b] += step / 2
                strain[b, a] += step / 2
                moved = atoms.copy()
                moved.set_cell(atoms.cell.array @ strain, scale_atoms=True)
                sides.append(self.total(moved))
            rows.append((sides[0] - sides[1]) / (2 * STEP * atoms.get_volume()))
        return np.array(rows)

    def loss_rows(self, frames: list[Atoms], loss: dict[str, float]) -> tuple[Array, Array]:
        """All rows times the roots of their weights, and their targets."""
        rows, targets = [], []
        for atoms in frames:
            results = atoms.calc.results
            factor = loss.get(atoms.info["config_type"], 1.0)
            if loss.get("energy", 1.0) and "energy" in results:
                root = np.sqrt(loss.get("energy", 1.0) * factor) / len(atoms)
                rows.append(self.total(atoms)[None] * root)
                targets.append([results["energy"] * root])
            if loss.get("forces") and "forces" in results:
                root = np.sqrt(loss["forces"] * factor)
                rows.append(self.forces(atoms) * root)
                targets.append(results["forces"].ravel() * root)
            if loss.get("stress") and "stress" in results:
                roots = np.sqrt(loss["stress"] * factor * np.array([1, 1, 1, 2, 2, 2]))
                rows.append(self.stress(atoms) * roots[:, None])
                targets.append(results["stress"] * roots)
        return np.concatenate(rows), np.concatenate(targets)

    def check(
        self, found: Outcome, data: Path, loss: dict[str, float], rtol: float, mu: float = MU
    ) -> None:
        """Rigidities and energies of both sets."""
        rows, targets = self.loss_rows(load(data, "train"), loss)
        n = rows.shape[1]
        stacked = np.vstack([rows, np.sqrt(mu) * np.eye(n)])
        q, triangle = qr(stacked, mode="economic")
        weights = solve_triangular(triangle, q[: len(rows)].T @ targets)
        for name in ("train", "test"):
            frames, arrays = load(data, name), found.sets[name]
            phi = self.phi(frames)
            edges = np.cumsum([0, *map(len, frames)])
            mean = np.array([phi[a:b].mean(axis=0) for a, b in pairwise(edges)])
            for array, own in (("environment_lpr", phi), ("structure_pr", mean)):
                rigidity = 1 / np.square(solve_triangular(triangle, own.T, trans="T")).sum(axis=0)
                np.testing.assert_allclose(arrays[array], rigidity, rtol=rtol, err_msg=array)
            energy = phi @ weights
            scale = np.abs(energy).max()
            close = {"rtol": 0, "atol": 10 * rtol * scale}
            np.testing.assert_allclose(arrays["environment_energy"], energy, **close)
            total = np.add.reduceat(energy, edges[:-1])
            np.testing.assert_allclose(arrays["structure_energy"], total, **close)


def chosen(found: Outcome, data: Path) -> dict[int, Array]:
    """The features of the references that a run chose."""
    features = full_features(load(data, "train"), SPECIES, TINY)
    part = found.used["references"].read_part(0)
    return {z: features[part[f"environment_{k}"]] for k, z in enumerate(SPECIES)}
