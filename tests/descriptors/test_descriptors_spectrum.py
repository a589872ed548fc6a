import copy

import numpy as np
import pytest
from descriptors_cases import HYPERS, featomic_full, random_piece
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import sph_harm_y

from dlpr.descriptors import near_kind
from dlpr.descriptors import radial as radial_module
from dlpr.descriptors import spectrum as spectrum_module
from dlpr.descriptors.harmonics import spherical_harmonics
from dlpr.descriptors.native import RadialFunctions
from dlpr.descriptors.radial import RadialTable, radial_table
from dlpr.descriptors.soap import Soap
from dlpr.errors import JobError

SPECIES = (1, 6, 8)
PIECES = [
    random_piece(9, SPECIES, 1),
    random_piece(14, (1, 8), 2),
    random_piece(7, (6,), 3, (False, False, False)),
]


def tabulated(seed):
    """Two radial functions by their values and slopes at points without order."""
    inner = np.sort(np.random.default_rng(seed).uniform(0.0, 3.0, 30))
    points = [
        {"position": x, "values": [np.exp(-x * x), np.cos(x)], "derivatives": [-2 * x, -np.sin(x)]}
        for x in [0.0, *inner.tolist(), 3.0, 3.3]
    ]
    return {"type": "Tabulated", "points": points}


def gto(max_radial):
    return {"type": "Gto", "max_radial": max_radial}


def product(max_angular, radial):
    return {"type": "TensorProduct", "max_angular": max_angular, "radial": radial}


def explicit(**by_angular):
    return {"type": "Explicit", "by_angular": {k[1:]: v for k, v in by_angular.items()}}


WILLATT = {"type": "Willatt2018", "exponent": 3.5, "rate": 1.2, "scale": 2.0}
POINTS = {"type": "DiracDelta"}
CHANGES = {
    "as it is": {},
    "step": {"cutoff.smoothing": {"type": "Step"}},
    "scaled": {"density.scaling": WILLATT},
    "heavy centre": {"density.center_atom_weight": 2.5},
    "no centre": {"density.center_atom_weight": 0.0},
    "coarse splines": {"basis.spline_accuracy": 1e-3},
    "fine splines": {"basis.spline_accuracy": 1e-10},
    "one column": {"basis": product(0, gto(0))},
    "large": {"basis": product(12, gto(9))},
    "long": {"basis": product(3, gto(4)), "cutoff.radius": 6.5},
    "channels": {"basis": explicit(l1=gto(2), l4=gto(4))},
    "tables": {"basis": product(2, tabulated(0)), "density": POINTS},
    "channels of tables": {"basis": explicit(l0=tabulated(0), l3=tabulated(1)), "density": POINTS},
}


def changed(changes):
    hypers = copy.deepcopy(HYPERS)
    for path, value in changes.items():
        *sections, last = path.split(".")
        section = hypers
        for name in sections:
            section = section[name]
        section[last] = value
    return hypers


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("species", [(6,), SPECIES])
def test_features_are_those_of_featomic(changes, species):
    hypers = changed(changes)
    soap = Soap(hypers, species)
    pieces = PIECES if len(species) > 1 else [random_piece(8, species, s) for s in range(2)]
    expected, _ = featomic_full(pieces, species, hypers)
    features = soap.expand(soap.compute(pieces))
    scale = np.abs(expected).max(axis=1, keepdims=True)
    assert (scale > 0).sum() > len(scale) // 2
    assert (np.abs(features - expected) <= 1e-14 * scale).all()


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
    batch=st.integers(1, 20),
    width=st.integers(1, 5),
    slots=st.integers(1, 200),
)
@settings(max_examples=50, deadline=None)
def test_no_bit_depends_on_what_is_computed_side_by_side(sizes, seed, batch, width, slots):
    pieces = [random_piece(n, SPECIES, seed + i, density=0.15) for i, n in enumerate(sizes)]
    soap = Soap(HYPERS, SPECIES)
    expected = soap.compute(pieces)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_kind, "BATCH", batch)
        patch.setattr(spectrum_module, "WIDTH", 8 * width)
        patch.setattr(spectrum_module, "SLOTS", slots)
        np.testing.assert_array_equal(soap.compute(pieces), expected)
    alone = np.concatenate([soap.compute([piece]) for piece in pieces])
    np.testing.assert_array_equal(alone, expected)


@given(seed=st.integers(0, 1000), max_angular=st.integers(0, 20))
@settings(max_examples=20, deadline=None)
def test_harmonics_are_those_of_scipy(seed, max_angular):
    vector = np.random.default_rng(seed).normal(size=(3, 17))
    vector[:, :3] = np.eye(3)
    direction = vector / np.linalg.norm(vector, axis=0)
    theta, phi = np.arccos(direction[2]), np.arctan2(direction[1], direction[0])
    harmonics = spherical_harmonics(direction, max_angular)
    for l_ in range(max_angular + 1):
        for m in range(-l_, l_ + 1):
            value = sph_harm_y(l_, abs(m), theta, phi) * (-1) ** m * (np.sqrt(2) if m else 1)
            expected = value.real if m >= 0 else value.imag
            np.testing.assert_allclose(harmonics[l_ * l_ + l_ + m], expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", ["as it is", "fine splines", "channels of tables"])
def test_the_table_meets_featomic_between_its_nodes(name):
    soap = Soap(changed(CHANGES[name] | {"cutoff.smoothing": {"type": "Step"}}), [6])
    distance = np.sort(np.random.default_rng(0).uniform(0.0, soap.cutoff, 500))
    table = radial_table(soap.parameters)
    exact = RadialFunctions(soap.parameters)(distance)
    for found, expected in zip(table.functions(*table.cubics(distance)), exact, strict=True):
        assert np.ptp(expected) > 0.01
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-15 * np.abs(expected).max())


def test_functions_that_are_no_cubics_are_refused(monkeypatch):
    def waves(self, distance):
        return [np.sin(1e6 * distance)[:, None]]

    monkeypatch.setattr(radial_module.RadialFunctions, "__call__", waves)
    with pytest.raises(JobError, match=r"not met to 1e-13 with 30721 values"):
        RadialTable(Soap(HYPERS, [6]).parameters)
