"""Principal coordinates against the singular values of centred rows."""

from __future__ import annotations

import numpy as np
import pytest

from dlpr.core.principal import principal_coordinates


@pytest.mark.parametrize("shape", [(30, 7), (9, 40)])
def test_coordinates(shape: tuple[int, int]) -> None:
    rows = np.random.default_rng(0).normal(size=shape) * np.linspace(1, 4, shape[1]) + 5.0
    found, explained = principal_coordinates(rows, 3)
    left, values, _ = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs(found), np.abs(left[:, :3] * values[:3]), rtol=1e-9)
    np.testing.assert_allclose(explained, values[:3] ** 2 / np.sum(values**2))
    assert (found[np.abs(found).argmax(axis=0), range(3)] > 0).all()
    np.testing.assert_allclose(principal_coordinates(rows + 2.0, 3)[0], found, atol=1e-8)


def test_fewer_axes_than_are_asked_for() -> None:
    found, explained = principal_coordinates(np.array([[1.0, 2.0], [1.0, 5.0]]), 3)
    np.testing.assert_allclose(np.abs(found[:, 0]), 1.5)
    np.testing.assert_allclose(found[:, 1:], 0.0, atol=1e-7)
    np.testing.assert_allclose(explained, [1.0, 0.0, 0.0], atol=1e-15)
    alone, explained = principal_coordinates(np.ones((1, 4)), 3)
    assert not alone.any()
    assert not explained.any()
