"""From a fold to a factored Hessian ``H = G^T G + mu 1``, with the accuracy to expect of it.

No inverse and no pseudo-inverse is formed. Sources: JCTC23 eq. 11-14; FD24 eq. 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh, eigvalsh, svd, svdvals
from scipy.linalg.lapack import dpotrf

from dlpr.core.factor import Factor, SpectralFactor, TriangularFactor
from dlpr.core.folds import Gram, Triangle, absorb
from dlpr.core.rows import FloatArray
from dlpr.errors import JobError, NumericsError

EPS = float(np.finfo(np.float64).eps)
SOLVERS = ("cholesky", "qr", "eigh")
GRAM_ERROR = 10.0
"""Relative error of R through ``G^T G``, in units of eps cond(H)"""
TRIANGLE_ERROR = 5.0
"""Relative error of R through triangles, in units of eps sqrt(cond(H))"""
QR_THRESHOLD = 1e-9
"""The automatic solver takes QR where eps cond(H) exceeds this."""


@dataclass(frozen=True)
class Conditioning:
    """How well a Hessian could be factorized.

    Extreme eigenvalues, hence ``condition``, are those of H on all columns, or for mu = 0 on the
    span of the data.
    """

    solver: str
    """"cholesky", "qr" or "eigh" (also what mu = 0 uses)"""
    n_rows: int
    n_columns: int
    rank: int
    """singular values of G above ``rank_rtol`` times the largest"""
    rank_rtol: float
    """max(n_rows, n_columns) eps where triangles were folded, the root of that for a Gram matrix"""
    n_determined: int
    """directions of the weights in which the data outweigh the regularizer"""
    condition: float
    """cond(H), 2-norm"""
    accuracy: float
    """relative error of R to expect"""
    sigma_max: float
    """largest singular value of G"""
    mu: float


def needs_qr(conditioning: Conditioning) -> bool:
    """Whether the automatic solver leaves Cholesky for QR: eps cond(H) > 1e-9."""
    return EPS * conditioning.condition > QR_THRESHOLD


def factorize(
    fold: Gram | Triangle, mu: float, n_rows: int, solver: str
) -> tuple[Factor, Conditioning]:
    """Factorize ``H = fold + mu 1``; the fold stays as it is.

    Parameters
    ----------
    fold : Gram or Triangle
    mu : float
        Regularizer, at least 0. With 0 the factor is spectral whatever the solver, cut at the
        numerical rank.
    n_rows : int
        Number of rows that were folded.
    solver : {"cholesky", "qr", "eigh"}
        "cholesky" takes a Gram matrix, "qr" a triangle, "eigh" either (a triangle by its SVD).

    Raises
    ------
    JobError
        If mu is negative or not finite, or the solver cannot be used with it or with the fold.
    NumericsError
        If the fold holds NaN or infinities, or no digit of a rigidity would be right.
    """
    _check(fold, mu, solver)
    n_columns = len(fold.matrix)
    spectral = solver == "eigh" or mu == 0.0
    noise = max(n_rows, n_columns) * EPS
    if isinstance(fold, Gram):
        noise = float(np.sqrt(noise))
    factor: Factor
    if spectral:
        factor, data, rank = _spectral(fold, mu, n_rows, noise)
    else:
        factor = _cholesky(fold, mu) if isinstance(fold, Gram) else _stack(fold, mu)
        data = spectrum(fold)
        rank = _rank(data, noise)
    largest = float(data[0])
    smallest = float(data[rank - 1]) if rank and (mu == 0.0 or rank == n_columns) else 0.0
    condition = 1.0 if smallest == largest else np.inf
    if smallest + mu > 0.0:
        condition = (largest + mu) / (smallest + mu)
    conditioning = Conditioning(
        solver="eigh" if spectral else solver,
        n_rows=n_rows,
        n_columns=n_columns,
        rank=rank,
        rank_rtol=noise,
        n_determined=int(np.count_nonzero(data[:rank] > mu)),
        condition=condition,
        accuracy=_accuracy(fold, condition),
        sigma_max=float(np.sqrt(largest)),
        mu=mu,
    )
    if conditioning.accuracy >= 1.0:
        raise NumericsError(_no_digits(conditioning, fold))
    return factor, conditioning


def spectrum(fold: Gram | Triangle) -> FloatArray:
    """Eigenvalues (n_columns,) of ``G^T G``, descending."""
    if isinstance(fold, Gram):
        ascending = np.asarray(eigvalsh(fold.matrix, lower=False), np.float64)
        return np.maximum(ascending[::-1], 0.0)
    return np.square(svdvals(fold.matrix))


def _rank(data: FloatArray, noise: float) -> int:
    """Singular values of G above ``noise`` times the largest."""
    return int(np.count_nonzero(data > data[0] * noise**2))


def _check(fold: Gram | Triangle, mu: float, solver: str) -> None:
    if solver not in SOLVERS:
        raise JobError(f"unknown solver {solver!r}; choose one of {', '.join(SOLVERS)}")
    if not 0.0 <= mu < np.inf:
        raise JobError(f"the regularizer mu is {mu}; it must be 0 or a positive number")
    held, needed = ("Gram matrix", "cholesky") if isinstance(fold, Gram) else ("triangle", "qr")
    if solver not in (needed, "eigh"):
        raise JobError(
            f"solver {solver!r} cannot use a {held}; use solver {needed!r} or 'eigh', "
            "or fold the rows again for this solver"
        )
    if mu == 0.0 and solver == "cholesky":
        raise JobError("mu = 0 leaves H singular or nearly so: use solver 'qr' or 'eigh'")
    if not np.isfinite(fold.matrix).all():
        raise NumericsError(
            f"the {held} of the data holds NaN or infinities: "
            "look for features that are not finite or exceed 1e150"
        )


def _cholesky(fold: Gram, mu: float) -> TriangularFactor:
    """Cholesky of ``G^T G + mu 1``."""
    hessian = fold.matrix.copy(order="F")
    hessian[np.diag_indices_from(hessian)] += mu
    scale = float(hessian.diagonal().max())
    triangle, info = dpotrf(hessian, lower=0, clean=1, overwrite_a=1)
    if info:
        raise NumericsError(
            f"Cholesky stopped at column {info} of {len(triangle)}: H is not positive definite in "
            f"double precision (mu {mu:.3g}, largest diagonal element {scale:.3g}, so cond(H) may "
            f"reach {scale / mu:.1e}); use solver: qr"
        )
    return TriangularFactor(triangle)


def _stack(fold: Triangle, mu: float) -> TriangularFactor:
    """R of ``[R_data; sqrt(mu) 1]``."""
    n_columns = len(fold.matrix)
    prior = np.zeros((n_columns, n_columns), order="F")
    np.fill_diagonal(prior, np.sqrt(mu))
    return TriangularFactor(absorb(fold.matrix.copy(order="F"), prior, n_columns))


def _spectral(
    fold: Gram | Triangle, mu: float, n_rows: int, noise: float
) -> tuple[SpectralFactor, FloatArray, int]:
    """Eigenvectors of ``G^T G``: as many as there are rows, for mu = 0 as the rank.

    Returns the factor, the eigenvalues of ``G^T G`` in descending order and the rank of G.
    """
    if isinstance(fold, Gram):
        ascending, vectors = eigh(fold.matrix, lower=False, driver="evd")
        data, basis = np.maximum(ascending[::-1], 0.0), vectors[:, ::-1]
    else:
        sigma, right = svd(fold.matrix, full_matrices=False)[1:]
        data, basis = np.square(sigma), right.T
    rank = _rank(data, noise)
    kept = min(n_rows, len(data)) if mu > 0.0 else rank
    factor = SpectralFactor(np.ascontiguousarray(basis[:, :kept]), data[:kept] + mu, mu)
    return factor, data, rank


def _accuracy(fold: Gram | Triangle, condition: float) -> float:
    if isinstance(fold, Gram):
        return GRAM_ERROR * EPS * condition
    return TRIANGLE_ERROR * EPS * float(np.sqrt(condition))


def _no_digits(conditioning: Conditioning, fold: Gram | Triangle) -> str:
    needed = GRAM_ERROR * EPS if isinstance(fold, Gram) else (TRIANGLE_ERROR * EPS) ** 2
    cure = "use solver: qr" if isinstance(fold, Gram) else "use mu: 0"
    return (
        f"cond(H) is about {conditioning.condition:.1e} with mu {conditioning.mu:.3g} and "
        f"sigma_max(G) {conditioning.sigma_max:.3g}: solver {conditioning.solver} would give no "
        f"correct digit; {cure}, or mu of at least {conditioning.sigma_max**2 * needed * 10:.1e}"
    )
