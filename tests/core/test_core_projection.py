"""Projections keep lengths, as far as is promised."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chi2

from dlpr.core.projection import N_PROJECTIONS, project


@pytest.mark.parametrize("width", [3.0, 0.0])
def test_lengths(width: float) -> None:
    """Of rows that are spread over all columns, or lie in few of them."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(4000, 300)) * np.exp(width * rng.normal(size=300))
    square = np.square(project(rows)).sum(axis=1) / np.square(rows).sum(axis=1)
    # signs are fixed: rows that share their large columns share what befalls these
    if not width:
        assert square.mean() == pytest.approx(1.0, abs=0.02)
    for bound in (1.5, 0.5):
        law = chi2(N_PROJECTIONS)
        promised = law.sf(N_PROJECTIONS * bound**2) if bound > 1 else law.cdf(N_PROJECTIONS / 4)
        beyond = square > bound**2 if bound > 1 else square < bound**2
        assert np.mean(beyond) < promised + 0.004


def test_parts_add_up_and_columns_keep_their_signs() -> None:
    rows = np.random.default_rng(1).normal(size=(5, 40))
    np.testing.assert_allclose(
        project(rows[:2]) + project(rows[2:4]), project(rows[:2] + rows[2:4])
    )
    longer = np.hstack([rows, np.zeros((5, 7))])
    np.testing.assert_allclose(project(longer), project(rows), rtol=1e-13)
    unit = project(np.eye(40))
    np.testing.assert_allclose(np.abs(unit), 0.25)
    assert abs(unit.sum()) < 0.25 * 4 * np.sqrt(unit.size)
    assert np.linalg.matrix_rank(unit) == N_PROJECTIONS
