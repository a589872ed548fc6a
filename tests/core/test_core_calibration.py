"""Calibrations recover a known scale, minimize what they say, and count what has no statistics."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from scipy.special import ndtr

from dlpr.core.calibration import (
    EXPECTED_COVERAGE,
    METHODS,
    calibrate,
    gaussian_crps,
    reliability,
)
from dlpr.errors import InputError, JobError

Array = NDArray[np.float64]
A = 0.037


def sample(n: int, seed: int) -> tuple[Array, Array]:
    """Gaussian errors of variance A^2 u, with u over three decades."""
    rng = np.random.default_rng(seed)
    u = np.exp(rng.uniform(np.log(0.01), np.log(10.0), n))
    return A * np.sqrt(u) * rng.normal(size=n), u


@pytest.mark.parametrize("method", METHODS)
def test_a_known_scale_is_found(method: str) -> None:
    errors, u = sample(20_000, seed=3)
    found = calibrate(errors, u, method)
    # the scatter of the four estimates is 0.5 to 1.1 per cent
    assert found.scale == pytest.approx(A, rel=0.045)
    assert found.rmse_z == pytest.approx(A / found.scale, rel=0.03)
    assert (found.n, found.n_rigid, found.n_unknown) == (20_000, 0, 0)
    held_out, other = sample(5000, seed=4)
    assert np.std(held_out / found.sigma(other)) == pytest.approx(1.0, abs=0.06)


def test_methods_differ_where_the_errors_are_not_gaussian() -> None:
    errors, u = sample(500, seed=5)
    errors[np.argmin(u)] = 100 * A
    scales = {method: calibrate(errors, u, method).scale for method in METHODS}
    assert scales["likelihood"] > 30 * A
    assert scales["absolute"] < 1.5 * A
    assert scales["crps"] < 1.2 * A
    assert A < scales["squared"] < 0.2 * scales["likelihood"]


@pytest.mark.parametrize("method", METHODS)
def test_the_scale_has_the_units_of_the_errors(method: str) -> None:
    errors, u = sample(50, seed=6)
    one, other = calibrate(errors, u, method), calibrate(1e9 * errors, 1e-24 * u, method)
    assert other.scale == pytest.approx(1e21 * one.scale, rel=1e-12)
    assert other.crps == pytest.approx(1e9 * one.crps, rel=1e-12)
    assert other.rmse_z == pytest.approx(one.rmse_z, rel=1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 40))
def test_likelihood_and_crps_have_no_better_scale(seed: int, n: int) -> None:
    """Against a minimization of the stated means that knows no closed form."""
    errors, u = sample(n, seed)
    w = np.random.default_rng(seed).random(n) + 0.1
    w /= w.sum()

    def nll(log_scale: float) -> float:
        variance = np.exp(2 * log_scale) * u
        return float(w @ (0.5 * np.log(2 * np.pi * variance) + errors**2 / (2 * variance)))

    def crps(log_scale: float) -> float:
        return float(w @ gaussian_crps(errors, np.exp(log_scale) * np.sqrt(u)))

    for method, mean in (("likelihood", nll), ("crps", crps)):
        found = calibrate(errors, u, method, w)
        assert {"likelihood": found.nll, "crps": found.crps}[method] == pytest.approx(
            mean(np.log(found.scale)), rel=1e-12
        )
        brute = minimize_scalar(mean, bounds=np.log(found.scale) + np.array([-3, 3.3]))
        assert mean(np.log(found.scale)) <= brute.fun + 1e-13
        assert np.log(found.scale) == pytest.approx(brute.x, abs=1e-3)


def test_moments_are_those_of_the_gaussians() -> None:
    errors, u = sample(50, seed=7)
    sigma = calibrate(errors, u, "squared").sigma(u)
    assert np.square(sigma).mean() == pytest.approx(np.square(errors).mean(), rel=1e-13)
    sigma = calibrate(errors, u, "absolute").sigma(u)
    mean = quad(lambda z: 2 * z * np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi), 0, 40)[0]
    assert mean * sigma.mean() == pytest.approx(np.abs(errors).mean(), rel=1e-7)


@pytest.mark.parametrize(("error", "sigma"), [(0.0, 1.0), (0.3, 0.2), (-4.0, 0.7), (2.0, 9.0)])
def test_crps_is_the_integral_that_defines_it(error: float, sigma: float) -> None:
    """The squared distance of the predicted distribution from the step at what was true."""
    below = quad(lambda t: ndtr(t / sigma) ** 2, -np.inf, error)[0]
    above = quad(lambda t: (1.0 - ndtr(t / sigma)) ** 2, error, np.inf)[0]
    found = gaussian_crps(np.array([error]), np.array([sigma]))[0]
    assert found == pytest.approx(below + above, rel=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_weights_are_repetitions(method: str) -> None:
    errors, u = sample(30, seed=8)
    times = np.random.default_rng(0).integers(0, 4, 30)
    weighted = calibrate(errors, u, method, times.astype(float))
    repeated = calibrate(np.repeat(errors, times), np.repeat(u, times), method)
    for name in ("scale", "nll", "crps", "rmse_z"):
        assert getattr(weighted, name) == pytest.approx(getattr(repeated, name), rel=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_rigid_and_unknown_rows_are_counted_apart(method: str) -> None:
    errors, u = sample(40, seed=9)
    alone = calibrate(errors, u, method)
    more = calibrate(
        np.append(errors, [0.0, 5.0, 7.0]), np.append(u, [0.0, np.inf, np.inf]), method
    )
    assert (more.n, more.n_rigid, more.n_unknown) == (40, 1, 2)
    assert (more.scale, more.nll, more.crps, more.rmse_z) == pytest.approx(
        (alone.scale, alone.nll, alone.crps, alone.rmse_z), rel=1e-14
    )
    np.testing.assert_array_equal(more.sigma(np.array([0.0, np.inf])), [0.0, np.inf])


@pytest.mark.parametrize("method", METHODS)
def test_a_residual_variance_counts(method: str) -> None:
    """Errors of a model that has a residual r everywhere need u = 1/R + r."""
    errors, u = sample(4000, seed=10)
    rng = np.random.default_rng(0)
    errors = A * np.sqrt(u + 2.0) * rng.normal(size=len(u))
    assert calibrate(errors, u + 2.0, method).scale == pytest.approx(A, rel=0.08)
    assert calibrate(errors, u, method).scale > 1.3 * A


def test_what_cannot_be_calibrated_is_refused() -> None:
    errors, u = sample(10, seed=11)
    with pytest.raises(JobError, match="choose one of squared, absolute, likelihood, crps"):
        calibrate(errors, u, "nll")
    with pytest.raises(InputError, match=r"10 errors .* are 9 and 10"):
        calibrate(errors, u[:9])
    with pytest.raises(InputError, match="1 of 10 errors are not finite, the first in row 4"):
        calibrate(np.where(np.arange(10) == 4, np.nan, errors), u)
    with pytest.raises(InputError, match="2 of 10 variances are negative or NaN"):
        calibrate(errors, np.where(np.arange(10) > 7, [-1.0] * 9 + [np.nan], u))
    with pytest.raises(InputError, match="of 10 rows none has both"):
        calibrate(errors, np.full(10, np.inf))
    with pytest.raises(InputError, match="weights are negative"):
        calibrate(errors, u, weights=-u)
    for method in METHODS:
        with pytest.raises(InputError, match="scale of 0 for 10 errors"):
            calibrate(0 * errors, u, method)
    mostly = np.where(np.arange(10) < 1, errors, 0.0)
    assert calibrate(mostly, np.ones(10), "absolute").scale > 0
    with pytest.raises(InputError, match="or another method"):
        calibrate(mostly, np.ones(10), "crps")


def test_reliability_of_what_is_reliable() -> None:
    errors, u = sample(6000, seed=12)
    found = reliability(errors, A * np.sqrt(u), 12)
    assert found.count.tolist() == [500] * 12
    assert (np.diff(found.variance) > 0).all()
    assert found.variance @ found.count == pytest.approx(A**2 * u.sum())
    assert found.squared_error @ found.count == pytest.approx((errors**2).sum())
    assert (np.abs(found.squared_error - found.variance) < 4.5 * found.standard_error).all()
    # a mean of m squares of Gaussians of one variance scatters by sqrt(2/m)
    np.testing.assert_allclose(
        found.standard_error / found.squared_error, np.sqrt(2 / 500), rtol=0.35
    )
    assert found.coverage == pytest.approx(EXPECTED_COVERAGE, abs=0.02)
    assert pytest.approx((0.6827, 0.9545, 0.9973), abs=1e-4) == EXPECTED_COVERAGE
    half = reliability(errors, 0.5 * A * np.sqrt(u), 12)
    assert half.coverage[1] == pytest.approx(EXPECTED_COVERAGE[0], abs=0.02)
    assert (half.squared_error > 2.5 * half.variance).all()


def test_reliability_counts_apart_and_refuses() -> None:
    errors, u = sample(11, seed=13)
    sigma = np.sqrt(u)
    alone = reliability(errors, sigma, 3)
    assert alone.count.tolist() == [4, 4, 3]
    order = np.random.default_rng(0).permutation(13)
    more = reliability(
        np.append(errors, [0.0, 3.0])[order], np.append(sigma, [0.0, np.inf])[order], 3
    )
    assert (more.n_rigid, more.n_unknown) == (1, 1)
    np.testing.assert_array_equal(more.squared_error, alone.squared_error)
    assert more.coverage == alone.coverage
    with pytest.raises(InputError, match=r"11 rows .* 1 to 5 bins .* 6 are asked for"):
        reliability(errors, sigma, 6)
    with pytest.raises(InputError, match="11 errors need as many sigmas"):
        reliability(errors, sigma[1:], 2)
