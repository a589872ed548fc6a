import copy
import json
import pickle
from dataclasses import replace

import featomic
import numpy as np
import pytest
from descriptors_cases import LODE, atoms_of, in_order, random_piece, turned
from featomic.basis import Gto
from featomic.clebsch_gordan import PowerSpectrum
from featomic.density import SmearedPowerLaw
from numpy.polynomial.legendre import leggauss
from scipy.spatial.transform import Rotation
from scipy.special import eval_legendre

from dlpr.descriptors import Lode, descriptor
from dlpr.descriptors import lode as module
from dlpr.descriptors.fourier import lode_coefficients
from dlpr.descriptors.near_potential import near_tables
from dlpr.errors import InputError, JobError

SPECIES = (1, 6, 8)
LODE_SPECTRUM = Lode(LODE, SPECIES)
PIECES = [random_piece(n, s, i) for i, (n, s) in enumerate([(6, SPECIES), (3, [6]), (5, [1, 8])])]


def by_featomic(pieces=PIECES, hypers=LODE):
    """Power spectrum in featomic's layout, with all ordered pairs of species."""
    spectrum = PowerSpectrum(
        featomic.LodeSphericalExpansion(**hypers), neighbor_types=list(SPECIES)
    )
    result = spectrum.compute([atoms_of(piece) for piece in pieces])
    return in_order(result.keys_to_samples("center_type"))


@pytest.mark.parametrize("exponent", [0, 1, 3, 6])
def test_features_are_featomics(exponent):
    hypers = copy.deepcopy(LODE)
    hypers["density"]["exponent"] = exponent
    full, properties = by_featomic(hypers=hypers)
    lode = Lode(hypers, SPECIES)
    names = ("l", "neighbour_1", "n_1", "neighbour_2", "n_2")
    wanted = np.stack([lode.columns[name] for name in names], 1)
    place = {tuple(row): column for column, row in enumerate(properties.tolist())}
    columns = [place[tuple(row)] for row in wanted.tolist()]
    assert len(set(columns)) == lode.n_features
    features = lode.compute(PIECES)
    scale = np.abs(full).max()
    assert scale > 0.01
    expected = full[:, columns] * lode.columns["weight"]
    np.testing.assert_allclose(features, expected, rtol=0, atol=1e-13 * scale)
    np.testing.assert_allclose(
        features @ features.T, full @ full.T, rtol=0, atol=1e-12 * (full @ full.T).max()
    )


def test_species_that_are_absent_have_columns_of_zeros():
    features = LODE_SPECTRUM.compute([PIECES[1]])
    assert features.shape == (3, LODE_SPECTRUM.n_features)
    absent = LODE_SPECTRUM.columns_with(1) | LODE_SPECTRUM.columns_with(8)
    assert not features[:, absent].any()
    assert np.abs(features[:, ~absent]).min() > 0
    assert (~absent).sum() == 3 * 6


def test_no_bit_depends_on_what_else_is_in_the_call(monkeypatch):
    expected = LODE_SPECTRUM.compute(PIECES)
    alone = [LODE_SPECTRUM.compute([piece]) for piece in PIECES]
    np.testing.assert_array_equal(np.concatenate(alone), expected)
    for centre in ([4], [5, 0, 2], []):
        some = replace(PIECES[0], centre=np.array(centre, int))
        np.testing.assert_array_equal(LODE_SPECTRUM.compute([some]), expected[centre])
    monkeypatch.setattr(module, "BATCH", 2)
    np.testing.assert_array_equal(LODE_SPECTRUM.compute(PIECES), expected)


def test_features_are_invariant():
    piece = PIECES[0]
    features = LODE_SPECTRUM.compute([piece])
    others = [
        replace(piece, position=piece.position + np.array([3.0, -7.0, 0.1])),
        turned(piece, Rotation.random(rng=0).as_matrix()),
        replace(piece, position=piece.position + 2 * piece.cell[1]),
    ]
    for other in others:
        found = LODE_SPECTRUM.compute([other])
        np.testing.assert_allclose(found, features, rtol=0, atol=1e-10 * np.abs(features).max())


def test_far_atoms_count():
    piece = random_piece(2, [6], 0)
    apart = replace(piece, position=np.array([[0.0, 0, 0], [9.0, 0, 0]]), cell=np.eye(3) * 20)
    farther = replace(apart, position=np.array([[0.0, 0, 0], [9.5, 0, 0]]))
    change = LODE_SPECTRUM.compute([farther]) - LODE_SPECTRUM.compute([apart])
    assert np.abs(change).max() > 1e-4


@pytest.mark.parametrize("pbc", [(True, True, False), (False, False, False)])
def test_open_directions_are_refused(pbc):
    piece = replace(PIECES[1], pbc=np.array(pbc))
    with pytest.raises(InputError, match=rf"structure 1 .* along {sum(pbc)} of its axes.* needs"):
        LODE_SPECTRUM.compute([PIECES[0], piece])


def test_cells_beyond_memory_and_flat_ones_are_refused(monkeypatch):
    vast = replace(PIECES[1], cell=np.eye(3) * 1e4)
    with pytest.raises(
        InputError, match=r"3 atoms in 1e\+12 Å³; .* need \d{5,}.* GiB, this machine"
    ):
        LODE_SPECTRUM.compute([vast])
    monkeypatch.setattr(module, "memory_nbytes", lambda: 1000)
    with pytest.raises(InputError, match=r"structure 0 .* this machine has 0\.0 GiB"):
        LODE_SPECTRUM.compute(PIECES)
    flat = replace(PIECES[1], cell=np.ones((3, 3)))
    with pytest.raises(InputError, match=r"span no volume"):
        LODE_SPECTRUM.compute([flat])


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("densty", {}, r"unknown key 'densty' in descriptor\.lode; .* is 'density'"),
        ("cutoff", {}, r"unknown key 'cutoff' in descriptor\.lode; .* is 'k_cutoff'"),
        ("density.type", "Gaussian", r"density\.type 'Gaussian' is unknown; .*SmearedPowerLaw"),
        ("density.exponent", 12, r"featomic refuses .* descriptor\.lode: .* < 10"),
        ("density.exponent", 1.5, r"exponent is 1\.5; it must be a whole number"),
        ("basis.radial.radius", None, r"lacks the key 'radius'"),
        ("k_cutoff", 0, r"k_cutoff is 0; it must be a finite number greater than 0"),
    ],
)
def test_bad_hyperparameters_are_named(path, value, message, capfd):
    hypers = copy.deepcopy(LODE)
    *sections, last = path.split(".")
    section = hypers
    for name in sections:
        section = section[name]
    section[last] = value
    with pytest.raises(JobError, match=message):
        Lode(hypers, [6])
    assert capfd.readouterr() == ("", "")


def test_it_is_one_component_and_pickles():
    kept = LODE_SPECTRUM.settings()
    again = pickle.loads(pickle.dumps(descriptor(kept)))  # noqa: S301
    assert again.settings() == kept
    assert again.cutoff == np.inf
    assert again.components == {"lode": slice(0, LODE_SPECTRUM.n_features)}
    np.testing.assert_array_equal(again.compute(PIECES), LODE_SPECTRUM.compute(PIECES))


def test_memory_follows_the_cell():
    small = LODE_SPECTRUM.compute_nbytes(10, 100, 0.1, 1e3)
    large = LODE_SPECTRUM.compute_nbytes(10, 100, 0.1, 1e5)
    n_waves = 1e5 * (1.2 * np.pi) ** 3 / (12 * np.pi**2)
    assert large - small > 0.9 * 16 * 100 * 4 * n_waves
    assert LODE_SPECTRUM.compute_nbytes(10, 100, 0.1) == small


EXCLUDE = {"radius": 4.0, "smoothing": {"type": "Step"}}


def narrow(exponent, **changes):
    """LODE whose waves are not cut short."""
    density = {"type": "SmearedPowerLaw", "smearing": 0.8, "exponent": exponent}
    return {**LODE, "density": density, "k_cutoff": 8.0, **changes}


def coefficients(hypers, piece):
    parameters = json.dumps(hypers)
    found = lode_coefficients(parameters, piece, np.arange(len(piece.species)), SPECIES)
    return np.concatenate([found[l_].reshape(len(piece.species), -1) for l_ in sorted(found)], 1)


CLUSTER = replace(
    random_piece(3, SPECIES, 0),
    position=np.array([[10, 10, 10], [11.1, 10.3, 9.2], [9.3, 12.2, 10.5]], float),
    species=np.array([1, 6, 8], np.uint8),
    cell=np.eye(3) * 22.0,
)


@pytest.mark.parametrize("exponent", [0, 4, 6])
def test_excluded_atoms_add_nothing(exponent):
    every = coefficients(narrow(exponent), CLUSTER)
    rest = coefficients(narrow(exponent, exclude=EXCLUDE), CLUSTER)
    # The images of atoms, 19 Å away or more, are not excluded.
    images = {0: 1e-7, 4: 6 * 19.0**-4 * 30, 6: 6 * 19.0**-6 * 30}[exponent]
    assert np.abs(every).max() > 0.1
    assert np.abs(rest).max() < images


@pytest.mark.parametrize("exponent", [1, 2, 3, 6])
def test_an_excluded_centre_is_featomics_centre(exponent):
    piece = replace(CLUSTER, position=CLUSTER.position * 1.0 + 5.0 * np.eye(3))
    hypers = narrow(exponent)
    hypers["density"]["center_atom_weight"] = 0.0
    expected = coefficients(hypers, piece)
    found = coefficients(narrow(exponent, exclude=EXCLUDE), piece)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8 * np.abs(expected).max())
    assert np.abs(coefficients(narrow(exponent), piece) - expected).max() > 0.1


def test_smoothing_takes_off_a_part():
    piece = replace(
        CLUSTER,
        position=np.array([[0.0, 0, 0], [3.0, 0, 0]]),
        species=np.array([6, 6], np.uint8),
    )
    smooth = {"radius": 4.0, "smoothing": {"type": "ShiftedCosine", "width": 2.0}}
    every, rest, half = (
        coefficients(narrow(1, **own), piece)
        for own in ({}, {"exclude": EXCLUDE}, {"exclude": smooth})
    )
    alone = {"exclude": {**EXCLUDE, "radius": 2.0}}
    without_self = coefficients(narrow(1, **alone), piece)
    np.testing.assert_allclose(half, (rest + without_self) / 2, rtol=0, atol=1e-10)
    assert np.abs(every - half).max() > 0.1


def test_excluded_neighbours_keep_features_invariant_and_bits_apart():
    lode = Lode({**LODE, "exclude": {**EXCLUDE, "radius": 2.8}}, SPECIES)
    features = lode.compute(PIECES)
    assert np.abs(features - LODE_SPECTRUM.compute(PIECES)).max() > 0.01
    rotated = [turned(piece, Rotation.random(rng=1).as_matrix()) for piece in PIECES]
    np.testing.assert_allclose(
        lode.compute(rotated), features, rtol=0, atol=1e-9 * np.abs(features).max()
    )
    alone = [lode.compute([replace(PIECES[0], centre=np.array([k]))]) for k in (3, 1)]
    np.testing.assert_array_equal(np.concatenate(alone), features[[3, 1]])
    assert descriptor(lode.settings()).settings() == lode.settings()


def test_what_is_excluded_needs_orbitals():
    points = [{"position": r, "values": [1.0], "derivatives": [0.0]} for r in (0.0, 8.0)]
    table = {"type": "Tabulated", "points": points, "center_contribution": [1.0]}
    basis = {"type": "Explicit", "by_angular": {"0": table}}
    assert Lode({**LODE, "basis": basis}, [6]).n_features == 1
    with pytest.raises(JobError, match=r"descriptor\.lode\.exclude needs .* of the type Gto"):
        Lode({**LODE, "basis": basis, "exclude": EXCLUDE}, [6])


@pytest.mark.parametrize("exponent", [0, 1, 5])
def test_tables_of_near_atoms_are_the_integrals(exponent):
    density = {"smearing": 0.7, "exponent": exponent}
    orbitals = {0: (3, 2.5), 2: (3, 2.5), 3: (2, 2.0)}
    tables = near_tables(density, orbitals, 3.0)
    potential = SmearedPowerLaw(**density)
    for l_, (size, radius) in orbitals.items():
        basis = Gto(max_radial=size - 1, radius=radius)
        entry = tables[str(l_)]["points"][123]
        r = entry["position"]
        r_, weight_r = leggauss(120)
        r_, weight_r = 10.0 * (r_ + 1), 10.0 * weight_r
        u, weight_u = leggauss(200)
        distance = np.sqrt(r**2 + r_[:, None] ** 2 - 2 * r * r_[:, None] * u)
        g = potential.compute(distance.ravel(), derivative=False).reshape(distance.shape)
        over_u = 2 * np.pi * (g * eval_legendre(l_, u)) @ weight_u
        expected = (weight_r * r_**2 * over_u) @ basis.compute(r_, derivative=False)
        np.testing.assert_allclose(entry["values"], expected, rtol=1e-8, atol=1e-11)
        before, after = (tables[str(l_)]["points"][k] for k in (122, 124))
        slope = np.subtract(after["values"], before["values"]) / 0.02
        np.testing.assert_allclose(entry["derivatives"], slope, rtol=1e-3, atol=1e-4)
