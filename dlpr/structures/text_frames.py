"""Scans of text formats that find frames and wrong atom counts without parsing an atom."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dlpr.errors import InputError
from dlpr.structures.files import open_bytes

_LONGEST_LINE = 16 << 20
_MOST_DIGITS = 15
_NEWLINE = ord("\n")


class ExtxyzScan:
    """Byte ranges of the frames of an extended xyz file that is fed block by block.

    Only count lines are looked at; the comment and the atoms are skipped by counting newlines.

    Parameters
    ----------
    path : Path
        The file, for messages; it is read again to say more about a fault.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset: list[int] = []
        self._nbytes: list[int] = []
        self._n_atoms: list[int] = []
        self._line: list[int] = []
        self._rest = b""  # an unfinished line
        self._start = 0  # offset of _rest in the file
        self._lines_read = 0
        self._skip = 0  # lines of the last frame still to come

    def feed(self, block: bytes) -> None:
        """Scan the next block of the file."""
        buffer = self._rest + block
        if b"\0" in block or (len(buffer) > _LONGEST_LINE and b"\n" not in buffer):
            raise InputError(
                f"{self._path} is not text (near byte {self._start}), but its name is that of an "
                "xyz file; copy it again or rename it with the suffix of its format"
            )
        ends = np.flatnonzero(np.frombuffer(buffer, np.uint8) == _NEWLINE)
        begin, at = 0, 0
        while at < len(ends):
            if self._skip:
                n_lines = min(self._skip, len(ends) - at)
                at += n_lines
                begin = int(ends[at - 1]) + 1
                self._skip -= n_lines
                self._lines_read += n_lines
                self._nbytes[-1] = self._start + begin - self._offset[-1]
            else:
                end = int(ends[at])
                self._start_frame(buffer[begin:end], begin, end + 1)
                at += 1
                begin = end + 1
        self._rest = buffer[begin:]
        self._start += begin

    def _start_frame(self, text: bytes, begin: int, end: int) -> None:
        self._lines_read += 1
        stripped = text.strip()
        if not stripped:
            return
        if stripped.startswith(b"VEC") and self._offset:  # cell vectors as ADF writes them
            self._nbytes[-1] = self._start + end - self._offset[-1]
            return
        if not stripped.isdigit() or len(stripped) > _MOST_DIGITS:
            raise self._fault(stripped)
        self._offset.append(self._start + begin)
        self._nbytes.append(end - begin)
        self._n_atoms.append(int(stripped))
        self._line.append(self._lines_read)
        self._skip = self._n_atoms[-1] + 1

    def finish(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Close the scan at the end of the file.

        Returns
        -------
        offset, nbytes, n_atoms : (n_frames,) int64

        Raises
        ------
        InputError
            If the last frame is not whole or there is no frame.
        """
        if self._rest:  # the last line has no newline
            size = self._start + len(self._rest)
            self.feed(b"\n")
            if self._nbytes:
                self._nbytes[-1] = min(self._nbytes[-1], size - self._offset[-1])
        if not self._offset:
            raise InputError(f"{self._path} holds only blank lines; take it out of the job")
        if self._skip:
            needed, number = self._n_atoms[-1], len(self._offset) - 1
            raise InputError(
                f"{self._path}, frame {number} (line {self._line[-1]}) says {needed} atoms, but "
                f"the file ends after {max(0, needed - self._skip)} of them: it is cut off, or the "
                "count is wrong; copy the file again or correct that line"
            )
        return np.array(self._offset), np.array(self._nbytes), np.array(self._n_atoms)

    def _fault(self, text: bytes) -> InputError:
        """Explain a line that is no count: its frame's own fault, or that of the one before."""
        shown = text[:40].decode("ascii", "replace")
        if not self._offset:
            return InputError(
                f"{self._path}, frame 0 (line {self._lines_read}): a number of atoms is needed "
                f"here, '{shown}' was found: this is no xyz file; rename it with the suffix of its "
                "format or take it out of the job"
            )
        needed, number, line = self._n_atoms[-1], len(self._offset) - 1, self._line[-1]
        found = _count_rows(self._path, self._offset[-1])
        if found != needed:
            return InputError(
                f"{self._path}, frame {number} (line {line}) says {needed} atoms, but {found} rows "
                "of atoms follow; correct that line or the rows"
            )
        return InputError(
            f"{self._path}, frame {number + 1} (line {self._lines_read}): a number of atoms is "
            f"needed here, '{shown}' was found; correct that line"
        )


def _count_rows(path: Path, offset: int) -> int:
    """Count the rows of a frame that look like its first row."""
    with open_bytes(path) as file:
        file.seek(offset)
        file.readline()
        file.readline()
        first = len(file.readline().split())
        if first < 4:
            return 0
        n_rows = 1
        while len(file.readline().split()) == first:
            n_rows += 1
        return n_rows


def check_dump(path: Path, data_path: Path) -> None:
    """Compare the atom counts of a LAMMPS text dump with its rows.

    ASE takes a frame that lacks rows, or has too many, for a frame of another size.

    Raises
    ------
    InputError
        Naming the first frame whose rows are not as many as its count.
    """
    frame, needed, count_line, found = -1, 0, 0, -1
    section = b""

    def check() -> None:
        if frame >= 0 and found != needed:
            raise InputError(
                f"{path}, frame {frame} (line {count_line}) says {needed} atoms, but "
                f"{max(found, 0)} rows of atoms follow: it is cut off, or the count is wrong; copy "
                "the file again or correct it"
            )

    with data_path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.startswith(b"ITEM:"):
                section = line[5:].strip()
                if section.startswith(b"TIMESTEP"):
                    check()
                    frame, needed, count_line, found = frame + 1, 0, number, -1
                elif section.startswith(b"ATOMS"):
                    found = 0
            elif section.startswith(b"ATOMS"):
                found += bool(line.strip())
            elif section.startswith(b"NUMBER OF ATOMS"):
                count_line = number
                needed = int(line) if line.strip().isdigit() else 0
    check()
