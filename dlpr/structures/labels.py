"""How a job reads labels, units and species, and what one ASE frame holds of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.data import atomic_numbers
from numpy.typing import NDArray

from dlpr.errors import InputError, JobError
from dlpr.structures.spatial import cell_volume
from dlpr.units import ENERGY_UNITS, LENGTH_UNITS

if TYPE_CHECKING:
    from ase import Atoms

LABELS = ("energy", "forces", "stress", "virial")
_VOIGT = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])
"""Places of xx, yy, zz, yz, xz, xy in the full matrix."""
_Mapping = Mapping[Any, Any]


@dataclass(frozen=True)
class Reading:
    """What a job says about its files. Make it with `reading`."""

    keys: Mapping[str, str] = field(default_factory=dict)
    """label -> name in info or arrays; a label not named here is taken from ASE's calculator"""
    length: float = 1.0
    """Å per unit of length of the file"""
    energy: float = 1.0
    """eV per unit of energy of the file"""
    types: Mapping[int, int] = field(default_factory=dict)
    """type number -> atomic number; empty: species are as ASE reads them"""


def reading(
    keys: _Mapping = MappingProxyType({}),
    units: _Mapping = MappingProxyType({}),
    type_map: _Mapping = MappingProxyType({}),
) -> Reading:
    """Check what a job says about its files.

    Parameters
    ----------
    keys : mapping
        Names of entries of ``info`` or ``arrays`` for any of energy, forces, stress, virial.
        A virial gives the stress ``-virial / volume``.
    units : mapping
        ``length`` and ``energy``: keys of the tables in `dlpr.units`, such as ``bohr``,
        ``Hartree``, ``kcal/mol``. Everything read is converted, ASE's own results too.
    type_map : mapping
        Species symbol of each type number. It applies to the array ``type`` of a frame or,
        without one, to its atomic numbers.

    Raises
    ------
    JobError
        For an unknown label, unit or species, with the nearest known one.
    """
    for label in keys:
        _known(label, LABELS, "keys")
    if "stress" in keys and "virial" in keys:
        raise JobError("keys: both stress and virial are named; name one of them")
    for quantity in units:
        _known(quantity, ("length", "energy"), "units")
    types: dict[int, int] = {}
    for number, symbol in type_map.items():
        if not str(number).isdigit():
            raise JobError(f"type_map: '{number}' is no type number; write e.g. {{1: Si, 2: O}}")
        types[int(number)] = atomic_numbers[_known(symbol, tuple(atomic_numbers)[1:], "type_map")]
    return Reading(
        keys={str(label): str(name) for label, name in keys.items()},
        length=LENGTH_UNITS[
            _known(units.get("length", "angstrom"), tuple(LENGTH_UNITS), "units: length")
        ],
        energy=ENERGY_UNITS[
            _known(units.get("energy", "eV"), tuple(ENERGY_UNITS), "units: energy")
        ],
        types=types,
    )


def _known(name: object, names: tuple[str, ...], where: str) -> str:
    if isinstance(name, str) and name in names:
        return name
    close = get_close_matches(str(name), names, n=1, cutoff=0.4)
    hint = f"nearest: '{close[0]}'" if close else f"known: {', '.join(names[:20])}"
    raise JobError(f"{where}: '{name}' is not known; {hint}; correct it in the job")


def find_entry(atoms: Atoms, name: str) -> Any:
    """Look an entry up in the calculator's results, ``info`` and ``arrays``; None if absent."""
    for place in (atoms.calc.results if atoms.calc else {}, atoms.info, atoms.arrays):
        if place.get(name) is not None:
            return place[name]
    return None


def find_label(atoms: Atoms, label: str, reading: Reading) -> Any:
    """Look a label up under the name the job gives it, or ASE's; None if absent."""
    name = reading.keys.get(label)
    if name is not None:
        return find_entry(atoms, name)
    results = atoms.calc.results if atoms.calc else {}
    return None if label == "virial" else results.get(label)


def energy_of(atoms: Atoms, reading: Reading, place: str) -> float:
    """Total energy in eV, NaN where absent."""
    value = _array(find_label(atoms, "energy", reading), "energy", reading, place)
    if value is None:
        return float("nan")
    if value.size != 1:
        raise _wrong_shape("energy", reading, place, value.shape, "one number")
    return float(value.reshape(())) * reading.energy


def forces_of(atoms: Atoms, reading: Reading, place: str) -> NDArray[np.float64] | None:
    """Forces in eV/Å, shape (n_atoms, 3)."""
    value = _array(find_label(atoms, "forces", reading), "forces", reading, place)
    if value is None:
        return None
    if value.shape != (len(atoms), 3):
        raise _wrong_shape("forces", reading, place, value.shape, f"({len(atoms)}, 3)")
    return value * (reading.energy / reading.length)


def stress_of(atoms: Atoms, reading: Reading, place: str) -> NDArray[np.float64] | None:
    """Stress in eV/Å³, shape (3, 3), tension positive.

    A virial of a frame without volume gives none.
    """
    label = "virial" if "virial" in reading.keys else "stress"
    value = _array(find_label(atoms, label, reading), label, reading, place)
    if value is None:
        return None
    if value.shape == (6,):
        value = value[_VOIGT]
    elif value.shape in ((9,), (3, 3)):
        value = value.reshape(3, 3)
    else:
        raise _wrong_shape(label, reading, place, value.shape, "6 (Voigt) or 9 numbers")
    if label == "stress":
        return value * (reading.energy / reading.length**3)
    volume = float(cell_volume(atoms.cell.array)) * reading.length**3
    return None if volume == 0.0 else -value * (reading.energy / volume)


def raw_numbers_of(atoms: Atoms, reading: Reading) -> NDArray[np.int64]:
    """What names the species of each atom: the array ``type`` if the job maps types, else Z."""
    types = atoms.arrays.get("type") if reading.types else None
    return np.asarray(atoms.numbers if types is None else types, np.int64)


def map_types(number: NDArray[np.int64], reading: Reading, place: str) -> NDArray[np.int64]:
    """Turn type numbers into atomic numbers, where the job has a type_map."""
    if not reading.types:
        return number
    kinds, inverse = np.unique(number, return_inverse=True)
    for kind in kinds:
        if int(kind) not in reading.types:
            raise InputError(
                f"{place}, atom {int(np.argmax(number == kind))}: type {kind} is not in type_map "
                f"(types {', '.join(map(str, reading.types))}); add it to the job's type_map"
            )
    return np.array([reading.types[int(kind)] for kind in kinds], np.int64)[inverse]


def _array(value: Any, label: str, reading: Reading, place: str) -> NDArray[np.float64] | None:
    if value is None:
        return None
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        name = reading.keys.get(label, label)
        raise InputError(
            f"{place}, key '{name}': numbers are needed for the {label}, '{str(value)[:40]}' was "
            "found; correct the file or name another key under keys"
        ) from error


def _wrong_shape(
    label: str, reading: Reading, place: str, shape: tuple[int, ...], needed: str
) -> InputError:
    name = reading.keys.get(label, label)
    return InputError(
        f"{place}, key '{name}': the {label} has shape {shape}, needed: {needed}; correct the file "
        "or name another key under keys"
    )
