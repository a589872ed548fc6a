"""A fitted model: what it says of environments and structures, from their features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dlpr.core.committee import committee_variance, spread
from dlpr.core.factor import Factor, HeldFactor, SpectralFactor, load_factor, reciprocal
from dlpr.core.models import Model, Targets, Which
from dlpr.core.rows import FloatArray, IntArray, square_norm

UNSEEN_CENTRE, UNSEEN_NEIGHBOUR, UNLIKE = 1, 2, 4
"""Bits of what is unseen: species that no training structure has; an environment unlike all
references of a kernel."""
Mapped = Sequence[tuple[int, Which, FloatArray]]
"""What `Model.mapped` gives of some environments."""


def prior_ratio(rigidity: FloatArray, square: FloatArray, mu: float) -> FloatArray:
    """``R / (mu / |g|^2)``: 1 where the data say nothing, large where they speak.

    A zero row counts as 1; with ``mu = 0`` the ratio is infinite wherever the data constrain.
    """
    ratio = np.ones_like(rigidity)
    told = (square > 0) & (rigidity > 0)
    if mu > 0:
        ratio[told] = rigidity[told] * square[told] / mu
    else:
        ratio[told] = np.inf
    return ratio


@dataclass(frozen=True)
class Environments:
    """What a fit says of n environments."""

    lpr: FloatArray
    """(n,); 0 where an environment is unlike all references of a kernel"""
    prior_ratio: FloatArray
    """(n,)"""
    residual: FloatArray | None
    """(n,) prior variance that the rows do not have, in that of the weights; None: none"""
    unlike: NDArray[np.bool_]
    """(n,) whether an environment is unlike all references of a kernel"""
    energy: FloatArray | None
    """(n,) eV; None without weights"""
    variance: FloatArray
    """(n,) of the energy, per unit of the scale squared: ``1/R + residual/mu``"""
    components: dict[str, FloatArray]
    """(n,) LCPR of each part of the features"""
    committee_variance: FloatArray | None
    """(n,) eV^2, of the energies that a committee's members predict; None: there is none"""


@dataclass(frozen=True)
class Fit:
    """Weights and factored Hessian of one model."""

    model: Model
    mu: float
    whole: Factor | None
    """for rows of structures; None: not at hand"""
    blocks: tuple[Factor, ...]
    """for rows that live in one block of columns: ``(H^-1)_bb``"""
    weights: FloatArray | None
    """(n_columns,) None: the training set has no labels"""
    isolated: FloatArray
    """(n_species,) energies of isolated atoms that stand beside the weights"""
    components: Mapping[str, tuple[Factor, ...]] = field(default_factory=dict)
    """for rows that live in one part of the features, in each block"""
    members: FloatArray | None = None
    """(n_members, n_columns) weights of a committee"""

    @classmethod
    def of(
        cls,
        model: Model,
        mu: float,
        whole: HeldFactor,
        weights: FloatArray | None,
        isolated: FloatArray,
    ) -> Self:
        """With all factors that follow from the whole."""
        blocks = blocks_of(model, whole)
        return cls(model, mu, whole, blocks, weights, isolated, parts_of(model, whole, blocks))

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Plain arrays of factors and weights for a store; `load_fit` reads them back.

        Of a spectral factor the whole alone, which blocks and components are views of. All
        factors must be held in memory.
        """
        held: dict[str, Any] = {} if self.whole is None else {"whole": self.whole}
        if not isinstance(self.whole, SpectralFactor):
            if self.whole is None or len(self.blocks) > 1:
                held |= {_block(number): one for number, one in enumerate(self.blocks)}
            for name, factors in self.components.items():
                held |= {_part(name, number): one for number, one in enumerate(factors)}
        arrays = {
            f"{place}.{key}": value
            for place, factor in held.items()
            for key, value in factor.to_arrays().items()
        }
        weights = {"weights": self.weights, "members": self.members}
        return arrays | {name: one for name, one in weights.items() if one is not None}

    @cached_property
    def spread(self) -> FloatArray | None:
        """(n_columns, n_members) of a committee's weights, see `dlpr.core.committee.spread`."""
        return None if self.members is None else spread(self.members)

    def environments(self, features: FloatArray, species: IntArray, mapped: Mapped) -> Environments:
        """Rigidity, energy and variance of environments.

        Parameters
        ----------
        features : (n, n_features) float64
        species : (n,) int
            Central species, as an index into the descriptor's.
        mapped
            What ``model.mapped`` gave for them.
        """
        n = len(features)
        square, rigidity = np.empty(n), np.empty(n)
        parts = {name: np.empty(n) for name in self.components}
        residual, energy = None, self.isolated[species]
        committee = None if self.spread is None else np.empty(n)
        unlike = np.zeros(n, bool)
        for number, which, own in mapped:
            block, rows = self.model.placed(number, own)
            square[which] = square_norm(rows)
            rigidity[which] = self.blocks[block].rigidity(rows)
            for name, first, last in self.model.map.components if parts else ():
                factor = self.components[name][block]
                parts[name][which] = factor.rigidity(rows[:, first:last])
            own_columns = self.model.layout.slice(block)
            if self.weights is not None:
                energy[which] += rows @ self.weights[own_columns]
            if self.spread is not None and committee is not None:
                committee[which] = committee_variance(rows, self.spread[own_columns])
            if self.model.map.is_sparse:
                residual = np.zeros(n) if residual is None else residual
                residual[which] = self.model.map.residual(features[which], own)
                unlike[which] = ~own.any(axis=1)
        variance = reciprocal(rigidity) + self._unseen(residual)
        rigidity[unlike], square[unlike] = 0.0, 0.0
        ratio = prior_ratio(rigidity, square, self.mu)
        told = energy if self.weights is not None else None
        return Environments(rigidity, ratio, residual, unlike, told, variance, parts, committee)

    def _unseen(self, residual: FloatArray | None) -> FloatArray | float:
        """``residual/mu``: what the sparse model cannot see, beside ``1/R``."""
        if residual is None:
            return 0.0
        if self.mu > 0.0:
            return residual / self.mu
        return np.where(residual > 0.0, np.inf, 0.0)

    def structures(
        self, sums: FloatArray, count: IntArray
    ) -> tuple[FloatArray | None, FloatArray | None, FloatArray]:
        """PR in the model's convention, total energies, and the convention's factors.

        Parameters
        ----------
        sums : (n, model.stored.n_columns) float64
            Rows of environments summed over structures.
        count : (n, n_species) int
            Atoms.

        Returns
        -------
        pr : (n,) float64, or None without a factor of all columns
            0 where all environments are unlike the references of a kernel.
        energy : (n,) float64, or None without weights
            eV
        factor : (n,) float64
            From sums to rows.
        """
        rows, factor = self.model.structures(sums, count)
        pr = None if self.whole is None else self.whole.rigidity(rows)
        if pr is not None and self.model.map.is_sparse:
            pr[~sums.any(axis=1)] = 0.0
        energy = None
        if self.weights is not None:
            energy = rows @ self.weights / factor + count @ self.isolated
        return pr, energy, factor

    def structure_committee(self, sums: FloatArray, count: IntArray) -> FloatArray:
        """Variance (n,) over a committee of total energies, eV^2; parameters as of `structures`."""
        assert self.spread is not None
        rows, factor = self.model.structures(sums, count)
        return committee_variance(rows, self.spread) / np.square(factor)

    def structure_components(self, sums: FloatArray, count: IntArray) -> dict[str, FloatArray]:
        """CPR (n,) of each part of the features; parameters as of `structures`."""
        assert self.whole is not None
        rows, _ = self.model.structures(sums, count)
        found = {}
        for name in self.components:
            masked = np.zeros_like(rows)
            for columns in self.model.component(name):
                masked[:, columns] = rows[:, columns]
            found[name] = self.whole.rigidity(masked)
        return found

    def structure_variance(
        self, pr: FloatArray, factor: FloatArray, residual: FloatArray | None
    ) -> FloatArray:
        """Variance of total energies (n,), per unit of the scale squared.

        ``1/(R factor^2)``, and of a sparse kernel ``(sum_i sqrt(residual_i))^2/mu`` beside it: at
        least the residual of the sum, and equal to it where environments are unlike the references
        in the same way.

        Parameters
        ----------
        pr, factor : (n,) float64
            What `structures` gave.
        residual : (n,) float64, optional
            ``sum_i sqrt(residual_i)`` over the environments of each structure.
        """
        variance = reciprocal(pr)
        if self.model.map.is_sparse and self.mu > 0.0:
            variance[pr == 0.0] = 0.0  # unlike all references: the residual is all there is
        square = None if residual is None else np.square(residual)
        return variance / factor**2 + self._unseen(square)

    def derivatives(self, sums: FloatArray) -> tuple[FloatArray, FloatArray | None]:
        """Rigidity of derivatives of the energy, against the Hessian of all columns.

        What a kernel's references cannot see is not in it.

        Parameters
        ----------
        sums : (n, sum of the map's raw_widths) float64
            Derivatives of summed rows of environments, not finished yet.

        Returns
        -------
        rigidity : (n,) float64
            inf where no feature changes.
        value : (n,) float64, or None without weights
            The derivatives.
        """
        assert self.whole is not None
        n, mapping = len(sums), self.model.map
        blocks = np.split(sums, np.cumsum(mapping.raw_widths)[:-1], axis=1)
        rows = np.hstack([mapping.finish(number, block) for number, block in enumerate(blocks)])
        no_atoms = np.zeros((n, self.model.stored.n_blocks))
        targets = Targets(rows, no_atoms, np.zeros(n), np.ones(n), np.ones(n))
        rows = self.model.chosen(targets)
        value = None if self.weights is None else rows @ self.weights
        return self.whole.rigidity(rows), value

    def derivative_variance(self, sums: FloatArray) -> FloatArray:
        """Variance (n,) of `derivatives`, per unit of the scale squared: ``1/R``."""
        return reciprocal(self.derivatives(sums)[0])

    def gradient(self, species: int, features: FloatArray) -> FloatArray:
        """Gradients (n, n_features) of the energies of environments of one central species, eV."""
        assert self.weights is not None
        block = self.model.layout.slice(0 if self.model.shared else species)
        weights = self.weights[block][: self.model.map.widths[species]]
        return self.model.map.gradient(species, features, weights)


def blocks_of(model: Model, whole: HeldFactor) -> tuple[HeldFactor, ...]:
    """Factors for rows that live in one block of columns, for each block."""
    layout = model.layout
    if layout.n_blocks == 1:
        return (whole,)
    return tuple(whole.block(layout.slice(number)) for number in range(layout.n_blocks))


def parts_of(
    model: Model, whole: Factor | None, blocks: Sequence[HeldFactor]
) -> dict[str, tuple[HeldFactor, ...]]:
    """Factors for rows that live in one part of the features, by its name, for each block.

    A spectral factor's are views of the whole, a triangular one's follow from the blocks'.
    """

    def part(number: int, columns: slice) -> HeldFactor:
        if isinstance(whole, SpectralFactor):
            return whole.block(columns)
        start = model.layout.slice(number).start
        return blocks[number].block(slice(columns.start - start, columns.stop - start))

    return {
        name: tuple(part(number, columns) for number, columns in enumerate(model.component(name)))
        for name, _, _ in model.map.components
    }


def load_fit(
    arrays: Mapping[str, NDArray[Any]], model: Model, mu: float, isolated: FloatArray
) -> Fit:
    """Rebuild a fit from what its ``to_arrays`` gave.

    Raises
    ------
    ValueError
        If there is neither a factor of the whole nor one of each block.
    """

    def held(place: str) -> HeldFactor | None:
        head = f"{place}."
        own = {k.removeprefix(head): v for k, v in arrays.items() if k.startswith(head)}
        return load_factor(own) if own else None

    whole, numbers = held("whole"), range(model.layout.n_blocks)
    blocks = tuple(one for number in numbers if (one := held(_block(number))))
    if not blocks and whole is not None:
        blocks = blocks_of(model, whole)
    if len(blocks) != len(numbers):
        raise ValueError(f"it has factors of {len(blocks)} of {len(numbers)} blocks")
    stored = {
        name: tuple(one for number in numbers if (one := held(_part(name, number))))
        for name, _, _ in model.map.components
    }
    components = stored if all(stored.values()) else parts_of(model, whole, blocks)
    weights, members = arrays.get("weights"), arrays.get("members")
    return Fit(model, mu, whole, blocks, weights, isolated, components, members)


def _block(number: int) -> str:
    """Name in a store of the factor of a block."""
    return f"block{number}"


def _part(name: str, number: int) -> str:
    """Name in a store of the factor of a part of the features in a block: no part's has an @."""
    return f"@{name}@{number}"
