"""The Hessian of a loss that is not squared, at its converged fit, against torch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from networks_cases import torch

from dlpr.core.losses import Huber, LogCosh, Loss

DELTA, MU = 0.4, 1e-3


def huber(residual: Any) -> Any:
    zero = torch.zeros_like(residual)
    return torch.nn.functional.huber_loss(residual, zero, reduction="sum", delta=DELTA)


def log_cosh(residual: Any) -> Any:
    return DELTA**2 * torch.log(torch.cosh(residual / DELTA)).sum()


@pytest.mark.parametrize(
    ("loss", "value"), [(Huber(DELTA), huber), (LogCosh(DELTA), log_cosh)], ids=["huber", "log"]
)
def test_the_hessian_at_the_fit_is_autograds(loss: Loss, value: Callable[[Any], Any]) -> None:
    rng = np.random.default_rng(3)
    g, y = rng.normal(size=(80, 6)), rng.normal(size=80)
    w = np.zeros(6)
    for _ in range(500):
        weight = loss.weight(g @ w - y)
        w = np.linalg.solve(MU * np.eye(6) + (g.T * weight) @ g, g.T @ (weight * y))
    second = loss.second(g @ w - y)
    assert 5 < np.count_nonzero(second < 0.5) < 75
    rows, target = torch.from_numpy(g), torch.from_numpy(y)

    def total(weights: Any) -> Any:
        return value(rows @ weights - target) + 0.5 * MU * weights @ weights

    at = torch.from_numpy(w)
    assert torch.func.grad(total)(at).abs().max() < 1e-10
    expected = torch.func.hessian(total)(at).numpy()
    np.testing.assert_allclose(MU * np.eye(6) + (g.T * second) @ g, expected, atol=1e-10)
