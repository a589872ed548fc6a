"""From a fold to a factored Hessian ``H = G^T G + mu 1``, with the accuracy to expect of it.

No inverse and no pseudo-inverse is formed. Sources: JCTC23 eq. 11-14; FD24 eq. 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh, eigvalsh, svd, svdvals
from scipy.linalg.blas import dsyrk
from scipy.linalg.lapack import dpotrf

from dlpr.core.decomposition import Decomposition
from dlpr.core.extremes import extreme_eigenvalues, n_above
from dlpr.core.factor import EPS, RESIDUAL_RTOL, HeldFactor, SpectralFactor, TriangularFactor
from dlpr.core.folds import Gram, Triangle, absorb
from dlpr.core.rows import FloatArray
from dlpr.errors import JobError, NumericsError

SOLVERS = ("cholesky", "qr", "eigh")
GRAM_ERROR = 10.0
"""Relative error of R through ``G^T G``, in units of eps cond(H)"""
TRIANGLE_ERROR = 5.0
"""Relative error of R through triangles, in units of eps sqrt(cond(H))"""
QR_THRESHOLD = 1e-9
"""The automatic solver takes QR where eps cond(H) exceeds this."""
TRUNCATION = 1e-8
"""Directions of less data than this part of mu count as without any: so much may move R."""
FULL_SPECTRUM = 1500
"""Columns above which condition and counts are found without the whole spectrum."""


@dataclass(frozen=True)
class Conditioning:
    """How well a Hessian could be factorized.

    Extreme eigenvalues, hence ``condition``, are those of H on all columns, or for mu = 0 on the
    span of the data.
    """

    solver: str
    """"cholesky", "qr", "eigh" (also what mu = 0 uses) or "dual" (of rows fewer than columns)"""
    n_rows: int
    n_columns: int
    rank: int | None
    """singular values of G above ``rank_rtol`` times the largest; None if unknown: of
    tiles, and beyond `FULL_SPECTRUM` columns of triangles that may lack rank"""
    rank_rtol: float
    """max(n_rows, n_columns) eps where triangles were folded, the root of that for a Gram matrix"""
    n_determined: int | None
    """directions of the weights in which the data outweigh the regularizer; None as for ``rank``"""
    n_kept: int | None
    """directions that a truncated eigenbasis keeps, see `kept_directions`; None as for ``rank``"""
    condition: float
    """cond(H), 2-norm"""
    accuracy: float
    """relative error of R to expect"""
    sigma_max: float
    """largest singular value of G"""
    mu: float


def refusal(conditioning: Conditioning) -> str | None:
    """Say why the automatic solver leaves Cholesky for QR: eps cond(H) > 1e-9."""
    if EPS * conditioning.condition <= QR_THRESHOLD:
        return None
    return (
        f"Cholesky would leave a relative error of {conditioning.accuracy:.1e} "
        f"(condition of the Hessian {conditioning.condition:.1e})"
    )


def storage_error(dtype: str, conditioning: Conditioning) -> float:
    """Relative error of R from features that were rounded on disk.

    Rounding moves G and the rows to predict by at most a part eps of their length: it acts as
    triangles of that precision would.
    """
    if dtype == "float64":
        return 0.0
    eps = float(np.finfo(dtype).eps)
    return TRIANGLE_ERROR * eps * float(np.sqrt(conditioning.condition))


def factorize_automatically(
    fold: Gram | Triangle, mu: float, n_rows: int, n_widest: int
) -> tuple[HeldFactor, Conditioning]:
    """`factorize` as suits the fold: a Gram matrix by Cholesky, a triangle by QR.

    Where a triangle has so few directions of data beside mu that rigidities of rows with
    ``n_widest`` columns are cheaper in their basis, that is the factor. A Gram matrix knows its
    small eigenvalues too badly for that.
    """
    if isinstance(fold, Gram):
        return factorize(fold, mu, n_rows, "cholesky")
    factor, stated = factorize(fold, mu, n_rows, "qr")
    if stated.n_kept is None or not prefers_basis(stated.n_kept, n_widest):
        return factor, stated
    return factorize(fold, mu, n_rows, "eigh")


def factorize(
    fold: Gram | Triangle, mu: float, n_rows: int, solver: str
) -> tuple[HeldFactor, Conditioning]:
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
    through_gram = isinstance(fold, Gram)
    noise = max(n_rows, n_columns) * EPS
    if through_gram:
        noise = float(np.sqrt(noise))
    if solver == "eigh" or mu == 0.0:
        data, basis = _eigenbasis(fold)
        stated, held = _of_spectrum("eigh", n_rows, n_columns, data, mu, noise, through_gram)
        return SpectralFactor(basis[:, :held].copy(), data[:held] + mu, mu), stated
    factor = triangular(fold, mu)
    if n_columns <= FULL_SPECTRUM:
        data = spectrum(fold)
        stated, _ = _of_spectrum(solver, n_rows, n_columns, data, mu, noise, through_gram)
        return factor, stated
    return factor, _of_extremes(fold, factor, solver, n_rows, mu, noise)


def triangular(fold: Gram | Triangle, mu: float) -> TriangularFactor:
    """Factorize ``H = G^T G + mu 1`` with ``mu > 0``, without a word on its condition.

    Raises
    ------
    NumericsError
        If Cholesky of a Gram matrix breaks down.
    """
    return _cholesky(fold, mu) if isinstance(fold, Gram) else _stack(fold, mu)


def factorize_decomposed(rows: Decomposition, mu: float) -> tuple[SpectralFactor, Conditioning]:
    """Factorize ``H = G^T G + mu 1`` of fewer rows than columns, without any H.

    Parameters
    ----------
    rows : Decomposition
        Of rows, see `Decomposition.of_rows`: the accuracy is that of triangles.
    mu : float
        Regularizer, at least 0. With 0 the basis is cut at the numerical rank.

    Raises
    ------
    JobError
        If mu is negative or not finite.
    NumericsError
        If no digit of a rigidity would be right.
    """
    _check_regularizer(mu)
    n_columns, n_rows = rows.basis.shape
    data, noise = np.square(rows.sigma), n_columns * EPS
    stated, held = _of_spectrum("dual", n_rows, n_columns, data, mu, noise, False)
    return SpectralFactor(np.ascontiguousarray(rows.basis[:, :held]), data[:held] + mu, mu), stated


def kept_directions(spectrum: FloatArray, mu: float) -> int:
    """Count the eigenvalues of ``G^T G`` that exceed `TRUNCATION` mu.

    Counting the others as 0 turns ``mu + eigenvalue`` into mu: no rigidity falls by more than the
    part `TRUNCATION`, and none rises.
    """
    return int(np.count_nonzero(spectrum > TRUNCATION * mu))


def prefers_basis(n_kept: int, n_columns: int) -> bool:
    """Whether rigidities are cheaper in a basis of so many directions than by a triangle.

    A row of so many columns costs 2 n_kept n_columns operations, twice that where its residual is
    needed, against n_columns^2 of the triangle, and some more for the factorization.
    """
    return 3 * n_kept < n_columns


def spectrum(fold: Gram | Triangle) -> FloatArray:
    """Eigenvalues (n_columns,) of ``G^T G``, descending."""
    if isinstance(fold, Gram):
        ascending = np.asarray(eigvalsh(fold.matrix, lower=False), np.float64)
        return np.maximum(ascending[::-1], 0.0)
    return np.square(svdvals(fold.matrix))


def state(
    solver: str,
    n_rows: int,
    n_columns: int,
    extremes: tuple[float, float],
    mu: float,
    *,
    through_gram: bool,
    rank_rtol: float,
    counts: tuple[int | None, int | None, int | None] = (None, None, None),
    sigma_max: float | None = None,
    extra_error: float = 0.0,
) -> Conditioning:
    """Put together what is known of a factorization.

    Parameters
    ----------
    extremes : (float, float)
        Largest and smallest eigenvalue of H (mu = 0: on the span of the data).
    counts : tuple
        rank, n_determined, n_kept.
    extra_error : float
        Relative error of R beside that of the factorization.

    Raises
    ------
    NumericsError
        If no digit of a rigidity would be right.
    """
    largest, smallest = extremes
    condition = 1.0 if smallest == largest else np.inf
    if smallest > 0.0:
        condition = largest / smallest
    root = float(np.sqrt(condition))
    error = GRAM_ERROR * EPS * condition if through_gram else TRIANGLE_ERROR * EPS * root
    rank, n_determined, n_kept = counts
    conditioning = Conditioning(
        solver=solver,
        n_rows=n_rows,
        n_columns=n_columns,
        rank=rank,
        rank_rtol=rank_rtol,
        n_determined=n_determined,
        n_kept=n_kept,
        condition=condition,
        accuracy=error + extra_error,
        sigma_max=float(np.sqrt(max(largest - mu, 0.0))) if sigma_max is None else sigma_max,
        mu=mu,
    )
    if error >= 1.0:
        raise NumericsError(_no_digits(conditioning, through_gram))
    return conditioning


def _of_spectrum(
    solver: str,
    n_rows: int,
    n_columns: int,
    data: FloatArray,
    mu: float,
    noise: float,
    through_gram: bool,
) -> tuple[Conditioning, int]:
    """State what the eigenvalues of ``G^T G`` say, and how many of them an eigenbasis holds.

    ``data`` (n,) are in descending order; eigenvalues that must be 0 may be left out.
    """
    top = float(data[0]) if len(data) else 0.0
    rank = int(np.count_nonzero(data > top * noise**2))
    known = rank and (mu == 0.0 or rank == n_columns)
    smallest = float(data[rank - 1]) if known else 0.0
    n_kept = kept_directions(data, mu)
    held = min(n_kept if mu > 0.0 else rank, n_rows)
    extra_error = 0.0
    if solver in ("eigh", "dual") and mu > 0.0 and held < n_columns:
        extra_error = RESIDUAL_RTOL + (TRUNCATION if held < min(n_rows, len(data)) else 0.0)
    stated = state(
        solver,
        n_rows,
        n_columns,
        (top + mu, smallest + mu),
        mu,
        through_gram=through_gram,
        rank_rtol=noise,
        counts=(rank, int(np.count_nonzero(data[:rank] > mu)), n_kept),
        sigma_max=float(np.sqrt(top)),
        extra_error=extra_error,
    )
    return stated, held


def _of_extremes(
    fold: Gram | Triangle,
    factor: TriangularFactor,
    solver: str,
    n_rows: int,
    mu: float,
    noise: float,
) -> Conditioning:
    """State what extreme eigenvalues and counts say, for a few times the cost of the factor.

    A bound nearer to 0 than rounding makes no count: of a Gram matrix never that for the rank.
    """
    n_columns = len(fold.matrix)
    through_gram = isinstance(fold, Gram)
    largest, smallest = extreme_eigenvalues(factor, n_columns, mu)
    bounds = (noise**2 * largest, mu, TRUNCATION * mu)
    square = fold.matrix if through_gram else dsyrk(1.0, fold.matrix, trans=1)
    reliable = n_columns * EPS * largest
    rank, n_determined, n_kept = (
        n_columns
        if smallest > 4.0 * max(mu, bound)
        else n_above(square, bound)
        if bound >= reliable
        else None
        for bound in bounds
    )
    if rank is not None and n_determined is not None:
        n_determined = min(rank, n_determined)
    return state(
        solver,
        n_rows,
        n_columns,
        (largest, smallest),
        mu,
        through_gram=through_gram,
        rank_rtol=noise,
        counts=(rank, n_determined, n_kept),
    )


def _check(fold: Gram | Triangle, mu: float, solver: str) -> None:
    if solver not in SOLVERS:
        raise JobError(f"unknown solver {solver!r}; choose one of {', '.join(SOLVERS)}")
    _check_regularizer(mu)
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


def _check_regularizer(mu: float) -> None:
    if not 0.0 <= mu < np.inf:
        raise JobError(f"the regularizer mu is {mu}; it must be 0 or a positive number")


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


def _eigenbasis(fold: Gram | Triangle) -> tuple[FloatArray, FloatArray]:
    """Eigenvalues of ``G^T G``, descending, and eigenvectors in columns."""
    if isinstance(fold, Gram):
        ascending, vectors = eigh(fold.matrix, lower=False, driver="evd")
        return np.maximum(ascending[::-1], 0.0), vectors[:, ::-1]
    sigma, right = svd(fold.matrix, full_matrices=False)[1:]
    return np.square(sigma), right.T


def _no_digits(conditioning: Conditioning, through_gram: bool) -> str:
    needed = GRAM_ERROR * EPS if through_gram else (TRIANGLE_ERROR * EPS) ** 2
    cure = "use solver: qr" if through_gram else "use mu: 0"
    return (
        f"cond(H) is about {conditioning.condition:.1e} with mu {conditioning.mu:.3g} and "
        f"sigma_max(G) {conditioning.sigma_max:.3g}: solver {conditioning.solver} would give no "
        f"correct digit; {cure}, or mu of at least {conditioning.sigma_max**2 * needed * 10:.1e}"
    )
