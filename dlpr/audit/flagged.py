"""The worst environments as files: extended xyz for OVITO and ASE, and chemiscope's JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dlpr.audit.record import AuditRecord, FlaggedEnvironment
from dlpr.exports import Values, extxyz, lpr_values, opened, write_chemiscope
from dlpr.exports.structures import CHEMISCOPE_ATOMS, SetStructures
from dlpr.handles import Result

FLAGGED = "flagged.extxyz"
CHEMISCOPE = "flagged.json.gz"


def write_flagged(record: AuditRecord, result: Result, folder: Path) -> list[Path]:
    """Write the flagged environments of an audit, in the record's order, a frame for each.

    Parameters
    ----------
    record : AuditRecord
    result : Result
        That was audited.
    folder : Path

    Returns
    -------
    list of Path
        ``flagged.extxyz``, and ``flagged.json.gz`` for chemiscope with the first of them, up to
        100,000 atoms; nothing where nothing is flagged.

    Notes
    -----
    A frame is the whole structure if it has up to 500 atoms, else what is within two cutoffs of the
    environment. Columns ``lpr``, ``prior_ratio``, ``source_atom`` and ``is_flagged``, 1 for the
    flagged atom; the comment has ``set``, ``group``, ``source_file``, ``source_frame``,
    ``flagged_atom`` (in that frame), ``cutoff`` in Å, and ``uncertainty`` in meV and ``flags``
    where there are any. One structure is held at a time, but for those that chemiscope shows.
    """
    if not record.flagged:
        return []
    shown: list[Any] = []
    n_atoms = 0
    with opened(folder / FLAGGED) as file:
        for atoms in _frames(record.flagged, result):
            for text in extxyz(atoms):
                file.write(text.encode())
            n_atoms += len(atoms)
            if n_atoms <= CHEMISCOPE_ATOMS:
                shown.append(atoms)
    if shown:
        _write_chemiscope(folder / CHEMISCOPE, record, shown)
    return [folder / name for name in (FLAGGED, CHEMISCOPE)[: 2 if shown else 1]]


def _frames(flagged: Sequence[FlaggedEnvironment], result: Result) -> Iterator[Any]:
    sets: dict[str, SetStructures] = {}
    for one in flagged:
        if one.set not in sets:
            sets[one.set] = SetStructures(result, one.set)
        of_set = sets[one.set]
        atoms = of_set.environment(of_set.find(one.file, one.frame), one.atom)
        atoms.info |= {
            "set": one.set,
            "source_file": one.file,
            "source_frame": one.frame,
            "flagged_atom": one.atom,
            "cutoff": of_set.cutoff,
        }
        if one.uncertainty is not None:
            atoms.info["uncertainty"] = one.uncertainty
        if one.flags:
            atoms.info["flags"] = ",".join(one.flags)
        yield atoms


def centre_of(atoms: Any) -> int:
    """The row of a frame's flagged atom."""
    return int(np.argmax(atoms.arrays["is_flagged"]))


def _write_chemiscope(path: Path, record: AuditRecord, frames: list[Any]) -> None:
    own = record.flagged[: len(frames)]
    lpr, ratio, sigma = (
        np.array([getattr(one, name) for one in own], np.float64)
        for name in ("lpr", "prior_ratio", "uncertainty")
    )
    what = "LPR over that of the regularizer alone, 1 where the data say nothing"
    values: Values = lpr_values(lpr)
    if np.isfinite(ratio).any():
        values["prior ratio"] = ("atom", ratio, what)
    if np.isfinite(sigma).any():
        values["uncertainty"] = ("atom", sigma, "calibrated, meV/atom")
    words = {name: [getattr(one, name) for one in own] for name in ("set", "group", "file")}
    shown = [(k, centre_of(atoms), atoms.info["cutoff"]) for k, atoms in enumerate(frames)]
    with opened(path) as file:
        write_chemiscope(file, record.title, frames, shown, values, words)
