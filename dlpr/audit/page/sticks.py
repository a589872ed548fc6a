"""Environments drawn as balls and sticks: places, sizes and colours for the template."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from dlpr.audit.flagged import centre_of
from dlpr.exports.structures import neighbours
from dlpr.structures.frames import Piece

SIZE = 200.0
"""Width and height of a picture."""
MOST_ATOMS = 120
"""Atoms of a picture: of more, the nearest."""
CIVIDIS = (
    *("#00224e", "#1a386f", "#434e6c", "#61656f", "#7d7c78"),
    *("#9b9476", "#bcae6c", "#dec958", "#fee838"),
)
"""Of low and high rigidity: alike for every kind of colour vision (Nunez et al. 2018)."""
_BOND = 1.25
"""Atoms are drawn as bound up to this multiple of the sum of their covalent radii."""
_SMALLEST = 0.7
"""Å that a ball stands for at least: hydrogen would hide behind its letter."""
_FAINTEST = 0.5


@dataclass(frozen=True)
class Ball:
    """An atom."""

    x: float
    y: float
    radius: float
    color: str
    opacity: float
    symbol: str


@dataclass(frozen=True)
class Stick:
    """A bond."""

    x1: float
    y1: float
    x2: float
    y2: float
    opacity: float


@dataclass(frozen=True)
class Sticks:
    """One environment: what is drawn last is nearest."""

    parts: list[Ball | Stick]
    centre: Ball
    n_neighbours: int
    n_bound: int
    """Neighbours that are bound to the flagged atom."""
    cutoff: float
    """Å"""
    has_symbols: bool
    """Whether there are several species to be told apart."""


@dataclass(frozen=True)
class Colors:
    """Colours of rigidities, on a logarithmic scale."""

    low: float
    high: float

    def of(self, lpr: float) -> str:
        """The colour of a rigidity."""
        place = self.part(lpr) * (len(CIVIDIS) - 1)
        below = min(int(place), len(CIVIDIS) - 2)
        return _mixed(CIVIDIS[below], CIVIDIS[below + 1], place - below)

    def part(self, rigidity: float) -> float:
        """Where a rigidity is on the scale, 0 to 1."""
        if not rigidity > 0:
            return 0.0
        span = math.log(self.high / self.low) or 1.0
        part = math.log(rigidity / self.low) / span if rigidity < math.inf else 1.0
        return min(max(part, 0.0), 1.0)


def _mixed(first: str, second: str, part: float) -> str:
    channels = (
        round((1 - part) * int(first[k : k + 2], 16) + part * int(second[k : k + 2], 16))
        for k in (1, 3, 5)
    )
    return "#" + "".join(f"{channel:02x}" for channel in channels)


def colors_of(rigidities: Iterable[ArrayLike]) -> Colors:
    """One scale for the rigidities of all pictures."""
    found = np.concatenate([[], *map(np.asarray, rigidities)])
    found = found[(found > 0) & (found < np.inf)]
    if not len(found):
        return Colors(1.0, 1.0)
    return Colors(float(found.min()), float(found.max()))


def sticks(atoms: Any, colors: Colors) -> Sticks:
    """Place the atoms within the cutoff of a frame's flagged atom.

    Parameters
    ----------
    atoms : Atoms
        Of ``flagged.extxyz``.
    colors : Colors
    """
    centre, cutoff = centre_of(atoms), float(atoms.info["cutoff"])
    numbers = atoms.numbers.astype(np.uint8)
    piece = Piece(atoms.positions, numbers, atoms.cell.array, atoms.pbc)
    near, vector = neighbours(piece, centre, cutoff)
    order = np.argsort(np.linalg.norm(vector, axis=1), kind="stable")[: MOST_ATOMS - 1]
    rows = np.concatenate([[centre], near[order]])
    vectors = np.concatenate([np.zeros((1, 3)), vector[order]])
    bonds = _bonds(numbers[rows], vectors)
    placed = _turned(vectors)
    lpr = atoms.arrays["lpr"][rows]
    scale = 0.5 * SIZE / (np.abs(placed[:, :2]).max(initial=0.5 * cutoff) + 0.8)
    nearness = np.interp(placed[:, 2], [placed[:, 2].min() - 1e-9, placed[:, 2].max()], [0, 1])
    opacity = np.round(_FAINTEST + (1 - _FAINTEST) * nearness, 2)
    x, y = (
        np.round(0.5 * SIZE + scale * placed[:, 0], 1),
        np.round(0.5 * SIZE - scale * placed[:, 1], 1),
    )
    size = np.maximum(covalent_radii[numbers[rows]], _SMALLEST)
    radius = np.round(0.42 * scale * size * (0.75 + 0.5 * nearness), 1)
    balls = [
        Ball(
            x=float(x[k]),
            y=float(y[k]),
            radius=float(radius[k]),
            color=colors.of(float(lpr[k])),
            opacity=1.0 if k == 0 else float(opacity[k]),
            symbol=chemical_symbols[numbers[row]],
        )
        for k, row in enumerate(rows.tolist())
    ]
    lines = [
        Stick(*map(float, (x[i], y[i], x[j], y[j], min(opacity[i], opacity[j])))) for i, j in bonds
    ]
    depth = [*placed[:, 2].tolist(), *(float(placed[[i, j], 2].min()) - 1e-6 for i, j in bonds)]
    parts: list[Ball | Stick] = [*balls, *lines]
    drawn = [parts[k] for k in np.argsort(depth, kind="stable")]
    n_bound = sum(0 in pair for pair in bonds)
    return Sticks(drawn, balls[0], len(near), n_bound, cutoff, len(set(numbers[rows].tolist())) > 1)


def _bonds(numbers: NDArray[np.uint8], vectors: NDArray[np.float64]) -> list[tuple[int, int]]:
    radii = covalent_radii[numbers]
    pairs = cKDTree(vectors).query_pairs(2 * _BOND * float(radii.max()), output_type="ndarray")
    length = np.linalg.norm(vectors[pairs[:, 0]] - vectors[pairs[:, 1]], axis=1)
    bound = pairs[length < _BOND * radii[pairs].sum(axis=1)]
    return [(int(i), int(j)) for i, j in bound[np.lexsort(bound.T[::-1])]]


def _turned(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coordinates in which the nearest neighbours lie as far as may be in the plane of x and y."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    _, _, axes = np.linalg.svd(vectors * np.exp(-length))
    signs = np.sign(axes[np.arange(3), np.abs(axes).argmax(axis=1)])
    turned: NDArray[np.float64] = vectors @ (axes * signs[:, None]).T
    return turned
