"""What rigidities of networks must obey: linear networks, and the definition by a constraint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from networks_cases import MODULE, SOAP, Floats, pieces, torch, worked, write_nets, write_sets

from dlpr.descriptors import Soap

pytestmark = pytest.mark.torch

SPECIES = [14, 32]
N_TRAIN, N_ATOMS = 6, 8
Function = Callable[[Any], Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_sets(tmp_path)
    write_nets(tmp_path)
    return tmp_path


def network(sizes: list[int], **other: Any) -> dict[str, Any]:
    options = {"sizes": sizes, **other.pop("options", {})}
    made = {"call": f"{MODULE}:mlp", "options": options, "input": {"soap": SOAP}}
    return {"network": made | other}


def soap_rows(folder: Path, name: str) -> Floats:
    return Soap(SOAP, SPECIES).compute(pieces(ase.io.read(folder / f"{name}.xyz", ":")))


def test_a_linear_network_has_the_rigidities_of_the_linear_model(folder: Path) -> None:
    n = soap_rows(folder, "train").shape[1]
    expected = worked(folder, {"soap": SOAP}, "soap")
    np.testing.assert_allclose(worked(folder, network([n, 1]), "net"), expected, rtol=1e-9)
    last = worked(folder, network([n, 1], layer="0"), "last")
    np.testing.assert_allclose(last, expected, rtol=1e-9)


def test_layers_without_activation_are_a_ridge_in_another_norm(folder: Path) -> None:
    """y = w2 W1 x moves as x . db with db = J dw, J J^T = |w2|^2 + W1^T W1."""
    train, film = soap_rows(folder, "train"), soap_rows(folder, "film")
    n, mu = train.shape[1], 1e-3
    torch.set_default_dtype(torch.float64)
    try:
        module = write_nets(folder).mlp([n, 3, 1], activation="Identity")
    finally:
        torch.set_default_dtype(torch.float32)
    first, second = (module[k].weight.detach().numpy() for k in (0, 2))
    metric = np.sum(second**2) * np.eye(n) + first.T @ first
    rows = train.reshape(N_TRAIN, N_ATOMS, n).mean(1)
    hessian = rows.T @ rows + mu * np.linalg.solve(metric, np.eye(n))
    expected = 1.0 / np.sum(film * np.linalg.solve(hessian, film.T).T, axis=1)
    found = worked(folder, network([n, 3, 1], options={"activation": "Identity"}))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_constrained_predictions_raise_the_loss_as_the_rigidity_says(folder: Path) -> None:
    """JCTC23 eq. 7-11 for a sigmoid network: the loss rises by R eps^2 / 2.

    The network has learned energies that one like it made, so that residuals are small and
    Gauss-Newton's Hessian is near the true one: to 5% in the median of the atoms, to 35% for all.
    Loss and constraint are minimized by Newton's method with the true Hessian, and know nothing of
    dlpr.
    """
    mu, eps = 1e-5, 1e-4
    reduce = np.linalg.svd(soap_rows(folder, "train"), full_matrices=False)[2][:4].T
    reduce *= np.sign(reduce.sum(0))  # which LAPACK leaves open
    x = {name: soap_rows(folder, name) @ reduce for name in ("train", "film")}
    scale = np.sqrt(np.mean(x["train"] ** 2))
    for name, rows in x.items():
        np.save(folder / f"{name}.npy", rows / scale)
    x = {name: torch.from_numpy(rows / scale) for name, rows in x.items()}
    torch.set_default_dtype(torch.float64)
    try:
        nets = write_nets(folder)
        module, teacher = nets.mlp([4, 3, 1], seed=3), nets.mlp([4, 3, 1], seed=3)
        shapes = {name: p.shape for name, p in module.named_parameters()}

        def output(weights: Any, rows: Any) -> Any:
            parts = weights.split([shape.numel() for shape in shapes.values()])
            named = {k: part.view(shapes[k]) for k, part in zip(shapes, parts, strict=True)}
            return torch.func.functional_call(module, named, (rows,))[:, 0]

        def energies(weights: Any) -> Any:
            return output(weights, x["train"]).view(N_TRAIN, N_ATOMS).mean(1)

        start = torch.nn.utils.parameters_to_vector(teacher.parameters()).detach()
        target = energies(start)

        def loss(weights: Any) -> Any:
            return 0.5 * ((energies(weights) - target) ** 2).sum() + 0.5 * mu * (weights**2).sum()

        best = minimized(loss, start)
        torch.nn.utils.vector_to_parameters(best, module.parameters())
        torch.save(module.state_dict(), folder / "trained.pt")
        rises = {}
        for k in (0, 7, 40):

            def y(weights: Any, row: Any = x["film"][k : k + 1]) -> Any:
                return output(weights, row)[0]

            moved = [constrained(loss, y, best, float(y(best)) + e) for e in (eps, -eps)]
            rises[k] = sum(float(loss(one) - loss(best)) for one in moved) / eps**2
        true = torch.func.hessian(loss)(best).numpy()
        g = torch.func.jacrev(output)(best, x["film"]).numpy()
    finally:
        torch.set_default_dtype(torch.float32)
    made = network([4, 3, 1], state="trained.pt")
    made["network"]["input"] = {"features": {"train": "train.npy", "film": "film.npy"}}
    lpr = worked(folder, made, linear={"regularizer": mu})
    exact = 1.0 / np.sum(g * np.linalg.solve(true, g.T).T, axis=1)
    for k, rise in rises.items():
        assert rise == pytest.approx(exact[k], rel=1e-3)  # both signs together: of order eps^2
    off = np.abs(lpr / exact - 1.0)  # residuals times second derivatives, which Gauss-Newton drops
    assert np.median(off) < 0.05
    assert off.max() < 0.35
    assert max(rises.values()) > 3 * min(rises.values())  # atoms differ by more than that


def minimized(loss: Function, start: Any) -> Any:
    """Newton's method, away from saddles, in halved steps; the gradient ends below 1e-12."""
    gradient_of, weights = torch.func.grad(loss), start
    for _ in range(300):
        gradient = gradient_of(weights)
        if gradient.norm() < 1e-12:
            return weights
        values, vectors = torch.linalg.eigh(torch.func.hessian(loss)(weights))
        step = vectors @ ((vectors.T @ gradient) / values.abs())
        for _ in range(20):
            moved = weights - step
            if loss(moved) < loss(weights) or gradient_of(moved).norm() < gradient.norm():
                break
            step = step / 2
        weights = moved
    raise AssertionError(f"not converged: {float(gradient.norm())}")


def constrained(loss: Function, y: Function, start: Any, value: float) -> Any:
    """Minimize a loss where y has a value: Newton's method on the Lagrangian."""
    weights, multiplier = start, torch.zeros(())
    for _ in range(50):
        g = torch.func.grad(y)(weights)
        gradient = torch.func.grad(loss)(weights) + multiplier * g
        off = y(weights) - value
        if gradient.norm() < 1e-11 and abs(off) < 1e-13:
            return weights
        curved = torch.func.hessian(loss)(weights) + multiplier * torch.func.hessian(y)(weights)
        whole = torch.zeros(len(g) + 1, len(g) + 1)
        whole[:-1, :-1], whole[-1, :-1], whole[:-1, -1] = curved, g, g
        step = torch.linalg.solve(whole, torch.cat([gradient, off[None]]))
        weights, multiplier = weights - step[:-1], multiplier - step[-1]
    raise AssertionError(f"not converged: {float(gradient.norm())}, {float(off)}")
