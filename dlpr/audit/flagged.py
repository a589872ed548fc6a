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
    ``flagged_atom`` (in that frame), ``cutoff`` in Å, and ``uncertainty`` in meV, ``lpr_ratio`` to
    the baseline's and ``flags`` where there are any. One structure is held at a time, but for those
    that chemiscope shows.
    """
    if not record.flagged:
        return []
    shown: list[Any] = []
    n_atoms = 0
    with opened(folder / FLAGGED) as file:
        for atoms in frames_of(record.flagged, result):
            for text in extxyz(atoms):
                file.write(text.encode())
            n_atoms += len(atoms)
            if n_atoms <= CHEMISCOPE_ATOMS:
                shown.append(atoms)
    if shown:
        own = record.flagged[: len(shown)]
        write_environments(folder / CHEMISCOPE, record.title, own, shown)
    return [folder / name for name in (FLAGGED, CHEMISCOPE)[: 2 if shown else 1]]


def frames_of(flagged: Sequence[FlaggedEnvironment], result: Result) -> Iterator[Any]:
    """A frame for each environment, with its rigidities and where it is from."""
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
        if one.lpr_ratio is not None:
            atoms.info["lpr_ratio"] = one.lpr_ratio
        if one.flags:
            atoms.info["flags"] = ",".join(one.flags)
        yield atoms


def centre_of(atoms: Any) -> int:
    """The row of a frame's flagged atom."""
    return int(np.argmax(atoms.arrays["is_flagged"]))


def write_environments(
    path: Path,
    title: str,
    environments: Sequence[FlaggedEnvironment],
    frames: list[Any],
    more: Values | None = None,
) -> None:
    """Write environments for chemiscope.

    Parameters
    ----------
    path : Path
    title : str
    environments : sequence of FlaggedEnvironment
    frames : list of Atoms
        Of `frames_of`.
    more : dict, optional
        Further properties, which come first.
    """
    lpr, ratio, sigma, change = (
        np.array([getattr(one, name) for one in environments], np.float64)
        for name in ("lpr", "prior_ratio", "uncertainty", "lpr_ratio")
    )
    what = "LPR over that of the regularizer alone, 1 where the data say nothing"
    values: Values = {**(more or {}), **lpr_values(lpr)}
    if np.isfinite(ratio).any():
        values["prior ratio"] = ("atom", ratio, what)
    if np.isfinite(sigma).any():
        values["uncertainty"] = ("atom", sigma, "calibrated, meV/atom")
    if np.isfinite(change).any():
        what = "decimal logarithm of the LPR over that of the baseline"
        values["log10 lpr ratio"] = ("atom", np.log10(change), what)
    words = {
        name: [getattr(one, name) for one in environments] for name in ("set", "group", "file")
    }
    shown = [(k, centre_of(atoms), atoms.info["cutoff"]) for k, atoms in enumerate(frames)]
    with opened(path) as file:
        write_chemiscope(file, title, frames, shown, values, words)
