"""Silicon as Tersoff's potential has it: energies, forces, Langevin dynamics.

The demo's structures are made and labelled with it (`dlpr.demo.make_data`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.neighborlist import neighbor_list
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Pairs = tuple[Ints, Ints, Floats]
"""Central atoms in ascending order, their neighbours, and the lattice shifts of the neighbours."""

BOLTZMANN = 8.617333e-5  # eV/K
FEMTOSECOND = 0.09822695  # in Å sqrt(u/eV)


@dataclass(frozen=True)
class Parameters:
    """One element in Tersoff's notation (eV, Å), and its mass in u."""

    a: float
    b: float
    lam: float
    mu: float
    beta: float
    n: float
    c: float
    d: float
    h: float
    inner: float
    outer: float
    mass: float


# J. Tersoff, Phys. Rev. B 38, 9902 (1988), as in Phys. Rev. B 39, 5566 (1989) (without lambda_3);
# the diamond crystal has -4.63 eV per atom.
POTENTIAL = Parameters(
    a=1830.8,
    b=471.18,
    lam=2.4799,
    mu=1.7322,
    beta=1.1e-6,
    n=0.78734,
    c=1.0039e5,
    d=16.217,
    h=-0.59825,
    inner=2.7,
    outer=3.0,
    mass=28.085,
)


def tersoff(
    p: Parameters, position: Floats, pairs: Pairs, tetrahedral: float = 0.0
) -> tuple[Floats, Floats]:
    """Energies and forces of all atoms at once.

    ``tetrahedral`` (eV) adds the sum over bond pairs of ``(cos + 1/3)^2``: a bias that keeps
    amorphous networks four-fold coordinated while they are made, never used for labels.
    """
    i, j, shift = pairs
    v = position[j] - position[i] + shift
    r = np.sqrt(np.einsum("pa,pa->p", v, v))
    near = r < p.outer
    i, j, v, r = i[near], j[near], v[near], r[near]
    n_atoms = len(position)
    count = np.bincount(i, minlength=n_atoms)
    width = int(count.max())
    slot = np.arange(len(i)) - (np.cumsum(count) - count)[i]
    x = np.pi * np.clip((r - p.inner) / (p.outer - p.inner), 0.0, 1.0)
    cut = 0.5 + 0.5 * np.cos(x)
    d_cut = -0.5 * np.pi / (p.outer - p.inner) * np.sin(x)
    bond = v / r[:, None]
    bonds = np.zeros((n_atoms, width, 3))
    bonds[i, slot] = bond
    cuts = np.zeros((n_atoms, width))
    cuts[i, slot] = cut
    # angles: axes 1 and 2 run over the bonds (j, k) of the central atom
    cos = bonds @ bonds.transpose(0, 2, 1)
    x = p.h - cos
    q = p.d**2 + x * x
    g = 1.0 + p.c**2 / p.d**2 - p.c**2 / q
    dg = -2.0 * p.c**2 * x / q**2
    tilt = cos + 1.0 / 3.0
    diagonal = np.arange(width)
    for angular in (g, dg, tilt):
        angular[:, diagonal, diagonal] = 0.0
    zeta = np.maximum(np.einsum("njk,nk->nj", g, cuts)[i, slot], 1e-12)
    bias = tetrahedral * np.einsum("njk,nk->nj", tilt * tilt, cuts)[i, slot]
    t = (p.beta * zeta) ** p.n
    order = (1.0 + t) ** (-0.5 / p.n)
    d_order = -0.5 * order / (1.0 + t) * t / zeta
    repulsive = p.a * np.exp(-p.lam * r)
    attractive = p.b * np.exp(-p.mu * r)
    energy = 0.5 * cut * (repulsive - order * attractive) + cut * bias
    d_zeta = np.zeros((n_atoms, width))
    d_zeta[i, slot] = -0.5 * cut * attractive * d_order
    d_r = (
        0.5 * d_cut * (repulsive - order * attractive)
        + 0.5 * cut * (p.mu * order * attractive - p.lam * repulsive)
        + d_cut * np.einsum("nj,njk->nk", d_zeta, g)[i, slot]
        + 2.0 * d_cut * bias
    )
    d_cos = d_zeta[:, :, None] * cuts[:, None, :] * dg
    d_cos += 2.0 * tetrahedral * cuts[:, :, None] * cuts[:, None, :] * tilt
    d_bond = ((d_cos + d_cos.transpose(0, 2, 1)) @ bonds)[i, slot]
    along = np.einsum("pa,pa->p", d_bond, bond)
    gradient = d_r[:, None] * bond + (d_bond - along[:, None] * bond) / r[:, None]
    force = [np.bincount(i, w, n_atoms) - np.bincount(j, w, n_atoms) for w in gradient.T]
    total: Floats = np.stack(force, axis=1)
    per_atom: Floats = np.bincount(i, weights=energy, minlength=n_atoms).astype(np.float64)
    return per_atom, total


def all_pairs(atoms: Atoms, cutoff: float) -> Pairs:
    """All pairs of one frame within the cutoff, for any cell."""
    i, j, image = neighbor_list("ijS", atoms, cutoff)  # type: ignore[no-untyped-call]
    return i, j, image @ atoms.cell[:]


def coordination(atoms: Atoms, radius: float) -> Ints:
    """Number of neighbours of every atom within ``radius``."""
    return np.bincount(all_pairs(atoms, radius)[0], minlength=len(atoms))


class Dynamics:
    """Langevin dynamics of several independent boxes, as one set of arrays.

    Boxes are orthorhombic and at least 2 (cutoff + skin) wide along their periodic axes.
    """

    skin = 0.6

    def __init__(self, boxes: Sequence[Atoms], rng: np.random.Generator) -> None:
        self.boxes = list(boxes)
        self.parameters = POTENTIAL
        self.rng = rng
        self.tetrahedral = 0.0
        self.offset = np.cumsum([0, *(len(box) for box in boxes)])
        self.position: Floats = np.concatenate([box.positions for box in boxes])
        self.velocity = np.zeros_like(self.position)
        self._built: Floats | None = None
        self._pairs: Pairs

    def _forces(self) -> Floats:
        if self._built is None or (
            np.max(np.sum((self.position - self._built) ** 2, axis=1)) > (self.skin / 2) ** 2
        ):
            self._built = self.position.copy()
            reach = (self.parameters.outer + self.skin) ** 2
            parts: list[Pairs] = []
            for box, start, stop in zip(self.boxes, self.offset, self.offset[1:], strict=False):
                length = np.where(box.pbc, box.cell.lengths(), np.inf)
                period = np.where(box.pbc, box.cell.lengths(), 0.0)
                x = self.position[start:stop]
                v = x[None] - x[:, None]
                shift = -np.round(v / length) * period
                v += shift
                close = np.einsum("ija,ija->ij", v, v) < reach
                np.fill_diagonal(close, False)
                i, j = np.nonzero(close)
                parts.append((i + start, j + start, shift[i, j]))
            i, j, s = (np.concatenate(part) for part in zip(*parts, strict=True))
            self._pairs = (i, j, s)
        return tersoff(self.parameters, self.position, self._pairs, self.tetrahedral)[1]

    def run(self, steps: int, start: float, stop: float | None = None, dt: float = 2.0) -> None:
        """Advance by ``steps`` of ``dt`` fs while the bath goes from ``start`` to ``stop`` K."""
        h = dt * FEMTOSECOND
        mass = self.parameters.mass
        keep = np.exp(-0.01 * dt)  # friction 1/(100 fs)
        force = self._forces()
        for kelvin in np.linspace(start, start if stop is None else stop, steps):
            self.velocity += 0.5 * h / mass * force
            self.position += 0.5 * h * self.velocity
            kick = self.rng.standard_normal(self.position.shape)
            spread = np.sqrt((1.0 - keep**2) * BOLTZMANN * kelvin / mass)
            self.velocity = keep * self.velocity + spread * kick
            self.position += 0.5 * h * self.velocity
            force = self._forces()
            self.velocity += 0.5 * h / mass * force

    def frames(self, kind: str) -> list[Atoms]:
        """Copies of all boxes as they are now."""
        frames = []
        for box, start, stop in zip(self.boxes, self.offset, self.offset[1:], strict=False):
            period = np.where(box.pbc, box.cell.lengths(), np.inf)
            x = self.position[start:stop]
            x = x - np.floor(x / period) * np.where(box.pbc, period, 0.0)
            info = {"config_type": kind}
            frames.append(Atoms(box.symbols, x, cell=box.cell, pbc=box.pbc, info=info))
        return frames
