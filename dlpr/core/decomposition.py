"""Weights, errors and rigidities for many regularizers from one decomposition (JCTC23 SI sec. 2).

The targets ride along as further columns: folds of ``[G, Z]`` with ``Z = [y, composition]`` hold
all that a fit of ``y - composition b`` needs, for every mu and every baseline b. Folded by
triangles they are ``[R, Q^T Z]`` above the triangle of what no weights can fit, so that the fit
works at cond(G), and errors of a fit are sums of squares without cancellation.

All errors are those of the rows as folded: convention and weights of the loss are in them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve, eigh, qr, solve_triangular, svd

from dlpr.core.factor import EPS, SPAN_RTOL, reciprocal
from dlpr.core.folds import Gram, Triangle, absorb
from dlpr.core.rows import FloatArray, square_norm
from dlpr.errors import JobError, NumericsError

TARGET = np.ones(1)
"""The combination of one column of targets: itself"""


def solve_weights(
    fold: Gram | Triangle, n_columns: int, mu: float, mix: FloatArray = TARGET
) -> FloatArray:
    """Weights of one fit, ``argmin |Z mix - G w|^2 + mu |w|^2``.

    A triangle is stacked on ``[sqrt(mu) 1, 0]``, and back substitution gives the weights. With
    ``k = sqrt(cond(H))`` and rho the root of the minimum, their relative error is of the order

        eps (k + k^2 rho/(sigma_max |w|))

    (Higham, Accuracy and Stability of Numerical Algorithms, sec. 20.1). Of a Gram matrix it is
    eps k^2, by Cholesky. Where a `TriangularFactor` is at hand, ``factor.solve(G^T y)`` gives the
    weights, at eps k^2 as well.

    Parameters
    ----------
    fold : Gram or Triangle
        Of rows ``[G, Z]``; stays as it is.
    n_columns : int
        Columns of G.
    mu : float
        Regularizer, positive. `Decomposition` takes 0 as well.
    mix : (k,) float64
        Combination of the columns of Z, ``[1, -b]`` for a baseline b.

    Returns
    -------
    (n_columns,) float64

    Raises
    ------
    JobError
        If mu is not positive and finite.
    NumericsError
        If the fold holds NaN or infinities, or Cholesky breaks down.
    """
    if not 0.0 < mu < np.inf:
        raise JobError(f"the regularizer mu is {mu}; weights of one fit need a positive number")
    _check(fold, n_columns, mix)
    weights: FloatArray
    if isinstance(fold, Triangle):
        prior = np.zeros((n_columns, len(fold.matrix)), order="F")
        np.fill_diagonal(prior, np.sqrt(mu))
        stacked = absorb(fold.matrix.copy(order="F"), prior, n_columns)[:n_columns]
        weights = solve_triangular(stacked[:, :n_columns], stacked[:, n_columns:] @ mix)
        return weights
    hessian = fold.matrix[:n_columns, :n_columns].copy(order="F")
    hessian[np.diag_indices_from(hessian)] += mu
    try:
        factor = cho_factor(hessian, lower=False, overwrite_a=True)
    except LinAlgError as error:
        raise NumericsError(
            f"Cholesky of {n_columns} columns with mu {mu:.3g} broke down: H is not positive "
            "definite in double precision; fold the rows by triangles (solver: qr)"
        ) from error
    weights = cho_solve(factor, fold.matrix[:n_columns, n_columns:] @ mix)
    return weights


@dataclass(frozen=True)
class Decomposition:
    """``G = U diag(sigma) V^T`` and ``y = U target + (what no weights can fit)``."""

    basis: FloatArray
    """(n_columns, r) V, orthonormal columns"""
    sigma: FloatArray
    """(r,) singular values of G in descending order"""
    target: FloatArray
    """(r,) U^T y"""
    rest: float
    """square of what no weights can fit, ``|y|^2 - |U^T y|^2``"""
    rank: int
    """singular values that mu = 0 takes into account"""
    n: float
    """rows, or the sum of their weights: by which a sum of squared errors is divided"""

    @classmethod
    def of_triangle(
        cls, triangle: FloatArray, projection: FloatArray, rest: float, n: float
    ) -> Self:
        """Decompose ``[R, Q^T y]``, in some 20 D^3 operations.

        Parameters
        ----------
        triangle : (n_columns, n_columns) float64
            R with ``R^T R = G^T G``.
        projection : (n_columns,) float64
            ``Q^T y`` of ``G = Q R``.
        rest : float
            ``|y|^2 - |Q^T y|^2``.
        n : float
        """
        left, sigma, right = svd(triangle)
        noise = max(n, len(triangle)) * EPS
        return cls(right.T, sigma, left.T @ projection, rest, _above(sigma, noise), n)

    @classmethod
    def of_gram(cls, gram: FloatArray, product: FloatArray, square: float, n: float) -> Self:
        """Decompose ``G^T G``, in some 9 D^3 operations.

        Eigenvalues count as eps of the largest at least, which is what they are known to: weights
        are as good as Cholesky's. The square of a fit's error is known to some
        eps ``(|y| + sigma_max |w|)^2``.

        Parameters
        ----------
        gram : (n_columns, n_columns) float64
            ``G^T G``; only the upper triangle is read.
        product : (n_columns,) float64
            ``G^T y``.
        square : float
            ``y^T y``.
        n : float
        """
        ascending, vectors = eigh(gram, lower=False, driver="evd")
        value, basis = ascending[::-1], vectors[:, ::-1]
        top = max(float(value[0]), 0.0)
        sigma = np.sqrt(np.maximum(value, EPS * top))
        target = np.zeros_like(sigma)
        np.divide(basis.T @ product, sigma, out=target, where=sigma > 0.0)
        rest = max(square - float(target @ target), 0.0)
        rank = int(np.count_nonzero(value > max(n, len(gram)) * EPS * top))
        return cls(basis, sigma, target, rest, rank, n)

    @classmethod
    def of_rows(cls, rows: FloatArray, y: FloatArray, n: float) -> Self:
        """Decompose fewer rows (r, n_columns) than columns, in some 6 r^2 D operations.

        ``G^T = Q R``, and the singular value decomposition of R gives V in the span of the rows.

        Raises
        ------
        JobError
            If there are more rows than columns.
        NumericsError
            If rows hold NaN or infinities.
        """
        if len(rows) > rows.shape[1]:
            raise JobError(
                f"the dual form needs at most as many rows as columns, and there are {len(rows)} "
                f"rows of {rows.shape[1]}: fold them"
            )
        if not np.isfinite(rows).all():
            raise NumericsError(
                "the rows of the data hold NaN or infinities: look for such features"
            )
        q, triangle = qr(rows.T, mode="economic")
        left, sigma, right = svd(triangle)
        noise = rows.shape[1] * EPS
        return cls(q @ left, sigma, right @ y, 0.0, _above(sigma, noise), n)

    @classmethod
    def of_fold(
        cls, fold: Gram | Triangle, n_columns: int, n: float, mix: FloatArray = TARGET
    ) -> Self:
        """Decompose the fold of rows ``[G, Z]``; see `solve_weights` for the parameters.

        Raises
        ------
        NumericsError
            If the fold holds NaN or infinities.
        """
        _check(fold, n_columns, mix)
        own, others = slice(n_columns), slice(n_columns, None)
        matrix = fold.matrix[own, own]
        mixed = fold.matrix[own, others] @ mix
        corner = fold.matrix[others, others]
        if isinstance(fold, Triangle):
            return cls.of_triangle(matrix, mixed, float(np.square(corner @ mix).sum()), n)
        symmetric = np.triu(corner) + np.triu(corner, 1).T
        return cls.of_gram(matrix, mixed, float(mix @ symmetric @ mix), n)

    def weights(self, mu: FloatArray) -> FloatArray:
        """Weights (n_columns, n_mu) of every mu; for mu = 0 the shortest of all best ones."""
        return self.basis @ (self.target[:, None] * self.sigma[:, None] * self._inverse(mu))

    def rmse(self, mu: FloatArray) -> FloatArray:
        """Root of the mean squared training error (n_mu,), ``rest + |mu H^-1 U^T y|^2``."""
        inverse = self._inverse(mu)
        missed = np.where(inverse > 0.0, mu * inverse, 1.0)
        square = self.rest + np.square(self.target[:, None] * missed).sum(axis=0)
        rmse: FloatArray = np.sqrt(square / self.n)
        return rmse

    def rigidity(self, rows: FloatArray, mu: FloatArray) -> FloatArray:
        """Rigidities (n, n_mu) of rows (n, n_columns), in 2 n r (D + n_mu) operations.

        Where V does not span all columns, the norm of what lies outside costs another 2 n r D.
        For mu = 0 a row that the data do not constrain has rigidity 0, as in `SpectralFactor`.
        """
        projection = rows @ self.basis
        squares = np.square(projection)
        outside = np.zeros(len(rows))
        if self.basis.shape[1] < self.basis.shape[0]:
            outside = square_norm(rows - projection @ self.basis.T)
        variance = squares @ self._inverse(mu)
        regular = mu > 0.0
        variance[:, regular] += outside[:, None] / mu[regular]
        rigidity = reciprocal(variance)
        lost = outside + squares[:, self.rank :].sum(axis=1)
        free = lost > SPAN_RTOL**2 * square_norm(rows)
        rigidity[np.ix_(free, ~regular)] = 0.0
        return rigidity

    def _inverse(self, mu: FloatArray) -> FloatArray:
        """``1/(sigma^2 + mu)`` (r, n_mu); for mu = 0 it is 0 beyond the rank."""
        if not ((mu >= 0.0) & (mu < np.inf)).all():
            raise JobError(f"regularizers must be 0 or positive numbers, and they are {mu}")
        shifted = np.square(self.sigma)[:, None] + mu
        shifted[self.rank :, mu == 0.0] = np.inf
        inverse: FloatArray = 1.0 / shifted
        return inverse


@dataclass(frozen=True)
class Scan:
    """What one decomposition says for each of many regularizers."""

    mu: FloatArray
    """(n_mu,)"""
    weights: FloatArray
    """(n_columns, n_mu)"""
    train_rmse: FloatArray
    """(n_mu,)"""
    validation_rmse: FloatArray | None = None
    """(n_mu,) None before `validated`"""

    def validated(self, square_error: FloatArray, n: float) -> Self:
        """Add validation errors.

        Parameters
        ----------
        square_error : (n_mu,) float64
            Sums of squared errors of these weights, see `square_error`.
        n : float
            Validation rows, or the sum of their weights.
        """
        return replace(self, validation_rmse=np.sqrt(square_error / n))

    def best(self) -> int:
        """Return the place in ``mu`` of the least validation error, of equal ones the largest mu.

        Raises
        ------
        JobError
            If there are no validation errors.
        NumericsError
            If none of them is a number.
        """
        if self.validation_rmse is None:
            raise JobError("no regularizer is the best one without a validation set: name one")
        known = self.validation_rmse[np.isfinite(self.validation_rmse)]
        if not len(known):
            raise NumericsError(
                f"none of {len(self.mu)} regularizers has an error of the validation set that is a "
                "number: look for energies, forces or features there that exceed 1e150"
            )
        least = np.flatnonzero(self.validation_rmse == known.min())
        return int(least[np.argmax(self.mu[least])])

    def at_edge(self) -> bool:
        """Whether the best mu is the smallest or largest one, and a wider scan may find better."""
        best = self.mu[self.best()]
        return bool(best in (self.mu.min(), self.mu.max()))


def scan(decomposition: Decomposition, mu: FloatArray) -> Scan:
    """Fit with every regularizer of mu (n_mu,)."""
    return Scan(mu, decomposition.weights(mu), decomposition.rmse(mu))


def square_error(rows: FloatArray, y: FloatArray, weights: FloatArray) -> FloatArray:
    """Sums of squared errors (n_mu,) of rows (n, n_columns) with targets y (n,)."""
    return square_norm((rows @ weights - y[:, None]).T)


def _above(sigma: FloatArray, noise: float) -> int:
    return int(np.count_nonzero(sigma > noise * sigma[0])) if len(sigma) else 0


def _check(fold: Gram | Triangle, n_columns: int, mix: FloatArray) -> None:
    if len(fold.matrix) != n_columns + len(mix):
        raise ValueError(
            f"a fold of {len(fold.matrix)} columns is not of {n_columns} features and "
            f"{len(mix)} columns of targets"
        )
    if not np.isfinite(fold.matrix).all():
        raise NumericsError(
            "the fold of the data holds NaN or infinities: look for features or targets that are "
            "not finite or exceed 1e150"
        )
