"""From records to frames: read, select, check, sort by space, put together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlpr.errors import InputError, JobError
from dlpr.structures.checks import MIN_DISTANCE, check_record, frame_fingerprint
from dlpr.structures.frames import Frames
from dlpr.structures.index import FileIndex
from dlpr.structures.labels import Reading
from dlpr.structures.parse import Record, read_frames
from dlpr.structures.selection import Where, frame_values
from dlpr.structures.spatial import SORTED_FRAME_ATOMS, sort_by_bins

ONE_GROUP = "all"
"""Name of the group of all frames where a job names no group_by."""
NO_GROUP = "none"
"""Name of the group of frames that lack the key of group_by."""


@dataclass(frozen=True)
class Counts:
    """What was met in one run of frames."""

    n_read: int
    n_kept: int
    """frames for which ``where`` holds"""
    keys: dict[str, int]
    """frames, among those read, that have each key of info, arrays or calculator's results"""
    digest: NDArray[np.uint8]
    """(n_kept, 16) equal rows are exact repeats of a frame"""


def collect(
    runs: Iterable[tuple[FileIndex, Sequence[int]]],
    reading: Reading,
    where: Where | None = None,
    group_by: str | None = None,
    min_distance: float = MIN_DISTANCE,
    weight: str | None = None,
) -> tuple[Frames, Counts]:
    """Read, select, check and put together one run of frames.

    Parameters
    ----------
    runs : iterable of (FileIndex, frame numbers)
        Frames of one file each; a file may come more than once.
    reading : Reading
        Names of labels, units and types.
    where : Where, optional
        Frames to take; all without it.
    group_by : str, optional
        Key of info whose value names a frame's group.
    min_distance : float
        Å, see `check_record`.
    weight : str, optional
        Key of info whose value is a frame's weight in the loss.

    Returns
    -------
    Frames
        May hold no structure at all, if ``where`` holds for none.
    Counts

    Raises
    ------
    InputError
        For the first frame that cannot be used.
    JobError
        If ``where`` compares what cannot be compared in a frame.
    """
    keys: Counter[str] = Counter()
    n_read = 0
    kept: list[Record] = []
    for index, numbers in runs:
        for record in read_frames(index, numbers, reading):
            n_read += 1
            keys.update(record.keys)
            if where is None or _holds(where, record):
                check_record(record, min_distance)
                kept.append(record)
    digests = b"".join(frame_fingerprint(record) for record in kept)
    digest = np.frombuffer(digests, np.uint8).reshape(-1, 16)
    return build_frames(kept, group_by, weight), Counts(n_read, len(kept), dict(keys), digest)


def _holds(where: Where, record: Record) -> bool:
    try:
        return where(frame_values(record))
    except JobError as error:
        raise JobError(f"{record.place}: {error}") from error


def build_frames(
    records: Sequence[Record], group_by: str | None = None, weight: str | None = None
) -> Frames:
    """Put checked records together.

    Parameters
    ----------
    records : sequence of Record
    group_by : str, optional
        Key of info whose value names the group; a frame without it is of the group "none". Without
        it, all frames are of the group "all".
    weight : str, optional
        Key of info whose value is the frame's weight in the loss.

    Returns
    -------
    Frames
        Groups and source files are numbered in the order in which they are met; frames of more than
        `SORTED_FRAME_ATOMS` atoms are in the order of `sort_by_bins`.
    """
    n_structures = len(records)
    n_atoms = [len(record.number) for record in records]
    offset = np.concatenate([[0], np.cumsum(n_atoms, dtype=np.int64)]).astype(np.int64)
    total = int(offset[-1])
    position, force = np.empty((total, 3)), np.full((total, 3), np.nan)
    species, source_atom = np.empty(total, np.uint8), np.empty(total, np.int64)
    cell, stress = np.empty((n_structures, 3, 3)), np.full((n_structures, 3, 3), np.nan)
    bin_shape = np.zeros((n_structures, 3), np.int32)
    bin_box, bin_origin = np.zeros((n_structures, 3, 3)), np.zeros((n_structures, 3))
    bin_range = [np.empty((0, 2), np.int64)] * n_structures
    for s, record in enumerate(records):
        order = np.arange(n_atoms[s])
        if n_atoms[s] > SORTED_FRAME_ATOMS:
            order, bin_shape[s], bin_box[s], bin_origin[s], bin_range[s] = sort_by_bins(
                record.position, record.cell, record.pbc
            )
        rows = slice(offset[s], offset[s + 1])
        source_atom[rows] = order
        position[rows] = record.position[order]
        species[rows] = record.number[order]
        cell[s] = record.cell
        if record.force is not None:
            force[rows] = record.force[order]
        if record.stress is not None:
            stress[s] = record.stress
    groups = [_group(record, group_by) for record in records]
    files = [record.file for record in records]
    group_names, source_files = tuple(dict.fromkeys(groups)), tuple(dict.fromkeys(files))
    group_of, file_of = (
        {name: k for k, name in enumerate(names)} for names in (group_names, source_files)
    )
    n_bins = [len(ranges) for ranges in bin_range]
    return Frames(
        position=position,
        species=species,
        source_atom=source_atom,
        force=force,
        structure_offset=offset,
        cell=cell,
        pbc=np.array([record.pbc for record in records], np.bool_).reshape(-1, 3),
        energy=np.array([record.energy for record in records], np.float64),
        stress=stress,
        weight=None if weight is None else np.array([_weight(one, weight) for one in records]),
        group=np.array([group_of[name] for name in groups], np.int32),
        group_names=group_names,
        source_file=np.array([file_of[name] for name in files], np.int32),
        source_files=source_files,
        source_frame=np.array([record.frame for record in records], np.int64),
        bin_shape=bin_shape,
        bin_box=bin_box,
        bin_origin=bin_origin,
        bin_offset=np.concatenate([[0], np.cumsum(n_bins, dtype=np.int64)]).astype(np.int64),
        bin_range=np.concatenate([np.empty((0, 2), np.int64), *bin_range]),
    )


def _group(record: Record, group_by: str | None) -> str:
    if group_by is None:
        return ONE_GROUP
    value = record.info.get(group_by)
    return NO_GROUP if value is None else str(value)


def _weight(record: Record, key: str) -> float:
    """A frame's weight in the loss; NaN where it has none."""
    value = record.info.get(key)
    if value is None:
        return float("nan")
    try:
        found = float("nan") if isinstance(value, (bool, np.bool_)) else float(value)
    except (TypeError, ValueError):
        found = float("nan")
    if not 0.0 <= found < np.inf:
        raise InputError(
            f"{record.place}, key '{key}': a structure's weight is a number >= 0, "
            f"'{str(value)[:40]}' was found; correct the file or name another key as "
            f"loss.structure_weight"
        )
    return found
