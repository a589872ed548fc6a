"""Make the demo's structures: ``python -m dlpr.demo.make_data [directory]``, about four minutes.

Everything is computed here, with a Tersoff potential and seeded random numbers: no data set is
downloaded or copied. Repeating it on one machine gives the same bytes; molecular dynamics is
chaotic, so another processor or NumPy may give other, equivalent structures.

``train_base`` holds silicon as a diamond crystal and as four-fold coordinated amorphous networks,
nothing else. ``train_extra`` brings vacancies, interstitials, surfaces and melt-quenched amorphous
silicon with its coordination defects. The ``test_*`` files are independent of both: other runs,
other cell sizes; liquid silicon is in no training file. ``config_type`` names the kind of a frame.
"""

from __future__ import annotations

import argparse
import gzip
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.lattice.cubic import Diamond

from dlpr.demo.tersoff import POTENTIAL, Dynamics, Floats, Ints, all_pairs, coordination, tersoff

log = logging.getLogger(__name__)

SILICON = 5.432  # lattice constant of the potential, Å
VACUUM = 11.0
_AXES_111 = ((1, -1, 0), (1, 1, -2), (1, 1, 1))


def keating(position: Floats, bonded: Ints, length: float) -> tuple[Floats, Floats]:
    """Keating energies (boxes,) and gradients of silicon networks with four bonds per atom.

    P. N. Keating, Phys. Rev. 145, 637 (1966); arrays are (boxes, atoms, 3) and (boxes, atoms, 4).
    """
    n_boxes, n_atoms = position.shape[:2]
    box = np.arange(n_boxes)[:, None, None]
    stretch, bend, square = 2.965, 0.845, 2.352**2
    v = position[box, bonded] - position[:, :, None]
    v -= length * np.round(v / length)
    dot = v @ v.transpose(0, 1, 3, 2)
    diagonal = np.arange(4)
    long = dot[:, :, diagonal, diagonal] - square
    wide = dot + square / 3.0
    wide[:, :, diagonal, diagonal] = 0.0
    energy = 3 / 32 * stretch / square * np.sum(long**2, axis=(1, 2))
    energy += 3 / 16 * bend / square * np.sum(wide**2, axis=(1, 2, 3))
    gradient = 3 / 8 * stretch / square * long[..., None] * v + 3 / 4 * bend / square * (wide @ v)
    target = (bonded + n_atoms * box).ravel()
    other = [
        np.bincount(target, gradient[..., a].ravel(), n_boxes * n_atoms).reshape(n_boxes, n_atoms)
        for a in range(3)
    ]
    return energy, np.stack(other, axis=2) - gradient.sum(axis=2)


def _settle(
    position: Floats, bonded: Ints, length: float, steps: int
) -> tuple[Floats, Floats, Floats]:
    """Some steps of gradient descent with momentum: positions, energies, gradients."""
    move = np.zeros_like(position)
    for _ in range(steps):
        move = 0.85 * move - 0.02 * keating(position, bonded, length)[1]
        position = position + move
    return position, *keating(position, bonded, length)


def _switch_bonds(bonded: Ints, rng: np.random.Generator) -> None:
    """In place: replace bonds a-b and c-d of a chain a-b-c-d by a-c and b-d."""
    while True:
        b = rng.integers(len(bonded))
        c = bonded[b, rng.integers(4)]
        a = bonded[b, rng.integers(4)]
        d = bonded[c, rng.integers(4)]
        if a != c and d != b and a != d and a not in bonded[c] and d not in bonded[b]:
            break
    for atom, old, new in ((a, b, c), (b, a, d), (c, d, a), (d, c, b)):
        bonded[atom, np.flatnonzero(bonded[atom] == old)[0]] = new


def networks(n_boxes: int, rng: np.random.Generator) -> list[Atoms]:
    """Amorphous networks of 64 silicon atoms with four bonds each, by bond switching.

    F. Wooten, K. Winer and D. Weaire, Phys. Rev. Lett. 54, 1392 (1985).
    """
    crystal = bulk("Si", "diamond", a=SILICON * 1.005, cubic=True) * (2, 2, 2)
    length = float(crystal.cell[0, 0])
    _, neighbour, _ = all_pairs(crystal, 2.7)
    bonded: Ints = np.tile(neighbour.reshape(-1, 4), (n_boxes, 1, 1))
    position = np.tile(crystal.positions, (n_boxes, 1, 1))
    position, energy, _ = _settle(
        position + rng.normal(0.0, 0.05, position.shape), bonded, length, 50
    )
    for kt in (*[np.inf] * 10, *np.geomspace(0.6, 0.15, 2000)):
        trial = bonded.copy()
        for box in trial:
            _switch_bonds(box, rng)
        moved, changed, _ = _settle(position, trial, length, 30)
        accept = rng.random(n_boxes) < np.exp(-np.maximum(changed - energy, 0.0) / kt)
        bonded[accept], position[accept] = trial[accept], moved[accept]
        energy = np.where(accept, changed, energy)
    log.info("Keating energies per atom: %s", np.round(energy / 64, 2))
    return [Atoms("Si64", x, cell=crystal.cell, pbc=True) for x in position]


def strained(atoms: Atoms, size: float, shear: float, rng: np.random.Generator) -> Atoms:
    """The frame under a random homogeneous strain: up to ``size`` in volume, ``shear`` in shape."""
    e = rng.uniform(-shear, shear, (3, 3))
    deform = np.eye(3) * (1.0 + rng.uniform(-size, size)) + 0.5 * (e + e.T)
    return Atoms(
        atoms.symbols,
        atoms.positions @ deform,
        cell=atoms.cell[:] @ deform,
        pbc=atoms.pbc,
        info=atoms.info,
    )


def rattled(atoms: Atoms, sigma: float, kind: str, rng: np.random.Generator) -> Atoms:
    """The frame with normal displacements and its ``config_type``."""
    position = atoms.positions + rng.normal(0.0, sigma, atoms.positions.shape)
    info = {"config_type": kind}
    return Atoms(atoms.symbols, position, cell=atoms.cell, pbc=atoms.pbc, info=info)


def crystals(n: int, rng: np.random.Generator) -> list[Atoms]:
    """Strained and rattled diamond crystals of silicon, the cell of every second one small."""
    frames = []
    for k in range(n):
        cell = bulk("Si", "diamond", a=SILICON, cubic=True) * ((2, 2, 2) if k % 2 else (1, 1, 1))
        sigma = rng.uniform(0.02, 0.1)
        frames.append(rattled(strained(cell, 0.03, 0.03, rng), sigma, "crystal", rng))
    return frames


def defects(kind: str, n: int, repeat: tuple[int, int, int], rng: np.random.Generator) -> Atoms:
    """A crystal of silicon with vacancies, divacancies or tetrahedral interstitials, well apart."""
    crystal: Atoms = bulk("Si", "diamond", a=SILICON, cubic=True) * repeat
    position = crystal.positions
    close = np.zeros((len(position), len(position)), dtype=bool)
    i, j, _ = all_pairs(crystal, 5.0)
    close[i, j] = True
    sites: list[int] = []
    while len(sites) < n:
        site = int(rng.integers(len(position)))
        if site not in sites and not close[site, sites].any():
            sites.append(site)
    if kind == "interstitial":  # the crystal has a hole above one sublattice and below the other
        side = np.where(np.array(sites) % 2 == 0, 0.5, -0.5)
        position = np.append(position, position[sites] + side[:, None] * SILICON, axis=0)
    elif kind == "divacancy":
        i, j, _ = all_pairs(crystal, 2.7)
        position = np.delete(position, sites + [int(j[i == site][0]) for site in sites], axis=0)
    else:
        position = np.delete(position, sites, axis=0)
    return Atoms(["Si"] * len(position), position, cell=crystal.cell, pbc=True)


def slab(face: str, size: tuple[int, int, int]) -> Atoms:
    """A slab of silicon, periodic in the plane; atoms of (100) faces are moved to form dimers."""
    axes = ((1, 1, 0), (-1, 1, 0), (0, 0, 1)) if face == "100" else _AXES_111
    crystal = Diamond(directions=axes, size=size, symbol="Si", latticeconstant=SILICON)
    position = crystal.positions.copy()
    height = crystal.cell[2, 2]
    # cut where the gap is widest: for (111) between two double layers
    level = np.unique(np.round(position[:, 2], 3))
    position[:, 2] -= level[1] if level[1] - level[0] > 1.5 else level[0]
    position[:, 2] = np.mod(position[:, 2] + 0.01, height) + VACUUM / 2
    cell = crystal.cell[:] + np.diag([0.0, 0.0, VACUUM])
    atoms = Atoms(crystal.symbols, position, cell=cell, pbc=(True, True, False))
    i, j, shift = all_pairs(atoms, 2.7)
    bond = atoms.positions[j] - atoms.positions[i] + shift
    count = np.bincount(i, minlength=len(atoms))
    height = atoms.positions[:, 2]
    for outermost in (height.min(), height.max()):
        layer = np.flatnonzero((np.abs(height - outermost) < 0.1) & (count == 2))
        if len(layer):  # its dangling bonds lie across its bonds
            axis = int(np.argmin(np.abs(bond[i == layer[0]][0, :2])))
            along = atoms.positions[layer, axis]
            row = np.round((along - along.min()) / (SILICON / np.sqrt(2.0))).astype(int)
            atoms.positions[layer, axis] += np.where(row % 2 == 0, 0.7, -0.7)
    return atoms


def write(path: Path, frames: Sequence[Atoms]) -> None:
    """Write frames as compressed extended XYZ with Tersoff labels of the rounded positions."""
    lines = []
    for frame in frames:
        rounded = Atoms(
            frame.symbols,
            np.round(frame.positions, 4),
            cell=np.round(frame.cell[:], 4),
            pbc=frame.pbc,
        )
        pairs = all_pairs(rounded, POTENTIAL.outer)
        energy, force = tersoff(POTENTIAL, rounded.positions, pairs)
        lattice = " ".join(f"{x:.4f}" for x in rounded.cell[:].ravel())
        periodic = " ".join("T" if flag else "F" for flag in frame.pbc)
        lines.append(str(len(frame)))
        lines.append(
            f'Lattice="{lattice}" Properties=species:S:1:pos:R:3:forces:R:3 '
            f"config_type={frame.info['config_type']} energy={energy.sum():.6f} "
            f'pbc="{periodic}"'
        )
        for symbol, x, f in zip(rounded.symbols, rounded.positions, force, strict=True):
            values = " ".join([*(f"{a:.4f}" for a in x), *(f"{a:.4f}" for a in f)])
            lines.append(f"{symbol} {values}")
    data = gzip.compress("\n".join([*lines, ""]).encode("ascii"), compresslevel=9, mtime=0)
    path.write_bytes(data)
    n_atoms = sum(len(frame) for frame in frames)
    log.info("%s: %d frames, %d atoms, %d bytes", path.name, len(frames), n_atoms, len(data))


def amorphous(rng: np.random.Generator) -> tuple[list[Atoms], list[Atoms]]:
    """Four-fold coordinated amorphous silicon: snapshots of 16 networks, and of 4 others."""
    dynamics = Dynamics(networks(20, rng), rng)
    dynamics.tetrahedral = 0.25
    dynamics.run(600, 600.0, 300.0)
    train: list[Atoms] = []
    test: list[Atoms] = []
    for snapshot, kelvin in enumerate((100.0, 200.0, 300.0, 400.0, 300.0, 500.0, 300.0, 600.0)):
        dynamics.run(250, kelvin)
        for k, frame in enumerate(dynamics.frames("amorphous")):
            if np.any(coordination(frame, 2.85) != 4):
                continue
            if k < 16:
                train.append(strained(frame, 0.02, 0.015, rng))
            elif snapshot % 2 == 0:
                test.append(frame)
    return train, test


def melt_quench(rng: np.random.Generator) -> tuple[list[Atoms], list[Atoms], list[Atoms]]:
    """Quickly quenched silicon: frames of 8 runs, of 4 others, and the liquid on the way."""
    cell = bulk("Si", "diamond", a=SILICON * 1.02, cubic=True) * (2, 2, 2)
    dynamics = Dynamics([rattled(cell, 0.3, "liquid", rng) for _ in range(12)], rng)
    dynamics.run(1200, 5000.0)
    dynamics.run(600, 5000.0, 3000.0)
    dynamics.run(300, 3000.0)
    liquid = dynamics.frames("liquid")[8:]
    dynamics.run(4500, 3000.0, 1500.0)
    dynamics.run(600, 1500.0, 300.0)
    train: list[Atoms] = []
    test: list[Atoms] = []
    for kelvin in (300.0, 500.0, 700.0):
        dynamics.run(300, kelvin)
        frames = dynamics.frames("amorphous_defect")
        train += [strained(frame, 0.02, 0.015, rng) for frame in frames[:8]]
        test += frames[8:]
    return train, test, liquid


def crystal_defects(rng: np.random.Generator) -> tuple[list[Atoms], list[Atoms]]:
    """Point defects: several in 64-site cells, up to 900 K; one in larger cells at 300 K."""
    kinds = {"vacancy": (1, 4, 4), "divacancy": (1, 2, 2), "interstitial": (1, 3, 3, 3)}
    train: list[Atoms] = []
    test: list[Atoms] = []
    for kind, most in kinds.items():
        dynamics = Dynamics([defects(kind, n, (2, 2, 2), rng) for n in most], rng)
        for kelvin in (300.0, 600.0, 900.0):
            dynamics.run(400, kelvin)
            frames = dynamics.frames(kind)
            train += [strained(frame, 0.01, 0.01, rng) for frame in frames]
        other = Dynamics([defects(kind, 1, (3, 2, 2), rng) for _ in range(2)], rng)
        other.run(400, 600.0, 300.0)
        other.run(300, 300.0)
        test += other.frames(kind)
    return train, test


def surfaces(rng: np.random.Generator) -> tuple[list[Atoms], list[Atoms]]:
    """Slabs: small cells of (100) and (111) at several temperatures, and larger ones."""
    train: list[Atoms] = []
    small = [slab("100", (2, 2, 2)), slab("100", (4, 2, 2)), slab("111", (2, 2, 1))]
    dynamics = Dynamics(small, rng)
    for kelvin in (100.0, 300.0, 500.0, 700.0):
        dynamics.run(400, kelvin)
        train += dynamics.frames("surface")
    other = Dynamics([slab("100", (4, 4, 3)), slab("111", (2, 2, 2))], rng)
    other.run(500, 500.0, 100.0)
    other.run(300, 100.0)
    return train, other.frames("surface")


LICENSE = (
    "Made by make_data.py by the dlpr developers, BSD-3-Clause; Tersoff parameters from "
    "Phys. Rev. B 38, 9902 (1988) and 39, 5566 (1989).\n"
)


def make(directory: Path) -> None:
    """Write all files of the demo into ``directory``."""
    directory.mkdir(parents=True, exist_ok=True)
    seeds = iter(np.random.SeedSequence(2023).spawn(8))

    def stream() -> np.random.Generator:
        return np.random.default_rng(next(seeds))

    rng = stream()
    crystal = crystals(60, rng)
    write(directory / "test_crystal.extxyz.gz", crystals(6, rng))
    point_train, point_test = crystal_defects(stream())
    for kind in ("vacancy", "divacancy", "interstitial"):
        chosen = [frame for frame in point_test if frame.info["config_type"] == kind]
        write(directory / f"test_{kind}.extxyz.gz", chosen)
    surface_train, surface_test = surfaces(stream())
    write(directory / "test_surface.extxyz.gz", surface_test)
    quenched_train, quenched_test, liquid = melt_quench(stream())
    write(directory / "test_amorphous_defect.extxyz.gz", quenched_test)
    write(directory / "test_liquid.extxyz.gz", liquid)
    write(directory / "train_extra.extxyz.gz", point_train + surface_train + quenched_train)
    amorphous_train, amorphous_test = amorphous(stream())
    write(directory / "test_amorphous.extxyz.gz", amorphous_test)
    write(directory / "train_base.extxyz.gz", crystal + amorphous_train)
    (directory / "LICENSE").write_text(LICENSE, encoding="ascii")


def main() -> None:
    """Run from the command line."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description="Make the structures of the demo.")
    default = Path(__file__).parent / "data"
    parser.add_argument("directory", type=Path, nargs="?", default=default)
    make(parser.parse_args().directory)


if __name__ == "__main__":
    main()
