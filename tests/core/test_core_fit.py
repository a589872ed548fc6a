"""A fit in a store: the same bits come back, and what it lacks follows from the rest."""

from __future__ import annotations

import numpy as np
import pytest
from core_oracle import Array, steep_rows

from dlpr.core.factorize import factorize
from dlpr.core.fit import Fit, load_fit
from dlpr.core.folds import Triangle
from dlpr.core.models import Identity, Model

PARTS = {"a": slice(0, 4), "block": slice(4, 7), "whole.": slice(7, 9)}
MU = 1e-3


def fit_of(solver: str, n_species: int) -> Fit:
    model = Model(Identity.of(n_species, PARTS), "mean", constant=0.5)
    n_columns = model.layout.n_columns
    fold = Triangle.zeros(n_columns)
    fold.update(steep_rows(40, n_columns, 3.0, seed=n_species))
    rng = np.random.default_rng(0)
    weights, isolated = rng.normal(size=n_columns), rng.normal(size=n_species)
    return Fit.of(model, MU, factorize(fold, MU, 40, solver)[0], weights, isolated)


def said(fit: Fit) -> list[Array]:
    """Rigidities of rows that live in every block and part."""
    rng, found = np.random.default_rng(1), []
    for block, factor in enumerate(fit.blocks):
        found.append(factor.rigidity(rng.normal(size=(5, fit.model.layout.widths[block]))))
        for name, columns in PARTS.items():
            rows = rng.normal(size=(5, columns.stop - columns.start))
            found.append(fit.components[name][block].rigidity(rows))
    return found


@pytest.mark.parametrize("n_species", [1, 2, 12])
@pytest.mark.parametrize("solver", ["qr", "eigh"])
def test_a_fit_comes_back_from_its_arrays(solver: str, n_species: int) -> None:
    fit = fit_of(solver, n_species)
    arrays, expected = fit.to_arrays(), said(fit)
    again = load_fit(arrays, fit.model, MU, fit.isolated)
    np.testing.assert_array_equal(said(again), expected)
    np.testing.assert_array_equal(again.weights, fit.weights)
    less = {name: array for name, array in arrays.items() if not name.startswith("@")}
    np.testing.assert_array_equal(said(load_fit(less, fit.model, MU, fit.isolated)), expected)


def test_each_part_is_against_the_whole_hessian() -> None:
    fit = fit_of("qr", 2)
    assert fit.whole is not None
    rng = np.random.default_rng(2)
    for name, part in PARTS.items():
        rows = rng.normal(size=(3, part.stop - part.start))
        for number, columns in enumerate(fit.model.component(name)):
            wide = np.zeros((3, fit.model.layout.n_columns))
            wide[:, columns] = rows
            found = fit.components[name][number].rigidity(rows)
            np.testing.assert_allclose(found, fit.whole.rigidity(wide), rtol=1e-10)


def test_blocks_without_a_whole_are_enough_and_nothing_less() -> None:
    """As a model is saved whose Hessian was in tiles."""
    fit = fit_of("qr", 2)
    arrays = {name: a for name, a in fit.to_arrays().items() if name.startswith("block")}
    again = load_fit(arrays, fit.model, MU, fit.isolated)
    assert again.whole is None
    assert again.weights is None
    np.testing.assert_array_equal(said(again), said(fit))
    del arrays["block1.triangle"]
    with pytest.raises(ValueError, match="factors of 1 of 2 blocks"):
        load_fit(arrays, fit.model, MU, fit.isolated)
