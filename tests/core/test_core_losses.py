"""Losses against finite differences and high precision; presets against losses written out."""

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlpr.core.losses import (
    LOSSES,
    Huber,
    Lambdas,
    LogCosh,
    Loss,
    Squared,
    from_gap,
    from_mace,
    from_pacemaker,
)
from dlpr.errors import JobError

ALL = [Squared(), Huber(0.3), Huber(2e-4), LogCosh(0.5), LogCosh(30.0)]
residuals = st.floats(-1e3, 1e3).filter(lambda r: r == 0.0 or abs(r) > 1e-6)


@pytest.mark.parametrize("loss", ALL, ids=repr)
@settings(max_examples=60, deadline=None)
@given(r=residuals)
def test_derivatives_are_those_of_the_value(loss: Loss, r: float) -> None:
    h = 1e-4 * max(abs(r), 1e-3)
    if isinstance(loss, Huber) and abs(abs(r) - loss.delta) <= 2 * h:
        return  # the second derivative jumps there
    points = np.array([r - h, r, r + h])
    value, first = loss.value(points), loss.first(points)
    # rounding of the differences, and their third derivative of at most 1/length
    length = getattr(loss, "scale", np.inf)
    assert (value[2] - value[0]) / (2 * h) == pytest.approx(
        first[1], rel=1e-7, abs=1e-15 * value.max() / h + h**2 / length
    )
    assert (first[2] - first[0]) / (2 * h) == pytest.approx(
        loss.second(points)[1], abs=1e-15 * np.abs(first).max() / h + h**2 / length**2 + 1e-9
    )
    if r:
        np.testing.assert_allclose(loss.weight(points) * points, first, rtol=1e-14)
    assert loss.weight(np.zeros(1)) == 1.0
    np.testing.assert_array_equal(loss.value(-points), value)
    np.testing.assert_array_equal(loss.first(-points), -first)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
@pytest.mark.parametrize("r", [1e-12, 1e-5, 3e-3, 0.7, 1.0, 1.5, 20.0, 700.0])
def test_log_cosh_is_accurate_from_small_to_large(scale: float, r: float) -> None:
    loss, point = LogCosh(scale), np.array([r])
    mpmath.mp.dps = 60
    u = mpmath.mpf(r) / mpmath.mpf(scale)
    s = mpmath.mpf(scale)
    assert loss.value(point)[0] == pytest.approx(
        float(s**2 * mpmath.log(mpmath.cosh(u))), rel=4e-15
    )
    assert loss.first(point)[0] == pytest.approx(float(s * mpmath.tanh(u)), rel=4e-15)
    exact = float(1 / mpmath.cosh(u) ** 2)
    assert loss.second(point)[0] == pytest.approx(exact, rel=1e-15 * (2 + 4 * float(u)), abs=1e-307)
    assert loss.weight(point)[0] == pytest.approx(float(mpmath.tanh(u) / u), rel=4e-15)


@pytest.mark.parametrize("loss", ALL[1:], ids=repr)
def test_nothing_overflows(loss: Loss) -> None:
    huge = np.array([-1e300, 1e300, 5e-324, 0.0])
    for result in (loss.value(huge), loss.first(huge), loss.second(huge), loss.weight(huge)):
        assert np.isfinite(result).all()
    length = loss.delta if isinstance(loss, Huber) else loss.scale  # type: ignore[attr-defined]
    np.testing.assert_allclose(loss.value(huge)[:2], length * 1e300)
    np.testing.assert_array_equal(loss.first(huge)[:2], [-length, length])
    np.testing.assert_array_equal(loss.second(huge), [0, 0, 1, 1])


def test_reweighting_finds_the_least_loss() -> None:
    """Iterated weights of rows end where the gradient of the loss and the regularizer is 0."""
    rng = np.random.default_rng(0)
    rows, mu = rng.normal(size=(40, 3)), 0.1
    y = rows @ [1.0, -2.0, 0.5] + rng.standard_t(df=1.5, size=40)
    for loss in (Huber(0.5), LogCosh(0.5)):
        w = np.zeros(3)
        for _ in range(200):
            weighted = rows * loss.weight(y - rows @ w)[:, None]
            w = np.linalg.solve(weighted.T @ rows + mu * np.eye(3), weighted.T @ y)
        gradient = -rows.T @ loss.first(y - rows @ w) + mu * w
        assert np.abs(gradient).max() < 1e-10
        # and there H is the derivative of that gradient
        hessian = (rows * loss.second(y - rows @ w)[:, None]).T @ rows + mu * np.eye(3)
        for k, step in enumerate(1e-6 * np.eye(3)):
            change = -rows.T @ loss.first(y - rows @ (w + step)) + mu * (w + step) - gradient
            np.testing.assert_allclose(change / 1e-6, hessian[:, k], atol=1e-4)


def test_losses_have_the_names_of_a_job_file() -> None:
    made = [LOSSES["squared"](), LOSSES["huber"](delta=2.0), LOSSES["log-cosh"](scale=3.0)]
    assert made == [Squared(), Huber(2.0), LogCosh(3.0)]
    for name, key in (("huber", "delta"), ("log-cosh", "scale")):
        for wrong in (0.0, -1.0, np.nan, np.inf):
            with pytest.raises(JobError, match=f"{key} of the loss"):
                LOSSES[name](**{key: wrong})


class Data:
    """Errors of energies, forces and stresses of three structures, for losses written out."""

    n_atoms = np.array([2, 5, 3])
    rng = np.random.default_rng(1)
    energy = rng.normal(size=3)
    forces = rng.normal(size=(10, 3))
    tensor = rng.normal(size=(3, 3, 3))
    tensor = tensor + tensor.transpose(0, 2, 1)


def ours(lambdas: Lambdas) -> float:
    """Half the weighted squares of the rows of `Data`, a virial and a stress having six."""
    power = {"sum": 0.0, "sqrt": -0.5, "mean": -1.0}
    factor = {rows: Data.n_atoms**exponent for rows, exponent in power.items()}
    total = lambdas.energy * np.square(Data.energy * factor[lambdas.energy_rows]).sum()
    total += lambdas.forces * np.square(Data.forces).sum()
    for which, (k, m) in enumerate([(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]):
        weight = lambdas.off_diagonal if which > 2 else 1.0
        column = Data.tensor[:, k, m]
        virial = np.square(column * factor[lambdas.virial_rows]).sum()
        total += weight * (lambdas.virial * virial + lambdas.stress * np.square(column).sum())
    return float(0.5 * total)


def test_gap_sigmas() -> None:
    lower = Data.tensor[:, *np.tril_indices(3)]
    for per_atom, power in ((True, 0.5), (False, 0.0)):
        size = Data.n_atoms**power
        likelihood = np.square(Data.energy / (0.002 * size)).sum()
        likelihood += np.square(Data.forces / 0.1).sum()
        likelihood += np.square(lower / (0.05 * size[:, None])).sum()
        lambdas = from_gap(0.002, 0.1, 0.05, sigma_per_atom=per_atom)
        assert ours(lambdas) == pytest.approx(0.5 * likelihood, rel=1e-12)
        assert lambdas.mu == 1.0
    assert from_gap(0.002, 0.1, 0.0).virial == 0.0
    with pytest.raises(JobError, match="forces_sigma is -1"):
        from_gap(0.002, -1.0, 0.1)


@pytest.mark.parametrize("kappa", [0.0, 0.3, 1.0])
def test_pacemaker_kappa(kappa: float) -> None:
    energies, forces = np.full(3, 1 / 3), np.full(10, 1 / 10)
    loss = (1 - kappa) * (energies * np.square(Data.energy / Data.n_atoms)).sum()
    loss += kappa * (forces[:, None] * np.square(Data.forces)).sum()
    assert ours(from_pacemaker(kappa, 3, 10)) == pytest.approx(loss, rel=1e-12)
    with pytest.raises(JobError, match=r"kappa is 1\.2"):
        from_pacemaker(1.2, 3, 10)


def test_mace_weights() -> None:
    loss = 2.0 * np.mean(np.square(Data.energy / Data.n_atoms))
    loss += 30.0 * np.mean(np.square(Data.forces))
    loss += 5.0 * np.mean(np.square(Data.tensor / Data.n_atoms[:, None, None]))
    loss += 7.0 * np.mean(np.square(Data.tensor))
    lambdas = from_mace(
        3, 10, energy_weight=2.0, forces_weight=30.0, virials_weight=5.0, stress_weight=7.0
    )
    assert ours(lambdas) == pytest.approx(loss, rel=1e-12)
    huber = from_mace(3, 10, energy_weight=2.0, forces_weight=30.0, huber=True)
    within = 0.5 * 2.0 * np.mean(np.square(Data.energy / Data.n_atoms))
    within += 0.5 * 30.0 * np.mean(np.square(Data.forces))
    assert ours(huber) == pytest.approx(within, rel=1e-12)
    with pytest.raises(JobError, match="no virials"):
        from_mace(3, 10, virials_weight=1.0, huber=True)
    with pytest.raises(JobError, match="3 structures of 0 atoms"):
        from_mace(3, 0)
    with pytest.raises(JobError, match="forces_weight is -1"):
        from_mace(3, 10, forces_weight=-1.0)
