"""Energies per atom taken out of a fit, so that one decomposition serves every regularizer.

Rows are ``[g, c]``: features, and numbers of atoms whose weights b are energies per atom. Either b
is given, or it has a regularizer nu of its own, which stays while that of the features changes:

    |y - G w - C b|^2 + nu |b|^2 + mu |w|^2  =  |y' - G' w|^2 + mu |w|^2 + |root (b - b(w))|^2

with ``root^T root = C^T C + nu 1``, and ``b(w) = energy - share w`` the best b of given weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cholesky, qr, solve_triangular

from dlpr.core.folds import Gram, Triangle
from dlpr.core.rows import FloatArray, IntArray, square_norm

Folded = Gram | Triangle | FloatArray
"""A fold of rows ``[g, c, y]``, or few such rows themselves; the target y is the last column"""


@dataclass(frozen=True)
class Baseline:
    """What energies per atom leave of rows and of their targets."""

    share: FloatArray
    """(n_species, n_features) by which the energies answer to the features' weights"""
    energy: FloatArray
    """(n_species,) energies per atom where these weights are 0"""
    root: FloatArray | None
    """(n_species, n_species) upper triangular; None: the energies are given"""
    regularizer: float = 0.0
    """nu"""

    def rows(self, features: FloatArray, count: FloatArray) -> FloatArray:
        """Rows ``g' = g - c share`` (n, n_features)."""
        return features - count @ self.share

    def target(self, y: FloatArray, count: FloatArray) -> FloatArray:
        """Targets ``y' = y - c energy`` (n,): ``y' - g' w`` is the error of a fit."""
        target: FloatArray = y - count @ self.energy
        return target

    def variance(self, count: FloatArray) -> FloatArray:
        """What fitted energies add to ``1/R`` of rows, ``c (C^T C + nu 1)^-1 c^T`` (n,)."""
        if self.root is None:
            return np.zeros(len(count))
        return square_norm(solve_triangular(self.root, count.T, trans="T").T)

    def penalty(self, weights: FloatArray) -> FloatArray:
        """``nu |b(w)|^2`` (n_mu,) of weights (n_features, n_mu)."""
        energy = self.energy[:, None] - self.share @ weights
        penalty: FloatArray = self.regularizer * np.square(energy).sum(axis=0)
        return penalty


def given(folded: Folded, constants: IntArray, energy: FloatArray) -> tuple[Folded, Baseline]:
    """Take given energies (n_species,) per atom off the targets.

    Parameters
    ----------
    folded : Gram, Triangle or (n, n_columns + 1) float64
        Stays as it is.
    constants : (n_species,) int
        Columns of numbers of atoms.
    energy : (n_species,) float64

    Returns
    -------
    folded
        Of ``[g', y']``.
    baseline : Baseline
    """
    matrix = _whole(folded)
    features, target = _others(matrix, constants)
    mix = np.zeros(matrix.shape[1])
    mix[target], mix[constants] = 1.0, -energy
    mixed = matrix @ mix
    baseline = Baseline(np.zeros((len(constants), len(features))), energy, None)
    if isinstance(folded, Gram):
        left = np.empty((len(features) + 1,) * 2, order="F")
        left[:-1, :-1] = matrix[np.ix_(features, features)]
        left[:-1, -1] = left[-1, :-1] = mixed[features]
        left[-1, -1] = mix @ mixed
        return Gram(left), baseline
    return _like(folded, np.column_stack([matrix[:, features], mixed])), baseline


def fitted(folded: Folded, constants: IntArray, regularizer: float) -> tuple[Folded, Baseline]:
    """Leave energies per atom to the fit, with a regularizer nu > 0 of their own.

    See `given` for the parameters. A Gram matrix leaves its Schur complement; rows are rotated by
    the reflections that make ``[C; sqrt(nu) 1]`` triangular.
    """
    matrix = _whole(folded)
    features, target = _others(matrix, constants)
    others, n = np.append(features, target), len(constants)
    if isinstance(folded, Gram):
        own = matrix[np.ix_(constants, constants)] + regularizer * np.eye(n)
        root = cholesky(own, lower=False)
        top = solve_triangular(root, matrix[np.ix_(constants, others)], trans="T")
        left: Folded = Gram(np.asfortranarray(matrix[np.ix_(others, others)] - top.T @ top))
    else:
        prior = np.zeros((n, matrix.shape[1]))
        prior[np.arange(n), constants] = np.sqrt(regularizer)
        stacked = np.vstack([matrix, prior])
        q, triangle = qr(stacked[:, constants])
        rotated = np.asarray(q.T @ stacked[:, others], np.float64)
        root = triangle[:n]
        top, left = rotated[:n], _like(folded, rotated[n:])
    solved = solve_triangular(root, top)
    return left, Baseline(solved[:, :-1], solved[:, -1], root, regularizer)


def _whole(folded: Folded) -> FloatArray:
    """The matrix of a fold, both triangles of a Gram matrix; rows as they are."""
    if isinstance(folded, Gram):
        whole: FloatArray = np.triu(folded.matrix) + np.triu(folded.matrix, 1).T
        return whole
    return folded.matrix if isinstance(folded, Triangle) else folded


def _others(matrix: FloatArray, constants: IntArray) -> tuple[IntArray, int]:
    target = matrix.shape[1] - 1
    return np.setdiff1d(np.arange(target), constants), target


def _like(folded: Triangle | FloatArray, rows: FloatArray) -> Folded:
    """Rows as they are, or folded into a triangle."""
    if not isinstance(folded, Triangle):
        return rows
    triangle = Triangle.zeros(rows.shape[1])
    triangle.update(rows)
    return triangle
