"""Sparse kernel models as linear ones: features become kernels with references, whitened.

The kernel of two environments is ``k(x, x') = (x.x')^zeta``, optionally of unit vectors ``x/|x|``,
and exactly 0 between different central species. With ``K_MM = V w V^T`` over the references of one
species and ``phi~(x) = w^-1/2 V^T k_M(x)``, JCTC23 eq. 16 is the rigidity of a linear model,

    k_M^T (K_NM^T K_NM + mu K_MM)^-1 k_M = phi~^T (Phi~^T Phi~ + mu 1)^-1 phi~.

zeta is an integer: other powers of a kernel need not be positive semidefinite, nor real where x.x'
is negative.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlpr.core.factor import EPS
from dlpr.core.rows import FloatArray, IntArray, square_norm, strips
from dlpr.errors import InputError, JobError

CUT = 1e-12
"""Eigenvalues of K_MM up to this part of the largest are cut."""
STRIP_ROWS = 512
"""Rows whose kernels are held at a time; part of every numerical plan"""


@dataclass(frozen=True)
class References:
    """Reference environments (active set) of one central species."""

    features: FloatArray
    """(m, n_features) of unit norm if the kernel normalizes"""
    whitening: FloatArray
    """(m, rank) V w^-1/2, eigenvalues in descending order"""
    cut: int
    """eigenvalues of K_MM that were cut, m - rank"""

    @property
    def condition(self) -> float:
        """Largest over smallest eigenvalue of K_MM that is left; 1 where none is.

        Rounding moves the smallest eigenvalue by ``eps condition`` of it, and a rigidity by such
        a part at most, beside the error of the factor.
        """
        inverse = np.square(self.whitening).sum(axis=0)
        return float(inverse[-1] / inverse[0]) if len(inverse) else 1.0


def make_references(features: FloatArray, zeta: int, normalize: bool) -> References:
    """Decompose the kernel matrix of reference environments.

    Parameters
    ----------
    features : (m, n_features) float
        Of environments of one central species; there may be none.
    zeta : int
        Exponent of the kernel, at least 1.
    normalize : bool
        Whether the kernel is that of unit vectors.

    Raises
    ------
    JobError
        If zeta is no positive integer.
    InputError
        If a feature is not finite, a kernel overflows, or a vector that is to have unit norm is
        zero.
    """
    if zeta < 1 or not float(zeta).is_integer():
        raise JobError(f"the kernel's exponent zeta is {zeta}; it must be a positive integer")
    points = np.array(features, dtype=np.float64, order="C")
    _check_references(points, normalize)
    if normalize:
        points = unit_rows(points)
    with np.errstate(over="ignore"):
        kernel = _power(points @ points.T, int(zeta))
    if not np.isfinite(kernel).all():
        largest = float(np.sqrt(square_norm(points).max()))
        raise InputError(
            f"kernels of features as long as {largest:.1e} overflow with zeta {zeta}; "
            "use normalize: true, or divide the features by a number"
        )
    eigenvalue, vectors = np.linalg.eigh(kernel)
    kept = np.flatnonzero(eigenvalue > CUT * eigenvalue.max(initial=0.0))[::-1]
    whitening = np.ascontiguousarray(vectors[:, kept] / np.sqrt(eigenvalue[kept]))
    return References(points, whitening, len(points) - len(kept))


@dataclass(frozen=True)
class Kernel:
    """The map from features to whitened kernels, a block of columns per central species."""

    zeta: int
    """exponent of the kernel"""
    normalize: bool
    """whether the kernel is that of unit vectors"""
    references: tuple[References, ...]
    """of each central species, made with the same zeta and norm"""

    @property
    def widths(self) -> tuple[int, ...]:
        """Columns of each central species' block; 0 where it has no references."""
        return tuple(own.whitening.shape[1] for own in self.references)

    def map(self, species: int, features: FloatArray) -> FloatArray:
        """``phi~(x) = w^-1/2 V^T k_M(x)`` of environments of one central species.

        An environment unlike all references, ``k_M = 0``, has a row of zeros: its rigidity is inf
        by the formula, and all that there is to know of it is its `residual`. So has a zero vector
        that is to be normalized.

        Parameters
        ----------
        species : int
            Central species of all of them.
        features : (n, n_features) float
            Any strides, read-only or not.

        Returns
        -------
        (n, rank) float64
        """
        own = self.references[species]
        mapped = np.empty((len(features), own.whitening.shape[1]))
        for start, strip in zip(
            range(0, len(features), STRIP_ROWS), strips(features, size=STRIP_ROWS), strict=True
        ):
            points = unit_rows(strip) if self.normalize else strip
            kernel = _power(points @ own.features.T, self.zeta)
            np.matmul(kernel, own.whitening, out=mapped[start : start + len(strip)])
        return mapped

    @property
    def components(self) -> tuple[tuple[str, int, int], ...]:
        """None: whitening mixes what parts the features have."""
        return ()

    @property
    def error(self) -> float:
        """Relative error of rigidities that rounding in K_MM leaves, beside that of the factor."""
        return EPS * max(own.condition for own in self.references)

    @property
    def raw_widths(self) -> tuple[int, ...]:
        """Columns of a species' block in derivatives that are not whitened yet."""
        return tuple(len(own.features) for own in self.references)

    def finish(self, species: int, sums: FloatArray) -> FloatArray:
        """Whiten sums (n, raw_widths[species]) of derivatives: (n, widths[species])."""
        finished: FloatArray = sums @ self.references[species].whitening
        return finished

    def derivative(
        self, species: int, features: FloatArray, tangent: FloatArray, centre: IntArray
    ) -> FloatArray:
        """Directional derivatives ``dk_M``, whose sums `finish` whitens.

        With u the vector that enters the kernel, ``dk_M = zeta (u.x_M)^(zeta - 1) (du.x_M)``. Of
        unit vectors ``u = x/|x|``, ``du = (dx - u (u.dx))/|x|``; a zero vector counts as constant.

        Parameters
        ----------
        species : int
            Central species of all environments.
        features : (n, n_features) float
            x
        tangent : (t, n_features) float
            Derivatives dx of an environment's features in some direction.
        centre : (t,) int
            Environment of each tangent; cheapest if tangents of one stand together.

        Returns
        -------
        (t, raw_widths[species]) float64
        """
        references = self.references[species].features
        environment, place = np.unique(centre, return_inverse=True)
        points = np.asarray(features[environment], dtype=np.float64)
        step = np.asarray(tangent, dtype=np.float64)
        if self.normalize:
            norm = np.sqrt(square_norm(points))
            inverse = np.divide(1.0, norm, out=np.zeros_like(norm), where=norm > 0.0)
            points = unit_rows(points)
            along = points[place]
            step = (step - along * np.einsum("ij,ij->i", along, step)[:, None]) * inverse[
                place, None
            ]
        slope: FloatArray = step @ references.T
        if self.zeta > 1:
            slope *= (self.zeta * _power(points @ references.T, self.zeta - 1))[place]
        return slope

    def gradient(self, species: int, features: FloatArray, weights: FloatArray) -> FloatArray:
        """Gradients of ``phi~(x).w``, which is ``sum_M a_M k(x, x_M)`` with ``a = V w^-1/2 w``.

        With u the vector that enters the kernel, ``g = sum_M a_M zeta (u.x_M)^(zeta - 1) x_M``; of
        unit vectors it is ``(g - u (u.g))/|x|``, and 0 for a zero vector.

        Parameters
        ----------
        species : int
            Central species of all environments.
        features : (n, n_features) float
        weights : (rank,) float64

        Returns
        -------
        (n, n_features) float64
        """
        own = self.references[species]
        points = np.asarray(features, dtype=np.float64)
        norm = np.sqrt(square_norm(points))
        if self.normalize:
            points = unit_rows(points)
        slope = np.tile(own.whitening @ weights, (len(points), 1))
        if self.zeta > 1:
            slope *= self.zeta * _power(points @ own.features.T, self.zeta - 1)
        gradient: FloatArray = slope @ own.features
        if self.normalize:
            gradient -= points * np.einsum("ij,ij->i", points, gradient)[:, None]
            gradient *= np.divide(1.0, norm, out=np.zeros_like(norm), where=norm > 0.0)[:, None]
        return gradient

    @property
    def is_sparse(self) -> bool:
        """References do not see all of an environment."""
        return True

    def residual(self, features: FloatArray, mapped: FloatArray) -> FloatArray:
        """Nystroem residual ``k(x, x) - |phi~|^2``: prior variance that the sparse model lacks.

        In units of the weights' prior variance, as is ``mu/R``: the variance of a prediction is
        ``sigma_w^2 (mu/R + residual)`` (JCTC23 eq. 17 and note 1). Never negative. A vector that
        is to be normalized has ``k(x, x) = 1``, a zero vector too: nothing is known of it.

        Parameters
        ----------
        features : (n, n_features) float
        mapped : (n, rank) float64
            What `map` gave for them.

        Returns
        -------
        (n,) float64
            Off by ``eps k(x, x)`` times the references' condition at most.
        """
        known = square_norm(mapped)
        if self.normalize:
            return np.maximum(1.0 - known, 0.0)
        squares = [square_norm(strip) for strip in strips(features, size=STRIP_ROWS)]
        prior = _power(np.concatenate([np.empty(0), *squares]), self.zeta)
        return np.maximum(prior - known, 0.0)

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Plain arrays for a store; `load_kernel` reads them back."""
        arrays: dict[str, NDArray[np.generic]] = {
            "zeta": np.array(self.zeta),
            "normalize": np.array(self.normalize),
            "cut": np.array([own.cut for own in self.references], dtype=np.int64),
        }
        for species, own in enumerate(self.references):
            arrays[f"features_{species}"] = own.features
            arrays[f"whitening_{species}"] = own.whitening
        return arrays


def load_kernel(arrays: Mapping[str, NDArray[np.generic]]) -> Kernel:
    """Rebuild a kernel from what its ``to_arrays`` gave."""
    references = tuple(
        References(
            np.ascontiguousarray(arrays[f"features_{species}"], dtype=np.float64),
            np.ascontiguousarray(arrays[f"whitening_{species}"], dtype=np.float64),
            int(cut),
        )
        for species, cut in enumerate(arrays["cut"])
    )
    return Kernel(int(arrays["zeta"]), bool(arrays["normalize"]), references)


def unit_rows(rows: FloatArray) -> FloatArray:
    """Rows over their norms; rows of zeros stay.

    Without BLAS and in NumPy's pairwise order, which depends on a row alone.
    """
    norm = np.sqrt(np.square(rows).sum(axis=1))
    norm[norm == 0.0] = 1.0
    unit: FloatArray = rows / norm[:, None]
    return unit


def _power(base: FloatArray, exponent: int) -> FloatArray:
    """Integer power by products: NumPy's has other bits on other CPUs."""
    power = base
    for bit in f"{exponent:b}"[1:]:
        power = np.square(power)
        if bit == "1":
            power *= base
    return power


def _check_references(points: FloatArray, normalize: bool) -> None:
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if len(bad):
        raise InputError(
            f"reference environment {bad[0]} of {len(points)} has features that are not finite; "
            "leave it out, or compute its features again"
        )
    zero = np.flatnonzero(square_norm(points) == 0.0)
    if normalize and len(zero):
        raise InputError(
            f"reference environment {zero[0]} of {len(points)} is a zero vector (one of "
            f"{len(zero)}), which cannot have unit norm, as of an atom without neighbours; "
            "choose other references, or use normalize: false"
        )
