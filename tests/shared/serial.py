"""A plain serial evaluation: featomic on whole frames in its full layout, NumPy QR, no dlpr."""

from __future__ import annotations

from typing import Any

import ase
import featomic
import numpy as np
import scipy.linalg
from metatensor import Labels
from numpy.typing import NDArray

Rows = NDArray[np.float64]


def boxed(atoms: ase.Atoms, cutoff: float) -> ase.Atoms:
    """A slab in a periodic box of its own, with vacuum of more than a cutoff."""
    if atoms.pbc.all() or not atoms.pbc.any():
        return atoms
    atoms = atoms.copy()
    (axis,) = np.flatnonzero(~atoms.pbc)
    assert np.allclose(atoms.cell[axis], np.diag(atoms.cell.array)[axis] * np.eye(3)[axis])
    cell = atoms.cell.array.copy()
    cell[axis, axis] = np.ptp(atoms.positions[:, axis]) + 2 * cutoff + 1
    return ase.Atoms(atoms.numbers, positions=atoms.positions, cell=cell, pbc=True)


def features(frames: list[ase.Atoms], soap: dict[str, Any], species: list[int]) -> list[Rows]:
    """SOAP rows of every frame, featomic's own columns."""
    calculator = featomic.SoapPowerSpectrum(**soap)
    pairs = [(a, b) for a in species for b in species if a <= b]
    keys = Labels(["neighbor_1_type", "neighbor_2_type"], np.array(pairs, np.int32))
    found = []
    for atoms in frames:
        tensor = calculator.compute([boxed(atoms, soap["cutoff"]["radius"])])
        tensor = tensor.keys_to_samples("center_type").keys_to_properties(keys)
        block = tensor.block()
        order = np.argsort(np.asarray(block.samples.values)[:, 1], kind="stable")
        found.append(np.asarray(block.values)[order])
    return found


def in_blocks(rows: Rows, numbers: NDArray[Any], species: list[int]) -> Rows:
    """Rows with a block of columns for every central species."""
    wide = np.zeros((len(rows), len(species), rows.shape[1]))
    wide[np.arange(len(rows)), np.searchsorted(species, numbers)] = rows
    return wide.reshape(len(rows), -1)


def rigidities(
    train: list[ase.Atoms],
    test: list[ase.Atoms],
    soap: dict[str, Any],
    alpha: float,
) -> Rows:
    """LPR of all test environments: mean rows, rms scale, weights for every central species."""
    species = sorted({int(z) for atoms in [*train, *test] for z in atoms.numbers})
    x_train = features(train, soap, species)
    square = sum(float((x**2).sum()) for x in x_train) / sum(map(len, x_train))
    rows = [
        in_blocks(x, atoms.numbers, species).mean(axis=0)
        for x, atoms in zip(x_train, train, strict=True)
    ]
    stacked = np.vstack([rows, np.sqrt(alpha * square) * np.eye(len(rows[0]))])
    triangle = scipy.linalg.qr(stacked, mode="r", overwrite_a=True)[0][: stacked.shape[1]]
    found = []
    for atoms in test:
        x = features([atoms], soap, species)[0]
        for start in range(0, len(x), 4096):
            part = slice(start, start + 4096)
            wide = in_blocks(x[part], atoms.numbers[part], species)
            solved = scipy.linalg.solve_triangular(triangle, wide.T, trans="T", overwrite_b=True)
            found.append(1 / np.einsum("ij,ij->j", solved, solved))
    return np.concatenate(found)
