"""Frames parsed by ASE, one at a time; a very large one in blocks of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dlpr.errors import InputError
from dlpr.structures.index import EXTXYZ, FileIndex
from dlpr.structures.labels import (
    Reading,
    energy_of,
    forces_of,
    map_types,
    raw_numbers_of,
    stress_of,
)

if TYPE_CHECKING:
    from ase import Atoms

BLOCK_ROWS = 50_000
"""Rows of one frame that ASE parses at once: its parser holds a Python object per number."""
_TAIL_NBYTES = 1024


@dataclass(frozen=True)
class Record:
    """One frame as read, in Å and eV, not yet checked."""

    position: NDArray[np.float64]
    """(n_atoms, 3)"""
    number: NDArray[np.int64]
    """(n_atoms,) atomic numbers"""
    cell: NDArray[np.float64]
    """(3, 3)"""
    pbc: NDArray[np.bool_]
    """(3,)"""
    energy: float
    """NaN where absent"""
    force: NDArray[np.float64] | None
    """(n_atoms, 3)"""
    stress: NDArray[np.float64] | None
    """(3, 3)"""
    info: dict[str, Any]
    """the frame's own entries, and the scalars among its calculator's results"""
    keys: frozenset[str]
    """names of all entries: info, per-atom arrays, results"""
    file: str
    frame: int

    @property
    def place(self) -> str:
        """File and frame, as messages name them."""
        return f"{self.file}, frame {self.frame}"


def read_frames(index: FileIndex, frames: Sequence[int], reading: Reading) -> Iterator[Record]:
    """Read frames of one file.

    Parameters
    ----------
    index : FileIndex
    frames : sequence of int
        Frame numbers, usually a run of ``index.selected``; any order.
    reading : Reading

    Yields
    ------
    Record
        One per frame, in the order of ``frames``.

    Raises
    ------
    InputError
        If ASE cannot parse a frame or a label has a wrong shape.
    """
    file = str(index.path)
    if index.format == EXTXYZ:
        with index.data_path.open("rb") as stream:
            for frame in frames:
                place = f"{file}, frame {frame}"
                yield _record(_parse_blocks(stream, index, frame, place), reading, file, frame)
    else:
        for frame, atoms in _read_through_ase(index, frames):
            _correct_lammps(atoms, index, reading, f"{file}, frame {frame}")
            yield _record(iter([atoms]), reading, file, frame)


def _record(blocks: Iterator[Atoms], reading: Reading, file: str, frame: int) -> Record:
    """Put the blocks of one frame together; what belongs to the whole frame is in each of them."""
    place = f"{file}, frame {frame}"
    first = next(blocks)
    position, number, force = [], [], []
    for block in chain([first], blocks):
        position.append(np.asarray(block.positions, np.float64) * reading.length)
        number.append(raw_numbers_of(block, reading))
        force.append(forces_of(block, reading, place))
    known = [rows for rows in force if rows is not None]
    results = first.calc.results if first.calc else {}
    scalars = {key: value for key, value in results.items() if np.ndim(value) == 0}
    return Record(
        position=np.concatenate(position),
        number=map_types(np.concatenate(number), reading, place),
        cell=np.asarray(first.cell.array, np.float64) * reading.length,
        pbc=np.asarray(first.pbc, np.bool_),
        energy=energy_of(first, reading, place),
        force=np.concatenate(known) if known else None,
        stress=stress_of(first, reading, place),
        info={**first.info, **scalars},
        keys=frozenset([*first.info, *first.arrays, *results]),
        file=file,
        frame=frame,
    )


def _parse_blocks(stream: BinaryIO, index: FileIndex, frame: int, place: str) -> Iterator[Atoms]:
    """Parse a frame of extended xyz as one or more frames with the same comment line."""
    start, nbytes = int(index.offset[frame]), int(index.nbytes[frame])
    n_atoms = int(index.n_atoms[frame])
    stream.seek(start)
    if n_atoms <= BLOCK_ROWS:
        yield _parse(stream.read(nbytes), 0, place)
        return
    stream.seek(start + max(0, nbytes - _TAIL_NBYTES))
    last_lines = stream.read(min(nbytes, _TAIL_NBYTES)).splitlines(keepends=True)
    vectors = b"".join(line for line in last_lines if line.lstrip().startswith(b"VEC"))
    stream.seek(start)
    stream.readline()
    comment = stream.readline()
    for first in range(0, n_atoms, BLOCK_ROWS):
        n_rows = min(BLOCK_ROWS, n_atoms - first)
        rows = b"".join(islice(stream, n_rows))
        yield _parse(b"%d\n%b%b%b" % (n_rows, comment, rows, vectors), first, place)


def _parse(text: bytes, first_atom: int, place: str) -> Atoms:
    from ase.io.extxyz import read_xyz  # slow to load

    try:
        atoms: Atoms = next(read_xyz(StringIO(text.decode()), 0))
        return atoms
    except UnicodeDecodeError as error:
        raise InputError(
            f"{place} is not UTF-8 text (byte {error.start} of the frame is {text[error.start]});"
            " copy the file again or convert it with iconv"
        ) from error
    except Exception as error:  # ASE's parser has no exception of its own
        where = _uneven_row(text, first_atom)
        raise InputError(
            f"{place}{where or f': ASE cannot parse it ({type(error).__name__}: {error})'}; correct"
            " the frame or leave it out with an index"
        ) from error


def _uneven_row(text: bytes, first_atom: int) -> str:
    """Name the first row whose columns are not as many as the first row's."""
    rows = text.splitlines()
    n_rows = int(rows[0])
    columns = [len(row.split()) for row in rows[2 : 2 + n_rows]]
    for row, found in enumerate(columns):
        if found != columns[0]:
            return f", atom {first_atom + row}: {found} columns, {columns[0]} in the first row"
    return ""


def _read_through_ase(index: FileIndex, frames: Sequence[int]) -> Iterator[tuple[int, Atoms]]:
    import ase.io  # slow to load

    for run in _runs(frames):
        frame = run.start
        try:
            found = ase.io.iread(
                str(index.data_path),
                index=slice(run.start, run.stop, run.step),
                format=index.format,
                do_not_split_by_at_sign=True,
            )
            for frame, atoms in zip(run, found, strict=True):
                yield frame, atoms
        except Exception as error:  # each of ASE's readers has its own way to fail
            raise InputError(
                f"{index.path}, frame {frame}: ASE cannot read it as {index.format} "
                f"({type(error).__name__}: {error}), though it could when the file was indexed; "
                "run again if the file has changed"
            ) from error


def _runs(frames: Sequence[int]) -> Iterator[range]:
    """Split frame numbers into as few ascending arithmetic runs as they make, in their order."""
    start = 0
    while start < len(frames):
        stop = start + 1
        step = int(frames[stop] - frames[start]) if stop < len(frames) else 1
        while step > 0 and stop < len(frames) and frames[stop] - frames[stop - 1] == step:
            stop += 1
        yield range(int(frames[start]), int(frames[stop - 1]) + 1, max(step, 1))
        start = stop


def _correct_lammps(atoms: Atoms, index: FileIndex, reading: Reading, place: str) -> None:
    """Undo what ASE makes up for LAMMPS files: species from type numbers, an energy of zero."""
    if not index.format.startswith("lammps"):
        return
    if atoms.calc and index.format.startswith("lammps-dump"):
        atoms.calc.results.pop("energy", None)
    types = atoms.arrays.get("type")
    if not reading.types and types is not None and np.array_equal(types, atoms.numbers):
        raise InputError(
            f"{place}: its atoms have type numbers ({', '.join(map(str, np.unique(types)))}) and no"
            " species; say which they are in the job, e.g. type_map: {1: Si, 2: O}"
        )
