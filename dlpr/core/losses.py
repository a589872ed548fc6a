"""Losses: what a residual costs, and with which weight its row enters the Hessian.

``L = sum_t lambda_t l(y_t - Y_t) + mu/2 |w|^2``, with ``l(r) = r^2/2`` where the loss is squared
(JCTC23 eq. 1), hence ``H = mu 1 + sum_t lambda_t l''_t g_t g_t^T`` at the converged fit (FD24
eq. 9): a row enters multiplied by ``sqrt(lambda l'')``. The fit itself reweights: rows multiplied
by ``sqrt(lambda l'/r)`` make a squared loss with the same gradient.

FD24 eq. 5 has no 1/2: the lambdas of such losses are half of ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dlpr.core.rows import FloatArray
from dlpr.errors import JobError


class Loss(Protocol):
    """An even loss of residuals of any shape; all results have that shape."""

    def value(self, residual: FloatArray) -> FloatArray:
        """``l(r)``."""

    def first(self, residual: FloatArray) -> FloatArray:
        """``l'(r)``."""

    def second(self, residual: FloatArray) -> FloatArray:
        """``l''(r)``, of which H takes a part of each row (FD24 eq. 9)."""

    def weight(self, residual: FloatArray) -> FloatArray:
        """``l'(r)/r``, by which iteratively reweighted least squares weighs a row; 1 at r = 0."""


@dataclass(frozen=True)
class Squared:
    """``r^2/2``."""

    def value(self, residual: FloatArray) -> FloatArray:
        """``r^2/2``."""
        value: FloatArray = 0.5 * np.square(residual)
        return value

    def first(self, residual: FloatArray) -> FloatArray:
        """``r``."""
        return np.array(residual, dtype=np.float64)

    def second(self, residual: FloatArray) -> FloatArray:
        """1."""
        return np.ones_like(residual, dtype=np.float64)

    def weight(self, residual: FloatArray) -> FloatArray:
        """1."""
        return np.ones_like(residual, dtype=np.float64)


@dataclass(frozen=True)
class Huber:
    """``r^2/2`` up to ``|r| = delta``, ``delta (|r| - delta/2)`` beyond.

    Rows beyond delta have no part in H: their residuals can grow at no change of the gradient.
    """

    delta: float
    """in units of the residual, positive"""

    def __post_init__(self) -> None:
        _check_length("delta", self.delta)

    def value(self, residual: FloatArray) -> FloatArray:
        """``c (|r| - c/2)`` with ``c = min(|r|, delta)``."""
        size = np.abs(residual)
        inner = np.minimum(size, self.delta)
        value: FloatArray = inner * (size - 0.5 * inner)
        return value

    def first(self, residual: FloatArray) -> FloatArray:
        """``r``, at most delta in size."""
        first: FloatArray = np.clip(residual, -self.delta, self.delta)
        return first

    def second(self, residual: FloatArray) -> FloatArray:
        """1 up to delta, 0 beyond."""
        return (np.abs(residual) <= self.delta).astype(np.float64)

    def weight(self, residual: FloatArray) -> FloatArray:
        """``min(1, delta/|r|)``."""
        weight: FloatArray = self.delta / np.maximum(np.abs(residual), self.delta)
        return weight


@dataclass(frozen=True)
class LogCosh:
    """``s^2 log cosh(r/s)``: ``r^2/2`` for small residuals, ``s |r|`` for large ones."""

    scale: float
    """s, in units of the residual, positive"""

    def __post_init__(self) -> None:
        _check_length("scale", self.scale)

    def value(self, residual: FloatArray) -> FloatArray:
        """``s^2 log(1 + 2 sinh^2(u/2))`` up to u = 1, ``s |r| + s^2 log((1 + e^-2u)/2)`` beyond."""
        size = np.abs(residual)
        u = size / self.scale
        near = np.log1p(2.0 * np.square(np.sinh(0.5 * np.minimum(u, 1.0))))
        far = np.log1p(np.exp(-2.0 * u)) - np.log(2.0)
        value: FloatArray = np.where(
            u <= 1.0, self.scale**2 * near, self.scale * size + self.scale**2 * far
        )
        return value

    def first(self, residual: FloatArray) -> FloatArray:
        """``s tanh(r/s)``."""
        first: FloatArray = self.scale * np.tanh(residual / self.scale)
        return first

    def second(self, residual: FloatArray) -> FloatArray:
        """``1/cosh^2(r/s)``."""
        decay = np.exp(-2.0 * np.abs(residual) / self.scale)
        second: FloatArray = 4.0 * decay / np.square(1.0 + decay)
        return second

    def weight(self, residual: FloatArray) -> FloatArray:
        """``tanh(u)/u`` with ``u = r/s``."""
        u = np.abs(residual) / self.scale
        weight = np.ones_like(u)
        np.divide(np.tanh(u), u, out=weight, where=u > 0.0)
        return weight


LOSSES: dict[str, Callable[..., Loss]] = {
    "squared": Squared,
    "huber": Huber,
    "log-cosh": LogCosh,
}
"""Losses by the name they have in a job file"""


@dataclass(frozen=True)
class Lambdas:
    """Weights of the kinds of targets, in our loss with 1/2, as another program sets them.

    A common factor of all lambdas and mu multiplies every rigidity, and moves no weight of a fit.
    """

    energy_rows: str
    """convention of energies: their target is "sum", "mean" or "sqrt" (see `row_factor`)"""
    energy: float
    """lambda of an energy's row"""
    forces: float
    """lambda of a row of one component of one force"""
    virial: float = 0.0
    """lambda of a row of one component of a virial, 0 without virials"""
    virial_rows: str = "sum"
    """virials as they are, or "mean" or "sqrt": over N or sqrt(N) of the structure's atoms"""
    stress: float = 0.0
    """lambda of a row of one component of a stress, 0 without stresses"""
    off_diagonal: float = 1.0
    """factor on lambda for each of the three off-diagonal rows of a virial or stress"""
    mu: float | None = None
    """regularizer that goes with these lambdas; None where the program has none to translate"""


def from_gap(
    energy_sigma: float, forces_sigma: float, virial_sigma: float, *, sigma_per_atom: bool = True
) -> Lambdas:
    """Translate ``default_sigma`` or ``config_type_sigma`` of gap_fit.

    The model is a Gaussian process: its mean minimizes ``sum (r/sigma)^2/2 + w^T K_MM w/2``, so
    ``lambda = 1/sigma^2`` and mu = 1 on a kernel that holds gap_fit's ``delta^2``. On a kernel of
    unit height mu is ``1/delta^2``.

    Source: libAtoms/GAP, ``gap_fit_module.f95``, ``fit_data_from_xyz``. With ``sigma_per_atom``
    (the default) the sigmas of total energies and of virials are multiplied by sqrt(N); of a
    structure's own ``energy_sigma`` or ``virial_sigma`` they are not, nor without the flag.
    Forces have one sigma per component. Of a virial, symmetrized, the six components with l >= k
    are one row each, all of one sigma.

    Parameters
    ----------
    energy_sigma, forces_sigma, virial_sigma : float
        In eV, eV/A and eV; 0 for a kind of targets that is not fitted (gap_fit itself refuses 0
        where such data are present).
    sigma_per_atom : bool
        Whether the sigmas of energies and virials grow as sqrt(N).
    """
    rows = "sqrt" if sigma_per_atom else "sum"
    energy, forces, virial = (
        _inverse_square(name, sigma)
        for name, sigma in (
            ("energy_sigma", energy_sigma),
            ("forces_sigma", forces_sigma),
            ("virial_sigma", virial_sigma),
        )
    )
    return Lambdas(rows, energy, forces, virial, virial_rows=rows, mu=1.0)


def from_pacemaker(kappa: float, n_structures: int, n_atoms: int) -> Lambdas:
    """Translate pacemaker's kappa.

    Its loss is ``(1 - kappa) sum_A w_A ((E_A - Y_A)/N_A)^2 + kappa sum_j w_j |f_j - F_j|^2``, and
    both kinds of weights are scaled to a sum of 1 over the training set. There is no 1/2, so
    ``lambda_E = 2 (1 - kappa)/n_structures`` for mean rows and ``lambda_f = 2 kappa/n_atoms``.

    Source: ICAMS/python-ace, ``fitadapter.py`` (kappa, 1 - kappa, loss type "per-atom") and
    ``preparedata.py`` (``UniformWeightingPolicy``, ``normalize_energy_forces_weights``);
    ICAMS/TensorPotential, ``tensorpot.py``, ``compute_loss``. Assumed: uniform weighting. With
    another policy the weight of a structure is ``n_structures w_A`` for its energy and
    ``n_atoms w_j`` for its forces. The L1, L2 and smoothness terms act on the coefficients of an
    ACE expansion and are not translated.

    Parameters
    ----------
    kappa : float
        From 0 (energies alone) to 1 (forces alone); not "auto".
    n_structures, n_atoms : int
        Of the training set.
    """
    if not 0.0 <= kappa <= 1.0:
        raise JobError(f"pacemaker's kappa is {kappa}; it must lie in 0..1")
    _check_counts(n_structures, n_atoms)
    return Lambdas("mean", 2.0 * (1.0 - kappa) / n_structures, 2.0 * kappa / n_atoms)


def from_mace(
    n_structures: int,
    n_atoms: int,
    *,
    energy_weight: float = 1.0,
    forces_weight: float = 100.0,
    virials_weight: float = 0.0,
    stress_weight: float = 0.0,
    huber: bool = False,
) -> Lambdas:
    """Translate the weights of MACE's losses "weighted", "virials", "stress" and "huber".

    Its terms are means: of ``((E - Y)/N)^2`` over structures, of squared force components over all
    3 n_atoms, of squared components of ``virial/N`` and of the stress over all 9 n_structures.
    They have no 1/2, hence ``lambda = 2 weight/number``; torch's Huber loss has it, hence
    ``weight/number`` there, to go with `Huber` of MACE's ``huber_delta`` on energies per atom,
    forces and stresses alike. Off-diagonals stand twice in a 3 x 3 tensor.

    Source: ACEsuit/mace, ``mace/modules/loss.py``. Assumed: means over the whole training set (MACE
    takes them over each batch, so that forces in batches of few atoms weigh more); stresses not
    divided by N, as in present versions (early ones divided); structures without a label weigh 0
    there and still count in the means, so n_structures and n_atoms are those of all structures.
    Weight decay belongs to the optimizer and is not translated.

    Parameters
    ----------
    n_structures, n_atoms : int
        Of the training set.
    energy_weight, forces_weight, virials_weight, stress_weight : float
        MACE's options of these names. MACE sets 1 and 100 for energies and forces; 0 leaves a kind
        of targets out.
    huber : bool
        Whether the loss is "huber", which has no virials.
    """
    _check_counts(n_structures, n_atoms)
    given = {
        "energy_weight": energy_weight,
        "forces_weight": forces_weight,
        "virials_weight": virials_weight,
        "stress_weight": stress_weight,
    }
    for name, value in given.items():
        if not 0.0 <= value < np.inf:
            raise JobError(f"MACE's {name} is {value}; it must be 0 or a positive number")
    if huber and virials_weight:
        raise JobError(f"MACE's Huber loss has no virials: virials_weight is {virials_weight}")
    factor = 1.0 if huber else 2.0
    return Lambdas(
        energy_rows="mean",
        energy=factor * energy_weight / n_structures,
        forces=factor * forces_weight / (3 * n_atoms),
        virial=factor * virials_weight / (9 * n_structures),
        virial_rows="mean",
        stress=factor * stress_weight / (9 * n_structures),
        off_diagonal=2.0,
    )


PRESETS: dict[str, Callable[..., Lambdas]] = {
    "gap": from_gap,
    "pacemaker": from_pacemaker,
    "mace": from_mace,
}
"""Translations by the name of the program"""


def _check_length(name: str, value: float) -> None:
    if not 0.0 < value < np.inf:
        raise JobError(f"{name} of the loss is {value}; it must be a positive number")


def _check_counts(n_structures: int, n_atoms: int) -> None:
    if not 1 <= n_structures <= n_atoms:
        raise JobError(
            f"weights that are means need the training set's size, and {n_structures} structures "
            f"of {n_atoms} atoms are none"
        )


def _inverse_square(name: str, sigma: float) -> float:
    if not 0.0 <= sigma < np.inf:
        raise JobError(f"GAP's {name} is {sigma}; it must be 0 (not fitted) or a positive number")
    return 1.0 / sigma**2 if sigma else 0.0
