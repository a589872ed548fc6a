"""Labelled crystals, whole runs of models on them, and the same models by plain NumPy."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import featomic
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from descriptors_cases import LODE, RADIAL, in_order
from featomic.clebsch_gordan import PowerSpectrum
from metatensor import Labels
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


FAR = {**LODE, "basis": {**LODE["basis"], "max_angular": 1}}
PARTS = {"far": {"lode": FAR}, "pair": {"radial": RADIAL}, "short": {"soap": TINY}}
NEAR = {name: PARTS[name] for name in ("pair", "short")}


def tiny_soap(frames: list[Atoms]) -> Array:
    """Features of the descriptor that runs have here unless they are told another."""
    return full_features(frames, SPECIES, TINY)


def radial(frames: list[Atoms]) -> Array:
    """featomic's radial spectrum."""
    found = featomic.SoapRadialSpectrum(**RADIAL).compute(frames).keys_to_samples("center_type")
    neighbours = Labels(["neighbor_type"], np.array(SPECIES, np.int32)[:, None])
    values: Array = in_order(found.keys_to_properties(neighbours))[0]
    return values


def lode(frames: list[Atoms]) -> Array:
    """The power spectrum of featomic's LODE, every pair of species in both orders."""
    calculator = featomic.LodeSphericalExpansion(**FAR)
    found = PowerSpectrum(calculator, neighbor_types=SPECIES).compute(frames)
    values: Array = in_order(found.keys_to_samples("center_type"))[0]
    return values


def near(frames: list[Atoms]) -> Array:
    """Features of `NEAR`."""
    return np.hstack([radial(frames), tiny_soap(frames)])


def parts(frames: list[Atoms]) -> Array:
    """Features of `PARTS`."""
    return np.hstack([lode(frames), near(frames)])


class Plain:
    """A model by NumPy and SciPy: derivatives by differences, everything in memory."""

    def __init__(
        self,
        references: dict[int, Array] | None,
        constant: float = 0.0,
        features: Callable[[list[Atoms]], Array] = tiny_soap,
    ) -> None:
        """References by species, of a kernel of unit vectors with zeta 2; None: linear."""
        self.references, self.constant, self.features = references, constant, features

    def phi(self, frames: list[Atoms]) -> Array:
        """Rows of environments: a block for each species, energies of atoms behind each."""
        features = self.features(frames)
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

    def _differences(self, frames: list[Atoms]) -> Array:
        """Derivatives of sums, each from a frame with a step forth and one with a step back."""
        sums = self.phi(frames).reshape(len(frames), len(frames[0]), -1).sum(axis=1)
        return (sums[::2] - sums[1::2]) / (2 * STEP)

    def forces(self, atoms: Atoms) -> Array:
        frames = []
        for j in range(len(atoms)):
            for a in range(3):
                for step in (STEP, -STEP):
                    moved = atoms.copy()
                    moved.positions[j, a] += step
                    frames.append(moved)
        return -self._differences(frames)

    def stress(self, atoms: Atoms) -> Array:
        frames = []
        for a, b in VOIGT:
            for step in (STEP, -STEP):
                strain = np.eye(3)
                strain[a, b] += step / 2
                strain[b, a] += step / 2
                moved = atoms.copy()
                moved.set_cell(atoms.cell.array @ strain, scale_atoms=True)
                frames.append(moved)
        return self._differences(frames) / atoms.get_volume()

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


def chosen(
    found: Outcome, data: Path, of: Callable[[list[Atoms]], Array] = tiny_soap
) -> dict[int, Array]:
    """The features of the references that a run chose."""
    features = of(load(data, "train"))
    part = found.used["references"].read_part(0)
    return {z: features[part[f"environment_{k}"]] for k, z in enumerate(SPECIES)}
