"""Sizes and times as people write them, and the units of structure files in Å and eV."""

from __future__ import annotations

import math
import re

_DECIMAL = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "PB": 10**15}
_BINARY = {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40, "PIB": 2**50}
_BYTES = {"": 1, **_DECIMAL, **_BINARY}
_SECONDS = {"": 1, "s": 1, "min": 60, "h": 3600, "d": 86400}
_TIME = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*([a-z]*)\s*")
_SIZE = re.compile(r"\s*([0-9]*\.?[0-9]+|[0-9]+\.)(?:[eE]([+]?[0-9]+))?\s*([A-Za-z]*)\s*")

_AVOGADRO_E = 6.02214076e23 * 1.602176634e-19  # eV per particle -> J/mol, exact since 2019

LENGTH_UNITS = {"angstrom": 1.0, "nm": 10.0, "bohr": 0.529177210903}
"""Å per unit of length (CODATA 2018)."""

ENERGY_UNITS = {
    "eV": 1.0,
    "meV": 1e-3,
    "hartree": 27.211386245988,
    "rydberg": 13.605693122994,
    "kcal/mol": 4184.0 / _AVOGADRO_E,
    "kJ/mol": 1000.0 / _AVOGADRO_E,
}
"""eV per unit of energy (CODATA 2018)."""


def parse_bytes(value: object) -> int:
    """Number of bytes meant by ``value``.

    Parameters
    ----------
    value
        A number of bytes, or text: ``"4GiB"``, ``"4 GB"``, ``"1.5e3 MB"``, ``"4096"``. ``kB MB GB
        TB PB`` are powers of 1000, ``KiB MiB GiB TiB PiB`` of 1024, in upper or lower case. A bare
        ``G`` is refused: programs disagree about it.

    Raises
    ------
    ValueError
        If it is not a finite number of at least one byte in a known unit.
    """
    message = f"found {value!r}; needs a size of at least one byte, such as 4GiB, 512 MB or 4096"
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        if match is None or match[3].upper() not in _BYTES:
            raise ValueError(message)
        number, unit = float(f"{match[1]}e{match[2] or 0}"), _BYTES[match[3].upper()]
        # whole numbers stay exact beyond 2**53
        size = int(match[1]) * unit if match[1].isdigit() and not match[2] else number * unit
    elif isinstance(value, int | float) and not isinstance(value, bool):
        size = value
    else:
        raise ValueError(message)
    if not (math.isfinite(size) and size >= 1):
        raise ValueError(message)
    return round(size)


def format_bytes(n_bytes: float) -> str:
    """``n_bytes`` in the largest binary unit that leaves at least 1: ``"4.0 GiB"``, ``"17 B"``."""
    if abs(n_bytes) < 1024:
        return f"{n_bytes:.0f} B"
    size = float(n_bytes)
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        size /= 1024
        if abs(size) < 1023.95 or unit == "PiB":
            break
    return f"{size:.1f} {unit}"


def parse_seconds(value: object) -> int:
    """Whole seconds meant by ``value``: a number, or text such as ``"90"``, ``"30min"``, ``"2 h"``.

    Raises
    ------
    ValueError
        If it is not a time of at least 0 in s, min, h or d.
    """
    match = _TIME.fullmatch(str(value))
    if isinstance(value, bool) or match is None or match[2] not in _SECONDS:
        raise ValueError(f"found {value!r}; needs a time such as 90, 30min or 2h")
    return round(float(match[1]) * _SECONDS[match[2]])
