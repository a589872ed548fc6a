"""Energies, forces, stresses and rigidities of any structure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from dlpr.core.fit import UNLIKE, UNSEEN_CENTRE, UNSEEN_NEIGHBOUR, Fit
from dlpr.core.rows import FloatArray, IntArray
from dlpr.descriptors import Descriptor, gradient_refusal
from dlpr.descriptors.gradients import DerivativeRows, Tangent, derivative_rows
from dlpr.errors import InputError, JobError
from dlpr.store.files import Json
from dlpr.structures.frames import Piece
from dlpr.structures.spatial import SORTED_FRAME_ATOMS, cut_cluster, sort_by_bins

PER_ATOM = ("lpr", "prior_ratio", "uncertainty")
PER_STRUCTURE = ("energy_uncertainty", "structure_pr")
"""What every model says of atoms and structures beside energies."""
_BLOCK_NBYTES = 1 << 24
"""Bytes of features that are held at a time."""


@dataclass(frozen=True)
class Prediction:
    """What a model says of one structure; arrays over atoms in the structure's own order.

    Uncertainties are standard deviations in eV, ``scale sqrt(1/R + residual/mu)``; see
    `FittedModel.scale`.
    """

    energy: float
    """eV"""
    energies: FloatArray
    """(n_atoms,) eV; their sum is the energy"""
    lpr: FloatArray
    """(n_atoms,) local prediction rigidity"""
    prior_ratio: FloatArray
    """(n_atoms,) LPR over what the regularizer alone gives"""
    unseen: NDArray[np.uint8]
    """(n_atoms,) bits 1, 2: a central, a neighbour species that no training structure has; 4: an
    environment unlike all references of a kernel"""
    residual: FloatArray | None
    """(n_atoms,) of a kernel: prior variance that its references cannot see, in that of the
    weights"""
    uncertainty: FloatArray
    """(n_atoms,) of the atomic energies"""
    structure_pr: float
    """PR of the structure in the model's convention of rows; NaN where the model has it not"""
    energy_uncertainty: float
    """of the energy; NaN where the model has no PR of structures"""
    forces: FloatArray | None = None
    """(n_atoms, 3) eV/Å"""
    stress: FloatArray | None = None
    """(6,) eV/Å³: xx, yy, zz, yz, xz, xy, tension positive"""
    forces_uncertainty: FloatArray | None = None
    """(n_atoms, 3) eV/Å, ``scale sqrt(1/R)`` of each component"""
    stress_uncertainty: FloatArray | None = None
    """(6,) eV/Å³"""
    committee_variance: FloatArray | None = None
    """(n_atoms,) eV² over the members of a committee, of the atomic energies"""
    structure_committee_variance: float | None = None
    """eV² over the members of a committee, of the energy"""
    components: Mapping[str, FloatArray] = field(default_factory=dict)
    """(n_atoms,) LCPR of each of the descriptor's parts"""
    structure_components: Mapping[str, float] = field(default_factory=dict)
    """CPR of each of the descriptor's parts; none where the model has no PR of structures"""

    @property
    def of_atoms(self) -> dict[str, FloatArray]:
        """How firm the atomic energies are, arrays (n_atoms,) by the names that files have."""
        found = {name: getattr(self, name) for name in PER_ATOM}
        if self.committee_variance is not None:
            found["committee_variance"] = self.committee_variance
        return found | {f"lpr_{name}": values for name, values in self.components.items()}

    @property
    def of_structure(self) -> dict[str, float]:
        """How firm the energy is, by the names that files have."""
        found = {name: getattr(self, name) for name in PER_STRUCTURE}
        if self.structure_committee_variance is not None:
            found["structure_committee_variance"] = self.structure_committee_variance
        own = self.structure_components.items()
        return found | {f"structure_pr_{name}": value for name, value in own}


@dataclass(frozen=True)
class FittedModel:
    """Weights, and the rigidity of what they predict.

    Attributes
    ----------
    descriptor : Descriptor
    fit : Fit
    seen : tuple of int
        Atomic numbers of the training set.
    scale : float
        ``a`` of ``var = a^2 (1/R + residual/mu)``, in the units of the loss's rows (eV per atom for
        ``rows: mean``, eV for ``sum``, eV over root of atoms for ``sqrt``). It is 1 unless
        calibrated; ``a^2 = sigma_w^2 mu`` is the variance of JCTC23 eq. 17.
    record : dict
        How it was made: job, conventions, versions, digests.
    """

    descriptor: Descriptor
    fit: Fit
    seen: tuple[int, ...]
    scale: float
    record: Json

    def __post_init__(self) -> None:
        if not 0.0 < self.scale < np.inf:
            raise JobError(f"the scale of uncertainties is {self.scale}; it must be positive")

    @property
    def species(self) -> tuple[int, ...]:
        """Atomic numbers that a structure may have."""
        return self.descriptor.species

    @property
    def of_atoms(self) -> tuple[str, ...]:
        """Names of what `Prediction.of_atoms` has."""
        committee = () if self.fit.members is None else ("committee_variance",)
        return (*PER_ATOM, *committee, *(f"lpr_{name}" for name in self.fit.components))

    @property
    def of_structure(self) -> tuple[str, ...]:
        """Names of what `Prediction.of_structure` has."""
        committee = () if self.fit.members is None else ("structure_committee_variance",)
        parts = () if self.fit.whole is None else self.fit.components
        return (*PER_STRUCTURE, *committee, *(f"structure_pr_{name}" for name in parts))

    def __repr__(self) -> str:
        symbols = " ".join(chemical_symbols[z] for z in self.species)
        columns = self.fit.model.layout.n_columns
        return f"FittedModel(species={symbols}, columns={columns}, scale={self.scale:g})"

    def predict(
        self, atoms: Any, *, forces: bool = False, stress: bool = False, uncertainty: bool = False
    ) -> Prediction:
        """Predict one structure.

        Parameters
        ----------
        atoms : ase.Atoms
            Of any periodicity and size; features are computed in blocks of atoms.
        forces, stress : bool
            Whether to take the derivatives of the energy as well.
        uncertainty : bool
            Whether these are to have uncertainties: they need the whole rows of derivatives,
            3 n_atoms times the columns of the model in memory, and much more time.

        Raises
        ------
        InputError
            If the structure has a species that the model does not know, an environment has no
            finite features, or derivatives are wanted that there are not.
        JobError
            If uncertainties are wanted of a model that has no PR of structures.
        """
        found = self._energies(self._piece(atoms))
        if not (forces or stress):
            return found
        own = self.derivatives(atoms, forces=forces, stress=stress)
        found = replace(found, forces=own[0], stress=own[1])
        if not uncertainty:
            return found
        if self.fit.whole is None:
            raise JobError(
                "uncertainties of forces and stresses need the factor of all columns, and this "
                "model has those of its blocks alone (it was made in tiles). Ask for energies."
            )
        rows = self._derivative_rows(atoms, self.fit.model.map, forces=forces, stress=stress)
        sigma = [
            None if sums is None else self.scale * np.sqrt(self.fit.derivative_variance(sums))
            for sums in (rows.forces, rows.stress)
        ]
        return replace(
            found,
            forces_uncertainty=None if sigma[0] is None else sigma[0].reshape(-1, 3),
            stress_uncertainty=sigma[1],
        )

    def derivatives(
        self, atoms: Any, *, forces: bool, stress: bool
    ) -> tuple[FloatArray | None, FloatArray | None]:
        """Forces (n_atoms, 3) and stress (6,) alone; parameters as for `predict`."""
        rows = self._derivative_rows(atoms, _Slope(self.fit), forces=forces, stress=stress)
        return (
            None if rows.forces is None else rows.forces.sum(axis=1).reshape(-1, 3),
            None if rows.stress is None else rows.stress.sum(axis=1),
        )

    def check_derivatives(self, *, forces: bool, stress: bool) -> None:
        """Refuse derivatives that the model's features have not.

        Raises
        ------
        InputError
        """
        for name, wanted in (("forces", forces), ("stress", stress)):
            refusal = gradient_refusal(self.descriptor, name) if wanted else None
            if refusal is not None:
                raise InputError(
                    f"to predict {name} there must be {refusal}. Ask for energies, or train a "
                    "model on one of these."
                )

    def _derivative_rows(
        self, atoms: Any, tangent: Tangent, *, forces: bool, stress: bool
    ) -> DerivativeRows:
        self.check_derivatives(forces=forces, stress=stress)
        return derivative_rows(
            self.descriptor, self._piece(atoms), tangent, forces=forces, stress=stress
        )

    def _piece(self, atoms: Any) -> Piece:
        numbers = np.asarray(atoms.numbers)
        if not len(numbers):
            raise InputError("the structure has no atoms (0, at least 1 is needed)")
        unknown = np.flatnonzero(~np.isin(numbers, self.species))
        if unknown.size:
            known = " ".join(chemical_symbols[z] for z in self.species)
            raise InputError(
                f"atom {unknown[0]} is {chemical_symbols[numbers[unknown[0]]]}, as {unknown.size} "
                f"of {len(numbers)} atoms are of species that the model does not know; it knows "
                f"{known}. Train a model on structures with these species."
            )
        return Piece(
            np.asarray(atoms.positions, np.float64),
            numbers.astype(np.uint8),
            np.asarray(atoms.cell.array, np.float64),
            np.asarray(atoms.pbc, np.bool_),
        )

    def _energies(self, piece: Piece) -> Prediction:
        n, fit, model = len(piece.species), self.fit, self.fit.model
        species = np.searchsorted(self.species, piece.species)
        lpr, ratio, energy, variance = (np.empty(n) for _ in range(4))
        committee = None if fit.members is None else np.empty(n)
        components = {name: np.empty(n) for name in fit.components}
        unseen, residual = np.zeros(n, np.uint8), None
        sums = np.zeros((1, model.stored.n_columns))
        for atom, cut in _cuts(piece, self.descriptor):
            features = self.descriptor.compute([cut])
            mapped = list(model.mapped(features, species[atom]))
            model.add_sums(sums, mapped, np.zeros(len(atom), np.int64))
            own = fit.environments(features, species[atom], mapped)
            lpr[atom], ratio[atom], variance[atom] = own.lpr, own.prior_ratio, own.variance
            assert own.energy is not None
            energy[atom] = own.energy
            if committee is not None:
                committee[atom] = own.committee_variance
            for name, values in own.components.items():
                components[name][atom] = values
            unseen[atom] = self._unseen(features, species[atom]) | (UNLIKE * own.unlike)
            if own.residual is not None:
                residual = np.empty(n) if residual is None else residual
                residual[atom] = own.residual
        count = np.bincount(species, minlength=len(self.species))[None]
        pr, _, factor = fit.structures(sums, count)
        of_committee = None if committee is None else float(fit.structure_committee(sums, count)[0])
        parts = {} if pr is None else fit.structure_components(sums, count)
        of_sum = np.full(1, np.nan)
        if pr is not None:
            left = None if residual is None else np.sqrt(residual).sum(keepdims=True)
            of_sum = fit.structure_variance(pr, factor, left)
            if model.map.is_sparse and not sums.any():  # unlike all references: unknown
                pr[:] = 0.0
        return Prediction(
            energy=float(energy.sum()),
            energies=energy,
            lpr=lpr,
            prior_ratio=ratio,
            unseen=unseen,
            residual=residual,
            uncertainty=self.scale * np.sqrt(variance),
            structure_pr=float("nan") if pr is None else float(pr[0]),
            energy_uncertainty=self.scale * float(np.sqrt(of_sum[0])),
            committee_variance=committee,
            structure_committee_variance=of_committee,
            components=components,
            structure_components={name: float(values[0]) for name, values in parts.items()},
        )

    def _unseen(self, features: FloatArray, species: IntArray) -> NDArray[np.uint8]:
        new = [z for z in self.species if z not in self.seen]
        is_new = np.isin(self.species, new)
        found = np.where(is_new[species], UNSEEN_CENTRE, 0).astype(np.uint8)
        for z in new:
            near = np.any(features[:, self.descriptor.columns_with(z)] != 0, axis=1)
            found[near] |= UNSEEN_NEIGHBOUR
        return found


def _cuts(piece: Piece, calculator: Descriptor) -> Iterator[tuple[IntArray, Piece]]:
    """Runs of atoms, and pieces whose centres they are."""
    n, cutoff = len(piece.species), calculator.cutoff
    size = max(64, min(8192, _BLOCK_NBYTES // (8 * calculator.n_features)))
    edges = pairwise([*range(0, n, size), n])
    if n <= SORTED_FRAME_ATOMS or not np.isfinite(cutoff):
        for start, stop in edges:
            atom = np.arange(start, stop)
            yield atom, replace(piece, centre=atom)
        return
    order, shape, box, origin, ranges = sort_by_bins(piece.position, piece.cell, piece.pbc)
    position, species = piece.position[order], piece.species[order]
    for start, stop in edges:
        cut = cut_cluster(
            lambda a, b: (position[a:b], species[a:b], order[a:b]),
            bin_shape=shape,
            bin_box=box,
            bin_origin=origin,
            bin_range=ranges,
            cell=piece.cell,
            pbc=piece.pbc,
            start=start,
            stop=stop,
            cutoff=cutoff,
        )
        yield order[start:stop], cut


@dataclass(frozen=True)
class _Slope:
    """The derivative of the energy itself: one column for each central species."""

    fit: Fit

    @property
    def raw_widths(self) -> tuple[int, ...]:
        return (1,) * len(self.fit.model.map.widths)

    def derivative(
        self, species: int, features: FloatArray, tangent: FloatArray, centre: IntArray
    ) -> FloatArray:
        start = np.flatnonzero(np.diff(centre, prepend=-1))
        gradients = self.fit.gradient(species, features[centre[start]])
        slope = np.empty((len(tangent), 1))
        for (a, b), gradient in zip(pairwise([*start, len(centre)]), gradients, strict=True):
            slope[a:b, 0] = tangent[a:b] @ gradient
        return slope
