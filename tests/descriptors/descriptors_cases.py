"""Small structures, and featomic's own answer for them by the plain route through metatensor."""

import warnings
from dataclasses import replace

import featomic
import numpy as np
from ase import Atoms
from metatensor import Labels

from dlpr.structures.frames import Piece

HYPERS = {
    "cutoff": {"radius": 3.0, "smoothing": {"type": "ShiftedCosine", "width": 0.5}},
    "density": {"type": "Gaussian", "width": 0.4},
    "basis": {
        "type": "TensorProduct",
        "max_angular": 3,
        "radial": {"type": "Gto", "max_radial": 2},
    },
}


def random_piece(n_atoms, species, seed, pbc=(True, True, True), density=0.06):
    """A gas on a jittered grid in a skew cell: no two atoms overlap."""
    rng = np.random.default_rng(seed)
    n_side = int(np.ceil(n_atoms ** (1 / 3)))
    cell = np.eye(3) * n_side / density ** (1 / 3) + rng.uniform(-0.3, 0.3, (3, 3))
    grid = np.stack(np.meshgrid(*[np.arange(n_side)] * 3, indexing="ij"), -1).reshape(-1, 3)
    sites = grid[rng.permutation(len(grid))[:n_atoms]] + rng.uniform(-0.25, 0.25, (n_atoms, 3))
    numbers = np.asarray(species, dtype=np.uint8)[rng.integers(0, len(species), n_atoms)]
    return Piece(sites / n_side @ cell, numbers, cell, np.array(pbc))


def featomic_full(pieces, species, hypers=HYPERS):
    """featomic's full layout and its column labels; each piece fully periodic or fully open."""
    calculator = featomic.SoapPowerSpectrum(**hypers)
    systems = [
        Atoms(p.species, p.position, cell=p.cell if p.pbc.all() else None, pbc=p.pbc)
        for p in pieces
    ]
    pairs = [(a, b) for a in species for b in species if a <= b]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = calculator.compute(systems).keys_to_samples("center_type")
        result = result.keys_to_properties(
            Labels(["neighbor_1_type", "neighbor_2_type"], np.array(pairs, dtype=np.int32))
        )
    block = result.block()
    samples = np.array(block.samples.values)
    order = np.lexsort((samples[:, 1], samples[:, 0]))
    return np.array(block.values)[order], np.array(block.properties.values)


def turned(piece, matrix):
    return replace(piece, position=piece.position @ matrix.T, cell=piece.cell @ matrix.T)


RADIAL = {**HYPERS, "basis": {"radial": {"type": "Gto", "max_radial": 3}}}
LODE = {
    "density": {"type": "SmearedPowerLaw", "smearing": 1.0, "exponent": 1},
    "basis": {
        "type": "TensorProduct",
        "max_angular": 2,
        "radial": {"type": "Gto", "max_radial": 2, "radius": 3.0},
    },
}
FAR = {"lode": {**LODE, "exclude": HYPERS["cutoff"]}}


def atoms_of(piece):
    return Atoms(piece.species, piece.position, cell=piece.cell, pbc=piece.pbc)


def in_order(tensor):
    """Values of a TensorMap of one block by system and atom, and its properties."""
    block = tensor.block()
    samples = np.array(block.samples.values)
    order = np.lexsort((samples[:, 1], samples[:, 0]))
    return np.array(block.values)[order], np.array(block.properties.values)
