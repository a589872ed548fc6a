from dataclasses import dataclass, replace

import numpy as np
import pytest
from descriptors_cases import FAR, HYPERS, LODE, RADIAL, random_piece, turned

from dlpr.descriptors import Descriptor, descriptor, gradient_batches, gradient_refusal, gradients
from dlpr.descriptors.gradients import derivative_rows, has_stress
from dlpr.descriptors.neighbours import Surroundings
from dlpr.descriptors.soap import Soap
from dlpr.errors import InputError

SPECIES = (1, 6, 8)
SOAPS = {species: Soap(HYPERS, species) for species in [(6,), SPECIES]}
SOAP = SOAPS[SPECIES]
NEAR = {"short": {"soap": HYPERS}, "pair": {"radial": RADIAL}}
SECTIONS = {
    "soap": {"soap": HYPERS},
    "radial": {"radial": RADIAL},
    "lode": {"lode": LODE},
    "far": FAR,
    "near": {"parts": NEAR},
    "parts": {"parts": {**NEAR, "long": FAR}},
}
MADE = {kind: descriptor(section, SPECIES) for kind, section in SECTIONS.items()}
KINDS = {"carbon": SOAPS[(6,)], **MADE}
OPEN, SLAB = (False, False, False), (True, False, True)


@dataclass
class Linear:
    """phi(x) = x"""

    soap: Descriptor

    @property
    def raw_widths(self):
        return (self.soap.n_features,) * len(self.soap.species)

    def features(self, species, x):
        return x

    def derivative(self, species, features, tangent, centre):
        return tangent


class Waves:
    """phi(x) = sin(A u), u = x / |x|, with an A of its own shape for each species."""

    def __init__(self, soap):
        self.raw_widths = tuple(3 + 2 * s for s in range(len(soap.species)))
        rng = np.random.default_rng(0)
        self._a = [rng.normal(size=(soap.n_features, width)) for width in self.raw_widths]

    def features(self, species, x):
        return np.sin(x / np.linalg.norm(x, axis=1, keepdims=True) @ self._a[species])

    def derivative(self, species, features, tangent, centre):
        norm = np.linalg.norm(features, axis=1, keepdims=True)
        u = (features / norm)[centre]
        du = (tangent - u * (u * tangent).sum(axis=1, keepdims=True)) / norm[centre]
        return np.cos(u @ self._a[species]) * (du @ self._a[species])


def energy(soap, piece, model):
    """The sum of phi over all centres, one block for each central species."""
    x = soap.compute([piece])
    return np.concatenate(
        [
            model.features(s, x[piece.species == number]).sum(axis=0)
            for s, number in enumerate(soap.species)
        ]
    )


def difference(function, step=1e-4):
    return (function(step) - function(-step)) / (2.0 * step)


def forces_by_hand(soap, piece, model):
    rows = []
    for j in range(len(piece.species)):
        for a in range(3):
            unit = np.zeros_like(piece.position)
            unit[j, a] = 1.0

            def moved(step, unit=unit):
                return energy(soap, replace(piece, position=piece.position + step * unit), model)

            rows.append(-difference(moved))
    return np.array(rows)


def stress_by_hand(soap, piece, model):
    volume = abs(np.linalg.det(piece.cell))
    rows = []
    for a, b in [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]:
        strain = np.zeros((3, 3))
        strain[a, b] += 0.5
        strain[b, a] += 0.5

        def strained(step, strain=strain):
            return energy(soap, turned(piece, np.eye(3) + step * strain), model)

        rows.append(difference(strained) / volume)
    return np.array(rows)


def close(found, expected, tolerance):
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def crowded(species, seed=3):
    """A skew cell so small that atoms see images of themselves and several of the others."""
    piece = random_piece(4, species, seed, density=0.5)
    near = Surroundings([piece], [np.arange(4)], HYPERS["cutoff"]["radius"], SPECIES)
    atom = near.neighbours(0, 1).atom
    assert (np.bincount(atom) > 1).all()
    assert 0 in atom
    return piece


CASES = {
    "cell": lambda species: random_piece(6, species, 1),
    "images": crowded,
    "molecule": lambda species: random_piece(7, species, 2, OPEN),
    "slab": lambda species: random_piece(5, species, 4, SLAB, density=0.2),
}


EVERY = [
    (case, kind)
    for case in CASES
    for kind, made in KINDS.items()
    if np.isfinite(made.cutoff) or case in ("cell", "images")
]


@pytest.mark.parametrize("model", [Linear, Waves])
@pytest.mark.parametrize(("case", "kind"), EVERY)
def test_forces_are_finite_differences(case, kind, model):
    calculator = KINDS[kind]
    piece = CASES[case](calculator.species)
    rows = derivative_rows(calculator, piece, model(calculator), forces=True, stress=False)
    assert rows.stress is None
    close(rows.forces, forces_by_hand(calculator, piece, model(calculator)), 1e-6)


@pytest.mark.parametrize("model", [Linear, Waves])
@pytest.mark.parametrize("kind", ["carbon", "soap", "radial", "near"])
@pytest.mark.parametrize("case", ["cell", "images"])
def test_stress_is_a_finite_difference(case, kind, model):
    calculator = KINDS[kind]
    piece = CASES[case](calculator.species)
    rows = derivative_rows(calculator, piece, model(calculator), forces=False, stress=True)
    assert rows.forces is None
    close(rows.stress, stress_by_hand(calculator, piece, model(calculator)), 1e-6)


def test_a_left_handed_cell_has_the_same_stress():
    piece = CASES["cell"](SPECIES)
    left = replace(piece, cell=piece.cell[[1, 0, 2]])
    one, other = (
        derivative_rows(SOAP, p, Linear(SOAP), forces=False, stress=True) for p in (piece, left)
    )
    close(other.stress, one.stress, 1e-12)


@pytest.mark.parametrize(("case", "kind"), EVERY)
def test_forces_of_all_atoms_add_up_to_nothing(case, kind):
    calculator = KINDS[kind]
    piece, model = CASES[case](calculator.species), Waves(calculator)
    rows = derivative_rows(calculator, piece, model, forces=True, stress=False)
    total = rows.forces.reshape(-1, 3, rows.forces.shape[1]).sum(axis=0)
    assert np.abs(rows.forces).max() > 0.1
    assert np.abs(total).max() < 1e-12 * np.abs(rows.forces).max()


def test_a_supercell_has_the_rows_of_its_cell():
    piece = crowded(SPECIES)
    doubled = replace(
        piece,
        position=np.concatenate([piece.position, piece.position + piece.cell[1]]),
        species=np.tile(piece.species, 2),
        cell=piece.cell * [[1], [2], [1]],
    )
    one, two = (
        derivative_rows(SOAP, p, Waves(SOAP), forces=True, stress=True) for p in (piece, doubled)
    )
    close(two.forces, np.tile(one.forces, (2, 1)), 1e-11)
    close(two.stress, one.stress, 1e-11)


@pytest.mark.parametrize("kind", ["soap", "parts"])
@pytest.mark.parametrize("strip", [1, 2**14])
@pytest.mark.parametrize("centres", [1, 3])
def test_rows_do_not_depend_on_the_memory_allowed(centres, strip, kind, monkeypatch):
    piece, calculator = random_piece(9, SPECIES, 5), MADE[kind]
    wanted = {"forces": True, "stress": calculator.lacks("stress") is None}

    def rows():
        found = derivative_rows(calculator, piece, Waves(calculator), **wanted)
        return np.concatenate([found.forces, found.stress] if wanted["stress"] else [found.forces])

    whole = rows()
    found = calculator.gradients(piece, np.arange(9), **wanted)
    limit = 1 if centres == 1 else centres * found.nbytes(0, 9).max()
    monkeypatch.setattr(gradient_batches, "GRADIENT_NBYTES", limit)
    monkeypatch.setattr(gradients, "STRIP_NBYTES", strip)
    batches = np.diff(list(gradient_batches.gradient_batches(found, 9)))
    assert batches.sum() == 9
    assert centres <= batches[0] < 9
    assert (batches == 1).all() == (centres == 1)
    cut = rows()
    close(cut, whole, 1e-12)
    np.testing.assert_array_equal(rows(), cut)


@pytest.mark.parametrize("kind", MADE)
def test_centres_run_by_run_give_the_same_rows(kind, monkeypatch):
    piece, model = random_piece(9, SPECIES, 5), Linear(MADE[kind])
    whole = derivative_rows(MADE[kind], piece, model, forces=True, stress=False)
    monkeypatch.setattr(gradient_batches, "BATCH", 4)
    cut = derivative_rows(MADE[kind], piece, model, forces=True, stress=False)
    close(cut.forces, whole.forces, 1e-12)


def test_rows_of_parts_are_those_of_each():
    parts = MADE["parts"]
    piece = CASES["cell"](SPECIES)
    whole = derivative_rows(parts, piece, Linear(parts), forces=True, stress=False).forces
    whole = whole.reshape(len(whole), len(SPECIES), -1)
    together, *each = (
        one.gradients(piece, np.arange(6), forces=True, stress=False).nbytes(0, 6)
        for one in (parts, *parts.parts.values())
    )
    np.testing.assert_allclose(together, np.sum(each, axis=0))
    for name, columns in parts.components.items():
        one = parts.parts[name]
        alone = derivative_rows(one, piece, Linear(one), forces=True, stress=False).forces
        close(whole[:, :, columns], alone.reshape(len(alone), len(SPECIES), -1), 1e-12)


def test_what_has_no_derivatives_says_why_and_what_has():
    assert gradient_refusal(MADE["lode"], "forces") is None
    assert gradient_refusal(MADE["near"], "stress") is None
    said = gradient_refusal(MADE["parts"], "stress")
    assert "by strain, and there are none (descriptor.parts.long.lode: featomic diff" in said
    assert "; soap and radial have them" in said


def test_forces_and_stress_together_are_those_alone():
    piece = CASES["cell"](SPECIES)
    both = derivative_rows(SOAP, piece, Linear(SOAP), forces=True, stress=True)
    forces = derivative_rows(SOAP, piece, Linear(SOAP), forces=True, stress=False)
    stress = derivative_rows(SOAP, piece, Linear(SOAP), forces=False, stress=True)
    np.testing.assert_array_equal(both.forces, forces.forces)
    np.testing.assert_array_equal(both.stress, stress.stress)


def test_species_that_are_absent_have_rows_of_zeros():
    piece = CASES["cell"]((6,))
    rows = derivative_rows(SOAP, piece, Linear(SOAP), forces=True, stress=True)
    alone = derivative_rows(SOAPS[(6,)], piece, Linear(SOAPS[(6,)]), forces=True, stress=True)
    block = SOAP.columns_with(6) & ~SOAP.columns_with(1) & ~SOAP.columns_with(8)
    own = np.concatenate([np.zeros_like(block), block, np.zeros_like(block)])
    close(rows.forces[:, own], alone.forces, 1e-12)
    close(rows.stress[:, own], alone.stress, 1e-12)
    assert not rows.forces[:, ~own].any()
    assert not rows.stress[:, ~own].any()


@pytest.mark.parametrize(("case", "kind"), EVERY)
def test_forces_on_some_atoms_are_those_of_all(case, kind):
    calculator = KINDS[kind]
    piece, model = CASES[case](calculator.species), Waves(calculator)
    whole = derivative_rows(calculator, piece, model, forces=True, stress=False).forces
    some = np.array([3, 0])
    cut = replace(piece, centre=some)
    found = derivative_rows(calculator, cut, model, forces=True, stress=False)
    close(found.forces.reshape(2, 3, -1), whole.reshape(-1, 3, whole.shape[1])[some], 1e-12)


def test_an_open_cut_needs_twice_the_cutoff():
    """A chain, longer than the reach of its first atom: what lies beyond changes nothing."""
    rng = np.random.default_rng(0)
    position = np.column_stack([1.3 * np.arange(14), *rng.normal(0, 0.2, (2, 14))])
    species = np.tile(np.array(SPECIES, np.uint8), 5)[:14]
    piece = replace(random_piece(14, SPECIES, 0, OPEN), position=position, species=species)
    whole = derivative_rows(SOAP, piece, Waves(SOAP), forces=True, stress=False).forces[:3]

    def of_cut(reach):
        near = position[:, 0] <= position[0, 0] + reach
        assert 1 < near.sum() < 14
        cut = replace(piece, position=position[near], species=species[near])
        cut = replace(cut, centre=np.array([0]))
        return derivative_rows(SOAP, cut, Waves(SOAP), forces=True, stress=False).forces

    close(of_cut(2 * SOAP.cutoff), whole, 1e-12)
    assert np.abs(of_cut(SOAP.cutoff) - whole).max() > 1e-6 * np.abs(whole).max()


def test_an_atom_alone_feels_nothing():
    piece = random_piece(1, SPECIES, 0, OPEN)
    rows = derivative_rows(SOAP, piece, Linear(SOAP), forces=True, stress=False)
    np.testing.assert_array_equal(rows.forces, np.zeros((3, 3 * SOAP.n_features)))


@pytest.mark.parametrize("pbc", [OPEN, SLAB, (True, True, True)])
def test_only_periodic_structures_have_a_stress(pbc):
    piece = random_piece(3, SPECIES, 0, pbc)
    assert has_stress(piece) == all(pbc)
    if not all(pbc):
        with pytest.raises(InputError, match=rf"periodic in {sum(pbc)} direction"):
            derivative_rows(SOAP, piece, Linear(SOAP), forces=True, stress=True)


@pytest.mark.parametrize("kind", MADE)
def test_what_a_descriptor_refuses_is_refused(kind):
    made = MADE[kind]
    with pytest.raises(InputError, match="14"):
        derivative_rows(made, random_piece(3, [14], 1), Linear(made), forces=True, stress=False)
    if not np.isfinite(made.cutoff):
        piece = random_piece(3, SPECIES, 1, SLAB)
        with pytest.raises(InputError, match="periodic along 2 of its axes; LODE"):
            derivative_rows(made, piece, Linear(made), forces=True, stress=False)


def test_atoms_that_coincide_are_named():
    piece = random_piece(5, SPECIES, 4)
    position = piece.position.copy()
    position[3] = position[1]
    piece = replace(piece, position=position)
    with np.errstate(invalid="ignore"), pytest.raises(InputError, match=r"atom 1 are not finite"):
        derivative_rows(SOAP, piece, Linear(SOAP), forces=True, stress=False)
    with np.errstate(invalid="ignore"), pytest.raises(InputError, match="strain are not finite"):
        derivative_rows(SOAP, piece, Linear(SOAP), forces=False, stress=True)
