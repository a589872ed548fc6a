import copy
import pickle
from dataclasses import replace

import featomic
import numpy as np
import pytest
from descriptors_cases import HYPERS, RADIAL, atoms_of, in_order, random_piece, turned
from hypothesis import given, settings
from hypothesis import strategies as st
from metatensor import Labels
from scipy.spatial.transform import Rotation

from dlpr.descriptors import RadialSpectrum, descriptor, near_kind
from dlpr.errors import InputError, JobError

SPECIES = (1, 6, 8)
RADIAL_SPECTRUM = RadialSpectrum(RADIAL, SPECIES)
PIECES = [random_piece(n, s, i) for i, (n, s) in enumerate([(9, SPECIES), (5, [6]), (14, [1, 8])])]


def by_featomic(calculator, pieces=PIECES, species=SPECIES):
    result = calculator.compute([atoms_of(piece) for piece in pieces])
    result = result.keys_to_samples("center_type")
    labels = Labels(["neighbor_type"], np.array(species, np.int32)[:, None])
    return result.keys_to_properties(labels)


def test_features_are_featomics():
    expected, properties = in_order(by_featomic(featomic.SoapRadialSpectrum(**RADIAL)))
    columns = np.stack([RADIAL_SPECTRUM.columns[name] for name in ("neighbour", "n")], 1)
    np.testing.assert_array_equal(columns, properties)
    features = RADIAL_SPECTRUM.compute(PIECES)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(features, expected, rtol=0, atol=1e-14)


def test_features_are_the_spherical_expansion_of_degree_zero():
    basis = {"type": "TensorProduct", "max_angular": 2, **RADIAL["basis"]}
    result = featomic.SphericalExpansion(**{**RADIAL, "basis": basis}).compute(
        [atoms_of(piece) for piece in PIECES],
        selected_keys=Labels(["o3_lambda"], np.array([[0]], np.int32)),
    )
    result = result.keys_to_samples("center_type").keys_to_properties(
        Labels(["neighbor_type"], np.array(SPECIES, np.int32)[:, None])
    )
    expected, _ = in_order(result.components_to_properties("o3_mu"))
    np.testing.assert_allclose(RADIAL_SPECTRUM.compute(PIECES), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_centres_weight_counts(weight):
    hypers = copy.deepcopy(RADIAL)
    hypers["density"]["center_atom_weight"] = weight
    expected, _ = in_order(by_featomic(featomic.SoapRadialSpectrum(**hypers)))
    found = RadialSpectrum(hypers, SPECIES).compute(PIECES)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)
    assert np.abs(found - RADIAL_SPECTRUM.compute(PIECES)).max() > 0.1


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
    batch=st.integers(1, 20),
)
@settings(max_examples=30, deadline=None)
def test_no_bit_depends_on_what_else_is_in_the_call(sizes, seed, batch):
    pieces = [random_piece(n, SPECIES, seed + i, density=0.15) for i, n in enumerate(sizes)]
    expected = RADIAL_SPECTRUM.compute(pieces)
    alone = np.concatenate([RADIAL_SPECTRUM.compute([piece]) for piece in pieces])
    np.testing.assert_array_equal(alone, expected)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_kind, "BATCH", batch)
        np.testing.assert_array_equal(RADIAL_SPECTRUM.compute(pieces), expected)
    last = replace(pieces[-1], centre=np.array([len(pieces[-1].species) - 1]))
    np.testing.assert_array_equal(RADIAL_SPECTRUM.compute([last])[0], expected[-1])


@pytest.mark.parametrize("pbc", [(True, True, False), (False, True, False), (False,) * 3])
def test_open_directions_equal_a_large_cell(pbc):
    piece = random_piece(20, SPECIES, 3, pbc)
    cell = piece.cell.copy()
    for axis in np.flatnonzero(~piece.pbc):
        cell[axis] *= 100.0 / np.linalg.norm(cell[axis])
    large = replace(piece, cell=cell, pbc=np.ones(3, bool))
    expected, _ = in_order(by_featomic(featomic.SoapRadialSpectrum(**RADIAL), [large]))
    np.testing.assert_allclose(RADIAL_SPECTRUM.compute([piece]), expected, rtol=0, atol=1e-13)


def test_features_are_invariant():
    piece = PIECES[0]
    moved = replace(piece, position=piece.position + np.array([3.0, -70.0, 0.1]))
    features = RADIAL_SPECTRUM.compute([piece])
    rotation = turned(piece, Rotation.random(rng=0).as_matrix())
    for other in (moved, rotation):
        np.testing.assert_allclose(RADIAL_SPECTRUM.compute([other]), features, rtol=0, atol=1e-12)


def test_it_is_one_component_and_pickles():
    kept = RADIAL_SPECTRUM.settings()
    again = pickle.loads(pickle.dumps(descriptor(kept)))  # noqa: S301
    assert again.settings() == kept
    assert again.components == {"radial": slice(0, 12)}
    assert again.cutoff == 3.0
    assert not again.reads_rows
    np.testing.assert_array_equal(again.columns_with(6), again.columns["neighbour"] == 6)
    np.testing.assert_array_equal(again.compute(PIECES), RADIAL_SPECTRUM.compute(PIECES))
    needed = again.compute_nbytes(28, 14, 0.06)
    assert 28 * 12 * 8 < needed < 2**26


@pytest.mark.parametrize(
    ("hypers", "message"),
    [
        ({**RADIAL, "basis": HYPERS["basis"]}, r"unknown key 'type' in descriptor\.radial\.basis"),
        ({**RADIAL, "cutof": 1}, r"unknown key 'cutof' in descriptor\.radial; .* is 'cutoff'"),
        (
            {**RADIAL, "basis": {"radial": {"type": "Gto", "max_radial": 40}}},
            r"featomic refuses the hyperparameters in descriptor\.radial: .*lower max_radial",
        ),
    ],
)
def test_bad_hyperparameters_are_named(hypers, message):
    with pytest.raises(JobError, match=message):
        RadialSpectrum(hypers, [6])


def test_coinciding_atoms_do_not_matter_but_lost_ones_do():
    piece = random_piece(5, SPECIES, 0)
    position = piece.position.copy()
    position[2, 1] = np.nan
    with pytest.raises(InputError, match="position of atom 2 of structure 0"):
        RADIAL_SPECTRUM.compute([replace(piece, position=position)])
