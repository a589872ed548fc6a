"""Losses as other programs set them, translated into lambdas of a loss with the factor 1/2.

A lambda is of one row: of an energy in the convention of the job's ``rows``, of one component of
one force, of one component of a stress or virial. Weights of a program's own structures are not
translated: name them in ``loss.structure_weight`` or ``loss.groups``.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

import pydantic
from pydantic import Field

from dlpr.job.sections import Number, Positive, Section


class Preset(Protocol):
    """A loss of another program."""

    rows: ClassVar[str]
    """convention of energies, and of virials"""
    off_diagonals: ClassVar[str]
    """how often a component off the diagonal of a stress or virial counts"""

    @property
    def delta(self) -> float | None:
        """Where its loss turns from quadratic to linear; None: it does not."""

    def lambdas(self, n_structures: int, n_atoms: int) -> dict[str, float]:
        """Lambda of each kind, up to a common factor.

        Parameters
        ----------
        n_structures, n_atoms : int
            Of the training set.
        """


class Gap(Section):
    """gap_fit's ``default_sigma``, with ``sigma_per_atom`` as it is by default.

    The mean of the Gaussian process minimizes ``sum (r/sigma)^2/2 + w^T K_MM w/2``: lambda is
    ``1/sigma^2``. Sigmas of total energies and of virials are multiplied by sqrt(N), hence rows
    over sqrt(N). The six components of a virial with l >= k are one row each, of one sigma. With
    lambdas that are multiplied by ``energy_sigma^2``, a kernel of unit height has gap_fit's
    regularizer where the job's is ``energy_sigma^2/delta^2``.

    Source: libAtoms/GAP, ``gap_fit_module.f95``, ``fit_data_from_xyz``; Bartok and Csanyi, Int. J.
    Quantum Chem. 115, 1051 (2015). A structure's own ``energy_sigma`` is not per atom there.
    """

    energy_sigma: Positive | None = Field(default=None, description="a number > 0 in eV per atom")
    force_sigma: Positive | None = Field(default=None, description="a number > 0 in eV/Å")
    virial_sigma: Positive | None = Field(default=None, description="a number > 0 in eV per atom")

    rows: ClassVar[str] = "sqrt"
    off_diagonals: ClassVar[str] = "once"

    @pydantic.model_validator(mode="after")
    def _not_nothing(self) -> Gap:
        if not self.lambdas(1, 1):
            raise ValueError("needs one at least of: energy_sigma, force_sigma, virial_sigma")
        return self

    @property
    def delta(self) -> float | None:
        """Squared losses alone."""
        return None

    def lambdas(self, n_structures: int, n_atoms: int) -> dict[str, float]:
        """``1/sigma^2``; see `Preset`."""
        sigmas = {
            "energy": self.energy_sigma,
            "forces": self.force_sigma,
            "virial": self.virial_sigma,
        }
        return {kind: sigma**-2 for kind, sigma in sigmas.items() if sigma is not None}


class Pacemaker(Section):
    """pacemaker's kappa, with uniform weighting of a loss "per-atom".

    ``(1 - kappa) sum_A w_A ((E_A - Y_A)/N_A)^2 + kappa sum_j w_j |f_j - F_j|^2``, where both kinds
    of weights are scaled to a sum of 1: ``w_A = 1/n_structures``, ``w_j = 1/n_atoms``. Hence mean
    rows, ``lambda_E = 2 (1 - kappa)/n_structures``, ``lambda_f = 2 kappa/n_atoms``. The L1, L2 and
    smoothness terms act on coefficients of an ACE expansion and are not translated.

    Source: ICAMS/python-ace, ``preparedata.py``, ``UniformWeightingPolicy`` and
    ``normalize_energy_forces_weights``; ICAMS/TensorPotential, ``tensorpot.py``, ``compute_loss``;
    Bochkarev et al., Phys. Rev. Mater. 6, 013804 (2022).
    """

    kappa: float = Field(ge=0.0, le=1.0, description="a number from 0 to 1")

    rows: ClassVar[str] = "mean"
    off_diagonals: ClassVar[str] = "twice"

    @property
    def delta(self) -> float | None:
        """Squared losses alone."""
        return None

    def lambdas(self, n_structures: int, n_atoms: int) -> dict[str, float]:
        """Energies and forces; see `Preset`."""
        return {
            "energy": 2.0 * (1.0 - self.kappa) / n_structures,
            "forces": 2.0 * self.kappa / n_atoms,
        }


class Mace(Section):
    """MACE's weights, of its losses "weighted", "stress", "virials" and, with a delta, "huber".

    Its terms are means: of ``((E - Y)/N)^2`` over structures, of squared components of forces over
    all ``3 n_atoms``, of squared components of ``virial/N`` and of the stress over all
    ``9 n_structures``. Hence mean rows, off-diagonals that stand twice, and ``lambda = 2 weight``
    over the number of terms; torch's Huber loss has the 1/2 that the squares lack. Here they are
    means over the training set; MACE's are over each batch, whose forces weigh more where its
    frames are small. Structures without a label weigh 0 there and count in the means, as here.
    Stresses are not divided by N, as in its present versions (early ones divided). Weight decay
    belongs to the optimizer and is not translated.

    Source: ACEsuit/mace, ``mace/modules/loss.py``.
    """

    energy_weight: Number = 1.0
    forces_weight: Number = 100.0
    stress_weight: Number = 0.0
    virials_weight: Number = 0.0
    huber_delta: Positive | None = Field(
        default=None, description="a number > 0: MACE's huber_delta, of its loss `huber`"
    )

    rows: ClassVar[str] = "mean"
    off_diagonals: ClassVar[str] = "twice"

    @pydantic.model_validator(mode="after")
    def _not_nothing(self) -> Mace:
        if not any(self.lambdas(1, 1).values()):
            raise ValueError("all weights are 0; needs one above 0")
        if self.huber_delta is not None and self.virials_weight:
            raise ValueError("MACE's loss `huber` has no virials; take stress_weight")
        return self

    @property
    def delta(self) -> float | None:
        """Of energies per atom, forces and stresses alike."""
        return self.huber_delta

    def lambdas(self, n_structures: int, n_atoms: int) -> dict[str, float]:
        """Weights over numbers of terms; see `Preset`."""
        twice = 2.0 if self.huber_delta is None else 1.0
        return {
            "energy": twice * self.energy_weight / n_structures,
            "forces": twice * self.forces_weight / (3 * n_atoms),
            "stress": twice * self.stress_weight / (9 * n_structures),
            "virial": twice * self.virials_weight / (9 * n_structures),
        }


PRESETS = ("gap", "pacemaker", "mace")
"""Keys of a loss that are presets."""
