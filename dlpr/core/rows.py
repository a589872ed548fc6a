"""Rows of the linear model: sums of environment features per structure, in blocks of columns."""

from __future__ import annotations

from collections.abc import Iterator
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


@dataclass(frozen=True)
class Blocks:
    """Columns of sums over structures: a block of features for each central species."""

    n_features: int
    n_blocks: int

    @property
    def n_columns(self) -> int:
        """All columns, ``n_features * n_blocks``."""
        return self.n_features * self.n_blocks


STRIP_ROWS = 256
"""Rows that are copied or scaled at a time: few enough for the cache, enough for the BLAS."""


def strips(
    rows: FloatArray, scale: FloatArray | None = None, size: int = STRIP_ROWS
) -> Iterator[FloatArray]:
    """Yield rows times their factors, ``size`` at a time, for a BLAS that takes no strides.

    Parameters
    ----------
    rows : (n, n_columns) float
        Any strides, read-only or not.
    scale : (n,) float64, optional
        Factor of each row.
    size : int

    Yields
    ------
    (<= size, n_columns) float64
        In C order; good until the next one, and not to be written to.
    """
    as_they_lie = scale is None and rows.flags.c_contiguous and rows.dtype == np.float64
    buffer = np.empty((0 if as_they_lie else min(size, len(rows)), rows.shape[1]))
    for start in range(0, len(rows), size):
        piece = rows[start : start + size]
        if as_they_lie:
            yield piece
            continue
        strip = buffer[: len(piece)]
        if scale is None:
            strip[:] = piece
        else:
            np.multiply(piece, scale[start : start + size, None], out=strip)
        yield strip


def square_norm(rows: FloatArray) -> FloatArray:
    """``|g|^2`` of each row (n,)."""
    norms: FloatArray = np.einsum("ij,ij->i", rows, rows)
    return norms


def sum_rows(
    features: FloatArray, block: IntArray, structure: IntArray, n_structures: int, blocks: Blocks
) -> FloatArray:
    """Sum the features of each structure's environments, ``sum_i phi_i`` (JCTC23 eq. 1).

    Environments are added one after the other in the order given, whatever the number of threads.

    Parameters
    ----------
    features : (n, n_features) float64
    block : (n,) int
        Block of each environment, ``0 <= block < n_blocks``.
    structure : (n,) int
        Structure of each environment, counted from 0 and best non-decreasing (it keeps one
        output row in cache).
    n_structures : int
    blocks : Blocks

    Returns
    -------
    (n_structures, n_columns) float64

    Raises
    ------
    ValueError
        If a block or a structure lies outside its range.
    """
    for name, index, size in (
        ("structure", structure, n_structures),
        ("block", block, blocks.n_blocks),
    ):
        if len(index) and not 0 <= index.min() <= index.max() < size:
            raise ValueError(f"{name} spans {index.min()}..{index.max()}, allowed is 0..{size - 1}")
    n = len(features)
    target = np.asarray(structure, dtype=np.int64) * blocks.n_blocks + block
    shape = (n_structures * blocks.n_blocks, n)
    indicator = csc_array((np.ones(n), target, np.arange(n + 1)), shape=shape)
    sums = np.asarray(indicator @ features)
    return sums.reshape(n_structures, blocks.n_columns)


def merge_blocks(rows: FloatArray, blocks: Blocks) -> FloatArray:
    """Rows of the model whose species share weights, from rows with a block per species.

    Parameters
    ----------
    rows : (n, n_columns) float64
    blocks : Blocks

    Returns
    -------
    (n, n_features) float64
    """
    merged: FloatArray = rows.reshape(-1, blocks.n_blocks, blocks.n_features).sum(axis=1)
    return merged


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
