"""Prediction rigidities of arrays at hand, with scikit-matter's signatures and conventions.

Change ``from skmatter.metrics import ...`` to ``from dlpr import ...``. Features are
divided by ``s = sqrt(mean |x|^2)`` over the training environments, rows of structures are means,
and ``H = A^T A + alpha 1`` (JCTC23 eq. 12-14 and SI). Since the rigidity of scaled rows is that of
unscaled ones with ``mu = alpha s^2``, nothing is scaled here.

Unlike scikit-matter: a row of zeros has rigidity inf; for alpha = 0 a row that the training data
do not constrain has rigidity 0; an ill-conditioned H is solved by QR of the rows, not through
``A^T A``; float64 throughout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlpr.core.factor import EPS, HeldFactor
from dlpr.core.factorize import Conditioning, factorize, refusal
from dlpr.core.folds import Gram, Triangle
from dlpr.core.rows import FloatArray, row_factor, sum_rows
from dlpr.errors import InputError, JobError, NumericsError

BLOCK_NUMBERS = 2**22
"""Numbers (32 MiB) that are read and solved at a time"""


def local_prediction_rigidity(
    X_train: Sequence[Any], X_test: Sequence[Any], alpha: float
) -> tuple[list[FloatArray], int]:
    """Local prediction rigidity of each test environment, ``1/(x_i^T H^-1 x_i)`` (JCTC23 eq. 11).

    Parameters
    ----------
    X_train, X_test : list of (n_atoms, n_features) arrays
        One array per structure: NumPy, Dask, Zarr or anything else with a shape and slices.
    alpha : float
        Regularizer of the scaled problem, at least 0.

    Returns
    -------
    LPR : list of (n_atoms,) float64
        One array per test structure.
    rank_diff : int
        ``n_features`` minus the number of eigenvalues of H above ``n_features eps`` times the
        largest.

    Raises
    ------
    InputError
        If arrays are empty, ragged in their features, or hold NaN or infinities.
    JobError
        If alpha is negative or not finite.
    NumericsError
        If alpha is so small that double precision gives no digit (then use 0).
    """
    train = _Structures.check(X_train, "X_train")
    test = _Structures.check(X_test, "X_test", train.n_features)
    factor, rank_diff = _fit(train, alpha)
    lpr = np.concatenate([factor.rigidity(features) for features, _ in test.blocks()])
    return test.split(lpr), rank_diff


def componentwise_prediction_rigidity(
    X_train: Sequence[Any], X_test: Sequence[Any], alpha: float, comp_dims: Sequence[int]
) -> tuple[FloatArray, list[FloatArray], int]:
    """Rigidity of each component of the features, of structures and of environments (FD24 sec. 5).

    Every row is set to 0 outside the component and meets the full H.

    Parameters
    ----------
    X_train, X_test, alpha
        As for `local_prediction_rigidity`.
    comp_dims : sequence of int
        Number of features of each component, in order.

    Returns
    -------
    CPR : (n_test_structures, n_components) float64
    LCPR : list of (n_atoms, n_components) float64
        One array per test structure.
    rank_diff : int
        As for `local_prediction_rigidity`.

    Raises
    ------
    InputError, JobError, NumericsError
        As for `local_prediction_rigidity`; JobError also if ``comp_dims`` are not counts that sum
        to the number of features.
    """
    train = _Structures.check(X_train, "X_train")
    test = _Structures.check(X_test, "X_test", train.n_features)
    components = _components(comp_dims, train.n_features)
    full, rank_diff = _fit(train, alpha)
    factors = [full.block(columns) for columns in components]

    def rigidities(rows: FloatArray) -> FloatArray:
        return np.column_stack(
            [
                factor.rigidity(rows[:, columns])
                for factor, columns in zip(factors, components, strict=True)
            ]
        )

    cpr = rigidities(test.mean_rows()[0])
    lcpr = np.concatenate([rigidities(features) for features, _ in test.blocks()])
    return cpr, test.split(lcpr), rank_diff


@dataclass(frozen=True)
class _Structures:
    """A checked list of arrays, read in blocks of environments."""

    name: str
    arrays: list[Any]
    n_atoms: NDArray[np.int64]
    n_features: int

    @classmethod
    def check(cls, arrays: Sequence[Any], name: str, n_features: int | None = None) -> _Structures:
        """Check shapes; ``n_features`` is that of the training set."""
        held = [x if hasattr(x, "shape") else np.asarray(x) for x in arrays]
        if not held:
            raise InputError(f"{name} holds no structure; give one array per structure")
        for index, x in enumerate(held):
            if len(x.shape) != 2:
                raise InputError(
                    f"{name}[{index}] has shape {tuple(x.shape)}; "
                    "each structure needs an array (n_atoms, n_features)"
                )
            if n_features is None:
                n_features = int(x.shape[1])
            if x.shape[1] != n_features:
                raise InputError(
                    f"{name}[{index}] has {x.shape[1]} features where X_train[0] has {n_features}; "
                    "compute all structures with the same descriptor"
                )
            if not x.shape[0] * x.shape[1] > 0:
                raise InputError(
                    f"{name}[{index}] has shape {tuple(x.shape)}: no number, or an unknown number; "
                    "leave it out, or compute its chunk sizes"
                )
        return cls(name, held, np.array([x.shape[0] for x in held]), int(held[0].shape[1]))

    def blocks(self) -> Iterator[tuple[FloatArray, NDArray[np.int64]]]:
        """Yield features (n, n_features), good until the next block, and their structures (n,)."""
        size = min(max(1, BLOCK_NUMBERS // self.n_features), int(self.n_atoms.sum()))
        features = np.empty((size, self.n_features))
        structure = np.empty(size, dtype=np.int64)
        filled = 0
        for index, n_atoms in enumerate(self.n_atoms):
            start = 0
            while start < n_atoms:
                stop = min(int(n_atoms), start + size - filled)
                place = slice(filled, filled + stop - start)
                features[place] = self._read(index, start, stop)
                structure[place] = index
                filled, start = place.stop, stop
                if filled == size:
                    yield features, structure
                    filled = 0
        if filled:
            yield features[:filled], structure[:filled]

    def mean_rows(self) -> tuple[FloatArray, float]:
        """Mean features of each structure (n_structures, n_features), and the sum of all |x|^2."""
        rows = np.zeros((len(self.arrays), self.n_features))
        square_norm = 0.0
        for features, structure in self.blocks():
            first, last = structure[0], structure[-1]
            n_here = int(last - first) + 1
            rows[first : last + 1] += sum_rows(features, structure - first, n_here)
            square_norm += float(np.einsum("ij,ij->", features, features))
        return rows * row_factor(self.n_atoms, "mean")[:, None], square_norm

    def split(self, values: FloatArray) -> list[FloatArray]:
        """Cut an array over environments into one per structure."""
        return np.split(values, np.cumsum(self.n_atoms)[:-1])

    def _read(self, index: int, start: int, stop: int) -> FloatArray:
        try:
            block = np.asarray(self.arrays[index][start:stop], dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise InputError(f"{self.name}[{index}] does not hold real numbers: {error}") from error
        if not np.isfinite(block).all():
            atom, feature = np.argwhere(~np.isfinite(block))[0]
            raise InputError(
                f"{self.name}[{index}] holds {block[atom, feature]} at atom {start + atom}, "
                f"feature {feature}; remove the structure or compute its features again"
            )
        return block


def _components(comp_dims: Sequence[int], n_features: int) -> list[slice]:
    dims = np.asarray(comp_dims)
    counts = dims.ndim == 1 and dims.dtype.kind in "iu" and (dims >= 0).all()
    if not counts or dims.sum() != n_features:
        raise JobError(
            f"comp_dims {np.array2string(dims, separator=', ', threshold=10)} must be counts "
            f"that sum to the number of features, {n_features}"
        )
    edges = np.concatenate([[0], np.cumsum(dims)])
    return [slice(int(start), int(stop)) for start, stop in pairwise(edges)]


def _fit(train: _Structures, alpha: float) -> tuple[HeldFactor, int]:
    """Factorize ``A^T A + alpha s^2 1`` and count its numerically missing ranks."""
    if not 0.0 <= alpha < np.inf:
        raise JobError(f"alpha is {alpha}; it must be 0 or a positive number")
    rows, square_norm = train.mean_rows()
    if square_norm == 0.0:
        raise InputError("all features of X_train are 0: they have no scale")
    factor, conditioning = _factorize_rows(rows, alpha * square_norm / float(train.n_atoms.sum()))
    cutoff = conditioning.n_columns * EPS
    if conditioning.mu > 0.0 and conditioning.condition * cutoff < 0.1:
        return factor, 0
    eigenvalues = factor.eigenvalues()
    return factor, int(np.count_nonzero(eigenvalues <= cutoff * eigenvalues[0]))


def _factorize_rows(rows: FloatArray, mu: float) -> tuple[HeldFactor, Conditioning]:
    """Factorize by Cholesky, or by QR where that would lose digits."""
    n_rows, n_columns = rows.shape
    if mu > 0.0:
        gram = Gram.zeros(n_columns)
        gram.update(rows)
        with suppress(NumericsError):
            factor, conditioning = factorize(gram, mu, n_rows, "cholesky")
            if refusal(conditioning) is None:
                return factor, conditioning
    triangle = Triangle.zeros(n_columns)
    triangle.update(rows)
    return factorize(triangle, mu, n_rows, "qr")
