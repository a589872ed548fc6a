"""Losses of weighted structures, squared or not, by NumPy and SciPy: rows, minimum, Hessian."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from models_cases import LINEAR, MU, Array, Plain, done, labelled, load
from pipeline_cases import Outcome
from scipy.optimize import minimize

WEIGHTS = (1.0, 3.0, 0.0, None, 0.25, 2.0, 1.5, 0.5, 1.0)
"""Of the training structures; None: not given."""
FUNCTION = """
import numpy as np

def pseudo_huber(residual, delta=1.0):
    root = np.sqrt(1.0 + np.square(residual / delta))
    return residual / root, root**-3

def welsch(residual):
    decay = np.exp(-np.square(residual))
    return residual * decay, (1.0 - 2.0 * np.square(residual)) * decay

def no_loss(residual):
    return residual
"""


@pytest.fixture(scope="module")
def weighted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training and a test set, whose structures have weights, and a module of losses."""
    folder = tmp_path_factory.mktemp("losses")
    (folder / "losses_of_users.py").write_text(FUNCTION)
    write_weighted(folder, WEIGHTS)
    write(folder / "test.xyz", labelled(4, 1), format="extxyz")
    return folder


def write_weighted(folder: Path, weights: tuple[float | None, ...]) -> None:
    """The training set with other weights."""
    frames = labelled(len(weights), 0)
    for atoms, weight in zip(frames, weights, strict=True):
        if weight is not None:
            atoms.info["w"] = weight
    write(folder / "train.xyz", frames, format="extxyz")


def fitted(data: Path, output: str, loss: dict[str, Any], **settings: Any) -> Outcome:
    """A whole run of a linear model."""
    model = {"linear": {**LINEAR, **settings.pop("linear", {})}}
    return done(data, output, model=model, loss=loss, **settings)


Cost = Callable[[Array], tuple[Array, Array]]
"""From residuals to ``l`` and ``l'``."""


def squared(r: Array) -> tuple[Array, Array]:
    return r**2 / 2, r


def huber(delta: float) -> Cost:
    def cost(r: Array) -> tuple[Array, Array]:
        inner = np.clip(r, -delta, delta)
        return inner * r - inner**2 / 2, inner

    return cost


def log_cosh(delta: float) -> Cost:
    def cost(r: Array) -> tuple[Array, Array]:
        u = np.abs(r) / delta
        return delta**2 * (u + np.log1p(np.exp(-2 * u)) - np.log(2)), delta * np.tanh(r / delta)

    return cost


def pseudo_huber(delta: float) -> Cost:
    def cost(r: Array) -> tuple[Array, Array]:
        root = np.sqrt(1 + (r / delta) ** 2)
        return delta**2 * (root - 1), r / root

    return cost


@dataclass
class Rows:
    """All rows of one kind: their targets, frames, and how often each counts."""

    g: Array
    y: Array
    frame: Array
    times: Array


def rows_of(frames: list[Atoms], rows: str = "mean") -> dict[str, Rows]:
    """The rows of a linear model, derivatives by differences."""
    plain = Plain(None)
    found: dict[str, list[tuple[Array, Array, int, Array]]] = {}
    for k, atoms in enumerate(frames):
        results, n = atoms.calc.results, len(atoms)
        factor = {"mean": 1 / n, "sqrt": n**-0.5, "sum": 1.0}[rows]
        total, energy = plain.total(atoms)[None] * factor, np.array([results["energy"]]) * factor
        found.setdefault("energy", []).append((total, energy, k, np.ones(1)))
        if "forces" in results:
            y = results["forces"].ravel()
            found.setdefault("forces", []).append((plain.forces(atoms), y, k, np.ones(len(y))))
        if "stress" in results:
            g, y, times = plain.stress(atoms), results["stress"], np.array([1, 1, 1, 2, 2, 2.0])
            found.setdefault("stress", []).append((g, y, k, times))
            size = -atoms.get_volume() * factor
            found.setdefault("virial", []).append((size * g, size * y, k, times))
    return {
        kind: Rows(
            np.concatenate([g for g, *_ in pieces]),
            np.concatenate([y for _, y, *_ in pieces]),
            np.concatenate([np.full(len(y), k) for _, y, k, _ in pieces]),
            np.concatenate([times for *_, times in pieces]),
        )
        for kind, pieces in found.items()
    }


class Reference:
    """The minimum of ``sum lambda s t l(r) + mu/2 |w|^2``, and the Hessian there."""

    def __init__(
        self,
        rows: Mapping[str, Rows],
        terms: Mapping[str, tuple[float, Cost]],
        weight: Array,
        mu: float = MU,
        once: bool = False,
    ) -> None:
        """Terms: lambda and cost of each kind; weight (n_frames,): of the structures."""
        self._terms, self._mu = [], mu
        for kind, (factor, cost) in terms.items():
            own = rows[kind]
            times = np.ones(len(own.y)) if once else own.times
            self._terms.append((own.g, own.y, factor * weight[own.frame] * times, cost))
        n = self._terms[0][0].shape[1]
        options = {"gtol": 1e-12, "maxiter": 10000}
        w = minimize(self._loss, np.zeros(n), jac=True, method="BFGS", options=options).x
        for _ in range(60):  # the last digits
            w = w - np.linalg.solve(self._slope(w, 1e-6), self.gradient(w))
        self.weights = w
        assert np.abs(self.gradient(w)).max() < 1e-10
        self.hessian = self._slope(w, 1e-5)

    def _loss(self, w: Array) -> tuple[float, Array]:
        total = self._mu / 2 * w @ w
        for g, y, factor, cost in self._terms:
            total += factor @ cost(g @ w - y)[0]
        return float(total), self.gradient(w)

    def gradient(self, w: Array) -> Array:
        total = self._mu * w
        for g, y, factor, cost in self._terms:
            total = total + g.T @ (factor * cost(g @ w - y)[1])
        return total

    def _slope(self, w: Array, step: float) -> Array:
        """Derivative of the gradient by central differences."""
        columns = [
            (self.gradient(w + e) - self.gradient(w - e)) / (2 * step)
            for e in step * np.eye(len(w))
        ]
        return (np.array(columns) + np.array(columns).T) / 2

    def rigidity(self, rows: Array) -> Array:
        return 1.0 / np.einsum("ij,ji->i", rows, np.linalg.solve(self.hessian, rows.T))

    def check(self, found: Outcome, data: Path, rtol: float) -> None:
        """Rigidities and energies of the test set."""
        frames, arrays = load(data, "test"), found.sets["test"]
        phi = Plain(None).phi(frames)
        np.testing.assert_allclose(arrays["environment_lpr"], self.rigidity(phi), rtol=rtol)
        energy = phi @ self.weights
        atol = rtol * np.abs(energy).max()
        np.testing.assert_allclose(arrays["environment_energy"], energy, rtol=0, atol=atol)
