"""Coefficients of LODE: featomic's, over all atoms of a periodic cell or without the near ones."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlpr.descriptors.native import blocks_of, entries, featomic, judging, metatensor
from dlpr.descriptors.near_potential import near_tables
from dlpr.errors import InputError, JobError
from dlpr.structures.frames import Piece

Coefficients = dict[int, NDArray[np.float64]]
"""By angular degree l, (n_centres, n_species, 2 l + 1, n_radial)."""
Slopes = dict[tuple[int, int], NDArray[np.float64]]
"""By l and index of a species, (n_centres, 1 + n_atoms, 3, 2 l + 1, n_radial) in 1/Å: what the
coefficients of that species change where the centre itself is moved, and each of its atoms."""

_own = threading.local()


class _Cell(featomic.systems.SystemBase):  # type: ignore[misc]
    """Atoms in a periodic cell, as featomic reads them."""

    def __init__(
        self,
        species: NDArray[np.int32],
        position: NDArray[np.float64],
        cell: NDArray[np.float64],
    ) -> None:
        super().__init__()
        self._species, self._position, self._cell = species, position, cell

    def size(self) -> int:
        return len(self._species)

    def types(self) -> NDArray[np.int32]:
        return self._species

    def positions(self) -> NDArray[np.float64]:
        return self._position

    def cell(self) -> NDArray[np.float64]:
        return self._cell


def wave_cutoff(hypers: dict[str, Any]) -> float:
    """Longest wave vector in 1/Å: the job's, or featomic's default."""
    given = hypers.get("k_cutoff")
    return float(given or 1.2 * math.pi / hypers["density"]["smearing"])


@lru_cache(maxsize=64)
def lode_channels(parameters: str) -> tuple[tuple[int, int], ...]:
    """Have featomic judge hyperparameters, and return its angular channels.

    Parameters
    ----------
    parameters
        JSON of the hyperparameters of ``LodeSphericalExpansion``, and of ``exclude``.

    Returns
    -------
    tuple
        Angular degree l and number of radial functions of each channel, ascending.

    Raises
    ------
    JobError
        With featomic's words where it refuses.
    """
    hypers = json.loads(parameters)
    if hypers.pop("exclude", None) is not None:
        _orbitals(hypers["basis"])
    edge = 4.0 * math.pi / wave_cutoff(hypers)  # long enough for a few waves
    alone = _Cell(np.array([6], np.int32), np.zeros((1, 3)), edge * np.eye(3))
    with judging("lode"):
        found = featomic.LodeSphericalExpansion(**hypers).compute(alone)
    return tuple(
        sorted((int(key["o3_lambda"]), len(block.properties)) for key, block in found.items())
    )


def lode_coefficients(
    parameters: str, piece: Piece, centres: NDArray[np.int64], species: tuple[int, ...]
) -> Coefficients:
    """Expand the potential that all atoms of a cell and their images make around some of them.

    Parameters
    ----------
    parameters
        JSON of hyperparameters that `lode_channels` has accepted.
    piece
        A whole structure, periodic along all axes.
    centres
        Rows of its atoms.
    species
        Atomic numbers of the job, ascending.

    Returns
    -------
    dict
        Coefficients; those of a species that the structure lacks are 0. Those of a centre do not
        depend on the other centres, to the bit.

    Raises
    ------
    InputError
        If featomic refuses the structure.
    """
    coefficients = _no_coefficients(parameters, len(centres), len(species))
    for sign, l_, neighbour, row, block in _blocks(parameters, piece, centres):
        own = coefficients[l_]
        own[row, species.index(neighbour)] += sign * np.asarray(block.values)
    return coefficients


def lode_slopes(
    parameters: str, piece: Piece, centres: NDArray[np.int64], species: tuple[int, ...]
) -> tuple[Coefficients, Slopes]:
    """Differentiate these coefficients by the positions of all atoms.

    Parameters and errors are those of `lode_coefficients`. Slopes are of the species that the
    structure has, atoms in the structure's order; an atom that is the centre itself has the row
    of the centre, and zeros in its own.
    """
    coefficients = _no_coefficients(parameters, len(centres), len(species))
    slopes: Slopes = {}
    place = np.zeros(len(piece.species), np.int64)
    for number in np.unique(piece.species).tolist():
        own = np.flatnonzero(piece.species == number)
        place[own] = 1 + np.arange(len(own))
        for l_, of in coefficients.items():
            shape = (len(centres), 1 + len(own), 3, *of.shape[2:])
            slopes[l_, species.index(number)] = np.zeros(shape)
    for sign, l_, neighbour, row, block in _blocks(parameters, piece, centres, ["positions"]):
        index = species.index(neighbour)
        coefficients[l_][row, index] += sign * np.asarray(block.values)
        gradient = block.gradient("positions")
        sample, _, atom = entries(gradient.samples).T
        at = row[sample], np.where(atom == centres[row[sample]], 0, place[atom])
        slopes[l_, index][at] += sign * np.asarray(gradient.values)
    return coefficients, slopes


def _no_coefficients(parameters: str, n_centres: int, n_species: int) -> Coefficients:
    return {
        l_: np.zeros((n_centres, n_species, 2 * l_ + 1, size))
        for l_, size in lode_channels(parameters)
    }


def _blocks(
    parameters: str, piece: Piece, centres: NDArray[np.int64], gradients: Sequence[str] = ()
) -> Iterator[tuple[float, int, int, NDArray[np.int64], Any]]:
    """featomic's blocks: sign, l, neighbour species, place of each sample's centre, block."""
    system = _Cell(
        piece.species.astype(np.int32),
        np.ascontiguousarray(piece.position),
        np.ascontiguousarray(piece.cell),
    )
    wanted = np.zeros((len(centres), 2), np.int32)
    wanted[:, 1] = centres
    samples = metatensor.Labels(["system", "atom"], wanted)
    row = np.full(len(piece.species), -1)
    row[centres] = np.arange(len(centres))
    try:
        for calculator, sign in _calculators(parameters):
            found = calculator.compute(system, gradients=list(gradients), selected_samples=samples)
            for (l_, _, _, neighbour), block in blocks_of(found):
                yield sign, l_, neighbour, row[entries(block.samples)[:, 1]], block
    except featomic.FeatomicError as error:
        raise InputError(
            f"featomic cannot compute LODE for a structure of {len(row)} atoms: {error}."
            " Correct the structure, or raise descriptor.lode.k_cutoff."
        ) from None
    finally:
        entries(samples)


def _calculators(parameters: str) -> list[tuple[Any, float]]:
    """This thread's calculators and their signs: making one takes time, none is shareable."""
    calculators: dict[str, list[tuple[Any, float]]] = _own.__dict__.setdefault("calculators", {})
    if parameters not in calculators:
        hypers = json.loads(parameters)
        exclude = hypers.pop("exclude", None)
        calculators[parameters] = [(featomic.LodeSphericalExpansion(**hypers), 1.0)]
        if exclude is not None:
            near = json.loads(_near_hypers(json.dumps(hypers), json.dumps(exclude)))
            calculators[parameters].append((featomic.SphericalExpansion(**near), -1.0))
    return calculators[parameters]


@lru_cache(maxsize=8)
def _near_hypers(parameters: str, exclude: str) -> str:
    """Hyperparameters of the spherical expansion of what atoms within a cutoff add, as JSON."""
    hypers, cutoff = json.loads(parameters), json.loads(exclude)
    density = hypers["density"]
    tables = near_tables(density, _orbitals(hypers["basis"]), cutoff["radius"])
    weight = density.get("center_atom_weight", 1.0)
    near = {
        "cutoff": cutoff,
        "density": {"type": "DiracDelta", "center_atom_weight": weight},
        "basis": {"type": "Explicit", "by_angular": tables},
    }
    return json.dumps(near)


def _orbitals(basis: dict[str, Any]) -> dict[int, tuple[int, float]]:
    """Number and radius of the orbitals of each angular degree."""
    if basis["type"] == "TensorProduct":
        radial = dict.fromkeys(range(basis["max_angular"] + 1), basis["radial"])
    else:
        radial = {int(l_): one for l_, one in basis["by_angular"].items()}
    if any(one["type"] != "Gto" for one in radial.values()):
        raise JobError(
            "descriptor.lode.exclude needs radial functions of the type Gto in"
            " descriptor.lode.basis: what near atoms add to tabulated ones is not known. Take Gto,"
            " or leave out exclude."
        )
    return {l_: (one["max_radial"] + 1, one["radius"]) for l_, one in radial.items()}
