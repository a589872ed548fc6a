"""Rows of a model: sums of environments' rows per structure, in blocks of columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array

from dlpr.errors import JobError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.integer]

CONVENTIONS = ("mean", "sum", "sqrt")


@dataclass(frozen=True)
class Layout:
    """The columns of a model in blocks of weights, each as wide as it needs to be."""

    widths: tuple[int, ...]
    """(n_blocks,) columns of each block"""

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return len(self.widths)

    @property
    def n_columns(self) -> int:
        """Columns of the whole model."""
        return sum(self.widths)

    def slice(self, block: int) -> slice:
        """Columns of one block."""
        start = sum(self.widths[:block])
        return slice(start, start + self.widths[block])


STRIP_ROWS = 256
"""Rows that are copied or scaled at a time: few enough for the cache, enough for the BLAS."""


def strips(
    rows: FloatArray | Sequence[FloatArray],
    scale: FloatArray | None = None,
    columns: slice = slice(None),
    size: int = STRIP_ROWS,
) -> Iterator[FloatArray]:
    """Yield rows times their factors, ``size`` at a time, for a BLAS that takes no strides.

    Parameters
    ----------
    rows : (n, n_columns) float, or a sequence of such arrays that lie side by side
        Any strides, read-only or not.
    scale : (n,) float64, optional
        Factor of each row.
    columns : slice
        Which of all columns are wanted.
    size : int

    Yields
    ------
    (<= size, len of columns) float64
        In C order; good until the next one, and not to be written to.
    """
    sides = [rows] if isinstance(rows, np.ndarray) else rows
    places = list(_places(sides, columns))
    n, width = len(sides[0]), sum(side.shape[1] for side, _ in places)
    only = places[0][0] if len(places) == 1 and scale is None else None
    as_they_lie = only is not None and only.flags.c_contiguous and only.dtype == np.float64
    buffer = np.empty((0 if as_they_lie else min(size, n), width))
    for start in range(0, n, size):
        here = slice(start, min(start + size, n))
        if only is not None and as_they_lie:
            yield only[here]
            continue
        strip = buffer[: here.stop - start]
        for side, place in places:
            if scale is None:
                strip[:, place] = side[here]
            else:
                np.multiply(side[here], scale[here, None], out=strip[:, place])
        yield strip


def _places(sides: Sequence[FloatArray], columns: slice) -> Iterator[tuple[FloatArray, slice]]:
    """What of arrays side by side lies in some columns, and where there."""
    first, last, _ = columns.indices(sum(side.shape[1] for side in sides))
    begin = 0
    for side in sides:
        start, stop = max(first, begin), min(last, begin + side.shape[1])
        if start < stop:
            yield side[:, start - begin : stop - begin], slice(start - first, stop - first)
        begin += side.shape[1]


def square_norm(rows: FloatArray) -> FloatArray:
    """``|g|^2`` of each row (n,)."""
    norms: FloatArray = np.einsum("ij,ij->i", rows, rows)
    return norms


def sum_rows(rows: FloatArray, structure: IntArray, n_structures: int) -> FloatArray:
    """Sum the rows of each structure's environments, ``sum_i phi_i`` (JCTC23 eq. 1).

    Environments are added one after the other in the order given, whatever the number of threads.

    Parameters
    ----------
    rows : (n, n_columns) float64
    structure : (n,) int
        Structure of each environment, counted from 0 and best non-decreasing (it keeps one
        output row in cache).
    n_structures : int

    Returns
    -------
    (n_structures, n_columns) float64

    Raises
    ------
    ValueError
        If a structure lies outside its range.
    """
    n = len(rows)
    if n and not 0 <= structure.min() <= structure.max() < n_structures:
        raise ValueError(
            f"structure spans {structure.min()}..{structure.max()}, allowed is "
            f"0..{n_structures - 1}"
        )
    where = (np.ones(n), np.asarray(structure, np.int64), np.arange(n + 1))
    indicator = csc_array(where, shape=(n_structures, n))
    return np.asarray(indicator @ rows)


def row_factor(n_atoms: IntArray, convention: str) -> FloatArray:
    """Return the factor from summed rows to rows of a convention: 1/N, 1 or 1/sqrt(N).

    Parameters
    ----------
    n_atoms : (n_structures,) int
        Atoms of each structure, at least 1.
    convention : {"mean", "sum", "sqrt"}
        The target is an energy per atom (JCTC23 SI, scikit-matter), a total energy, or an energy
        over the root of the number of atoms.

    Returns
    -------
    (n_structures,) float64

    Raises
    ------
    JobError
        If the convention is none of these.
    """
    if convention not in CONVENTIONS:
        raise JobError(
            f"unknown convention {convention!r} for the rows of structures; "
            f"choose one of {', '.join(CONVENTIONS)}"
        )
    n = np.asarray(n_atoms, dtype=np.float64)
    # no power: NumPy's has other bits on other CPUs
    factor: FloatArray = {"mean": 1.0 / n, "sum": np.ones_like(n), "sqrt": 1.0 / np.sqrt(n)}[
        convention
    ]
    return factor
