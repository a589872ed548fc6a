"""Rows of the linear model: sums of environment features per structure, in blocks of columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array

from dlpr.errors import JobError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.integer]

CONVENTIONS = ("mean", "sum", "sqrt")


@dataclass(frozen=True)
class Blocks:
    """The columns of a model: one block of descriptor features for each kind of weights.

    ``n_blocks`` is the number of central species where each has its own weights (JCTC23 SI,
    GaAs; any kernel) and 1 where all share one set.
    """

    n_features: int
    n_blocks: int

    @property
    def n_columns(self) -> int:
        """Columns of the whole model, ``n_features * n_blocks``."""
        return self.n_features * self.n_blocks

    def slice(self, block: int) -> slice:
        """Columns of one block."""
        return slice(block * self.n_features, (block + 1) * self.n_features)


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
