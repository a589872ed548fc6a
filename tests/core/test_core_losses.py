"""Losses against differences of their values and high precision; iterations against a minimum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlpr.core.losses import FARTHEST, LOSSES, Given, Huber, LogCosh, Loss, extrapolated, left_to_go
from dlpr.errors import InputError

Array = np.ndarray[Any, Any]


def pseudo_huber(residual: Array, delta: float = 1.0) -> tuple[Array, Array]:
    """``delta^2 (sqrt(1 + (r/delta)^2) - 1)``: first and second derivative."""
    root = np.sqrt(1.0 + np.square(residual / delta))
    return residual / root, root**-3


def value(loss: Loss, r: mpmath.mpf) -> mpmath.mpf:
    """The losses themselves, to as many digits as mpmath is told."""
    if isinstance(loss, Huber):
        inner = min(abs(r), mpmath.mpf(loss.delta))
        return inner * (abs(r) - inner / 2)
    if isinstance(loss, LogCosh):
        delta = mpmath.mpf(loss.delta)
        return delta**2 * mpmath.log(mpmath.cosh(r / delta))
    return mpmath.sqrt(1 + r**2) - 1


ALL: list[Loss] = [
    *(Huber(0.3), Huber(2e-4), LogCosh(0.5), LogCosh(30.0)),
    Given(pseudo_huber, {}, "pseudo"),
]


@pytest.mark.parametrize("loss", ALL, ids=lambda loss: str(loss)[:14])
@settings(max_examples=40, deadline=None)
@given(size=st.floats(-6.0, 2.0), sign=st.sampled_from([-1.0, 1.0]))
def test_weights_and_second_derivatives_are_those_of_the_value(
    loss: Loss, size: float, sign: float
) -> None:
    r = sign * 10.0**size
    point = np.array([r])
    if isinstance(loss, Huber) and abs(abs(r) / loss.delta - 1.0) < 1e-6:
        return  # the second derivative jumps there
    with mpmath.workdps(80):
        first = mpmath.diff(lambda x: value(loss, x), mpmath.mpf(r))
        second = mpmath.diff(lambda x: value(loss, x), mpmath.mpf(r), 2)
        expected = float(first / mpmath.mpf(r)), float(second)
    assert loss.weight(point)[0] == pytest.approx(expected[0], rel=1e-13)
    u = abs(r) / getattr(loss, "delta", 1.0)
    assert loss.second(point)[0] == pytest.approx(expected[1], rel=1e-14 * (2 + 4 * u), abs=1e-60)


@pytest.mark.parametrize("loss", ALL[:4], ids=lambda loss: str(loss)[:14])
def test_nothing_overflows(loss: Loss) -> None:
    huge = np.array([-1e300, 1e300, 5e-324, 0.0])
    delta = loss.delta  # type: ignore[attr-defined]
    np.testing.assert_array_equal(loss.second(huge), [0, 0, 1, 1])
    np.testing.assert_allclose(loss.weight(huge), [delta / 1e300, delta / 1e300, 1, 1], rtol=1e-15)


def test_losses_have_the_names_of_a_job_file() -> None:
    assert {name: kind(2.0) for name, kind in LOSSES.items()} == {
        "huber": Huber(2.0),
        "log_cosh": LogCosh(2.0),
    }


@pytest.mark.parametrize(
    "loss", [Huber(0.5), LogCosh(0.5), ALL[4]], ids=lambda loss: str(loss)[:14]
)
def test_reweighting_ends_where_the_gradient_is_0(loss: Loss) -> None:
    rng = np.random.default_rng(0)
    rows, mu = rng.normal(size=(40, 3)), 0.1
    y = rows @ [1.0, -2.0, 0.5] + rng.standard_t(df=1.5, size=40)
    w, changes = np.zeros(3), []
    for _ in range(200):
        weighted = rows * loss.weight(rows @ w - y)[:, None]
        after = np.linalg.solve(weighted.T @ rows + mu * np.eye(3), weighted.T @ y)
        changes.append(float(np.linalg.norm(after - w)))
        left, w = left_to_go(changes), after
        if left < 1e-9:
            break
    residual = rows @ w - y
    gradient = rows.T @ (residual * loss.weight(residual)) + mu * w
    assert np.abs(gradient).max() < 1e-7
    assert 3 < len(changes) < 200


def test_what_is_left_follows_from_the_last_two_steps() -> None:
    """Of steps that shrink by q, all that come make ``q/(1 - q)`` of the last."""
    for q in (0.6, 0.9, 0.99):
        steps = q ** np.arange(5)
        assert left_to_go(steps.tolist()) == pytest.approx(np.sum(q ** np.arange(5, 9000)))
    assert left_to_go([1.0, 1e-3]) == 1e-3  # no less than the step itself
    for unknown in ([], [1.0], [1.0, 1.0], [1.0, 2.0]):
        assert left_to_go(unknown) == np.inf
    assert left_to_go([0.0]) == left_to_go([1e-9, 0.0]) == 0.0


def broken(residual: Array) -> tuple[Array, Array]:
    raise ZeroDivisionError("by hand")


@pytest.mark.parametrize(
    ("function", "match"),
    [
        (broken, "mine raised ZeroDivisionError: by hand, for 3 residual"),
        (lambda r: r, r"mine raised .*returns two"),
        (lambda r: (r, r[:2]), r"shapes \(3,\) and \(2,\) for residuals \(3,\)"),
        (lambda r: (r, -np.ones_like(r)), r"l''\(r\) is -1 at r = -2, and not .* 3 of 3"),
        (lambda r: (r, np.full_like(r, np.nan)), r"l''\(r\) is nan"),
    ],
    ids=["raises", "one array", "shapes", "concave", "nan"],
)
def test_functions_that_are_no_loss_are_refused(function: Callable[..., Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        Given(function, {}, "mine").second(np.array([-2.0, 0.0, 1.0]))


def test_a_first_derivative_that_points_away_is_refused() -> None:
    loss = Given(lambda r: (-r, np.ones_like(r)), {}, "mine")
    with pytest.raises(InputError, match=r"l'\(r\)/r is -1 at r = -2, and not .* 2 of 3"):
        loss.weight(np.array([-2.0, 0.0, 1.0]))
    given_at_0 = Given(pseudo_huber, {"delta": 0.1}, "mine").weight(np.zeros(2))
    np.testing.assert_array_equal(given_at_0, 1.0)


def test_two_steps_that_shrink_by_one_factor_lead_to_their_end() -> None:
    rng = np.random.default_rng(1)
    metric = np.diag(rng.uniform(0.1, 10.0, 4))
    end, error = rng.normal(size=4), rng.normal(size=4)

    def product(a: Array, b: Array) -> float:
        return float(a @ metric @ b)

    for q in (0.1, 0.9, 0.98):
        first, second = (q - 1.0) * error, q * (q - 1.0) * error
        found = extrapolated(end + q**2 * error, first, second, product)
        np.testing.assert_allclose(found, end, rtol=0, atol=1e-12)
    # of several factors what is left is less than without, in the metric
    q = np.array([0.95, 0.93, 0.9, 0.9])
    after = end + q**2 * error
    found = extrapolated(after, (q - 1) * error, q * (q - 1) * error, product)
    assert product(found - end, found - end) < 0.2 * product(after - end, after - end)
    # steps that grow or turn are not followed, and none far
    np.testing.assert_array_equal(extrapolated(after, error, 2.0 * error, product), after)
    np.testing.assert_array_equal(extrapolated(after, error, error, product), after)
    far = extrapolated(after, error, (1.0 - 1e-9) * error, product)
    np.testing.assert_allclose(far, after + FARTHEST * error, rtol=1e-6)
