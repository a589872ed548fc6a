"""Models: environments to rows, sums of them to rows of structures, and what is folded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from dlpr.core.rows import FloatArray, IntArray, Layout, row_factor, sum_rows

Which = slice | NDArray[np.bool_]


class FeatureMap(Protocol):
    """From features x to rows phi(x) of a model that is linear in its weights.

    Every central species has a block of columns of its own.
    """

    @property
    def widths(self) -> tuple[int, ...]:
        """Columns of the block of each central species."""

    def map(self, species: int, features: FloatArray) -> FloatArray:
        """Rows (n, widths[species]) of environments of one central species, given as its index."""

    @property
    def components(self) -> tuple[tuple[str, int, int], ...]:
        """Parts of the columns of every block: name, first column, column behind the last."""

    @property
    def error(self) -> float:
        """Relative error of rigidities that the map brings with it."""

    @property
    def raw_widths(self) -> tuple[int, ...]:
        """Columns of each species' block in derivatives that are not finished yet."""

    def derivative(
        self, species: int, features: FloatArray, tangent: FloatArray, centre: IntArray
    ) -> FloatArray:
        """Derivatives (t, raw_widths[species]) along tangents dx, each of a centre's features."""

    def finish(self, species: int, sums: FloatArray) -> FloatArray:
        """Sums of derivatives in the columns of the rows, (n, widths[species])."""

    def gradient(self, species: int, features: FloatArray, weights: FloatArray) -> FloatArray:
        """Gradients (n, n_features) of ``phi(x).w`` for weights (widths[species],)."""

    @property
    def is_sparse(self) -> bool:
        """Whether rows have less variance than the prior gives an environment."""

    def residual(self, features: FloatArray, mapped: FloatArray) -> FloatArray:
        """What they lack of it (n,), in the prior variance of the weights."""


@dataclass(frozen=True)
class Identity:
    """``phi(x) = x``: linear models (JCTC23 eq. 12-14).

    Attributes
    ----------
    n_features, n_species : int
    components : tuple of (str, int, int)
        Name, first column and column behind the last of every part of the features; none where
        they are of one piece.
    """

    n_features: int
    n_species: int
    components: tuple[tuple[str, int, int], ...] = ()

    @classmethod
    def of(cls, n_species: int, parts: Mapping[str, slice]) -> Self:
        """For features that are made of parts, one or more, which together are all columns."""
        found = [(name, columns.start, columns.stop) for name, columns in parts.items()]
        return cls(found[-1][2], n_species, tuple(found) if len(found) > 1 else ())

    @property
    def widths(self) -> tuple[int, ...]:
        """Columns of the block of each central species."""
        return (self.n_features,) * self.n_species

    def map(self, species: int, features: FloatArray) -> FloatArray:
        """Features as they are."""
        return features

    @property
    def error(self) -> float:
        """None beyond the features' own."""
        return 0.0

    @property
    def raw_widths(self) -> tuple[int, ...]:
        """As `widths`."""
        return self.widths

    def derivative(
        self, species: int, features: FloatArray, tangent: FloatArray, centre: IntArray
    ) -> FloatArray:
        """Tangents as they are."""
        return tangent

    def finish(self, species: int, sums: FloatArray) -> FloatArray:
        """Sums as they are."""
        return sums

    def gradient(self, species: int, features: FloatArray, weights: FloatArray) -> FloatArray:
        """The weights themselves."""
        return np.broadcast_to(weights, (len(features), self.n_features))

    @property
    def is_sparse(self) -> bool:
        """Rows are all that there is."""
        return False

    def residual(self, features: FloatArray, mapped: FloatArray) -> FloatArray:
        """Nothing is left."""
        return np.zeros(len(features))


@dataclass(frozen=True)
class Targets:
    """Rows of a loss before its weights: what tasks store, and folds take.

    Attributes
    ----------
    rows : (n, sum of the map's widths) float64
    count : (n, n_species) float64
        Atoms of each central species; 0 in rows of derivatives.
    y : (n,) float64
        The label, NaN where unknown.
    factor : (n,) float64
        By which all these are to be multiplied, so that the label is that of the loss.
    weight : (n,) float64
        Of each row in the loss, beside lambda: it counts so often, whatever its residual.
    structure : (n,) int, optional
        Whose row each is, as a number in its set.
    """

    rows: FloatArray
    count: FloatArray
    y: FloatArray
    factor: FloatArray
    weight: FloatArray
    structure: IntArray | None = None

    @property
    def scale(self) -> FloatArray:
        """(n,) by which a row enters G of ``G^T G``: its factor times the root of its weight."""
        scale: FloatArray = self.factor * np.sqrt(self.weight)
        return scale


@dataclass(frozen=True)
class Model:
    """A feature map, and what a job says of its columns.

    What is folded has all columns that some model of the map may want: each block of weights ends
    with the number of atoms (of each species, where they share the block), whose weight is an
    energy per atom; and the last column of all is the target. A model's own columns are some of
    them (`columns`).

    Attributes
    ----------
    map : FeatureMap
    rows : {"mean", "sum", "sqrt"}
        See `row_factor`.
    shared : bool
        Whether all central species share one block of weights.
    constant : float
        What stands in the columns of energies per atom in the place of 1, so that one regularizer
        serves all columns: sqrt(mu / mu of these energies). 0: the model has no such columns.
    """

    map: FeatureMap
    rows: str
    shared: bool = False
    constant: float = 0.0

    @property
    def stored(self) -> Layout:
        """Columns of the stored sums, a block per central species."""
        return Layout(self.map.widths)

    @property
    def layout(self) -> Layout:
        """Columns of the model's rows."""
        return Layout(self._widths(self._n_constants if self.constant else 0))

    @property
    def folded(self) -> Layout:
        """Columns of what is folded, but for the target."""
        return Layout(self._widths(self._n_constants))

    @property
    def columns(self) -> IntArray:
        """(layout.n_columns,) the model's columns among those that are folded."""
        folded = self.folded
        wanted = [
            np.arange(folded.slice(block).start, folded.slice(block).start + width)
            for block, width in enumerate(self.layout.widths)
        ]
        return np.concatenate(wanted)

    @property
    def constants(self) -> IntArray:
        """(n_species,) columns of energies per atom among those that are folded."""
        n, folded = self._n_constants, self.folded
        stops = [folded.slice(block).stop for block in range(folded.n_blocks)]
        return np.concatenate([np.arange(stop - n, stop) for stop in stops])

    @property
    def scale(self) -> FloatArray:
        """(layout.n_columns,) factor of each column."""
        scale = np.ones(self.layout.n_columns)
        if self.constant:
            for block in range(self.layout.n_blocks):
                stop = self.layout.slice(block).stop
                scale[stop - self._n_constants : stop] = self.constant
        return scale

    def component(self, name: str) -> list[slice]:
        """The columns of a part of the features, in every block of the model."""
        first, last = next((a, b) for known, a, b in self.map.components if known == name)
        starts = [self.layout.slice(block).start for block in range(self.layout.n_blocks)]
        return [slice(start + first, start + last) for start in starts]

    @property
    def _n_constants(self) -> int:
        """Columns of energies per atom in a block."""
        return len(self.map.widths) if self.shared else 1

    def _widths(self, n_constants: int) -> tuple[int, ...]:
        widths = self.map.widths[:1] if self.shared else self.map.widths
        return tuple(width + n_constants for width in widths)

    def mapped(
        self, features: FloatArray, species: IntArray
    ) -> Iterator[tuple[int, Which, FloatArray]]:
        """The map's rows of environments, by central species.

        Parameters
        ----------
        features : (n, n_features) float64
        species : (n,) int
            Central species, as an index into the descriptor's.

        Yields
        ------
        number : int
            The central species.
        which : slice or (n,) bool
            Its environments.
        rows : (m, map.widths[number]) float64
        """
        for number in np.unique(species).tolist():
            own = species == number
            if own.all():
                yield number, slice(None), self.map.map(number, features)
            else:
                yield number, own, self.map.map(number, features[own])

    def add_sums(
        self, sums: FloatArray, mapped: Iterable[tuple[int, Which, FloatArray]], structure: IntArray
    ) -> None:
        """Add rows of environments to those of their structures.

        Parameters
        ----------
        sums : (n_structures, stored.n_columns) float64
            Added to.
        mapped
            What `mapped` gives of n environments.
        structure : (n,) int
            Structure of each environment, counted from 0.
        """
        for number, which, rows in mapped:
            sums[:, self.stored.slice(number)] += sum_rows(rows, structure[which], len(sums))

    def placed(self, number: int, rows: FloatArray) -> tuple[int, FloatArray]:
        """The block in which rows of one central species live, and all its columns of them."""
        if self.constant:
            own = np.zeros((len(rows), self._n_constants))
            own[:, number if self.shared else 0] = self.constant
            rows = np.hstack([rows, own])
        return (0 if self.shared else number), rows

    def sides(self, targets: Targets) -> list[FloatArray]:
        """What is folded of some targets, side by side; not multiplied by their factors."""
        blocks = [targets.rows[:, self.stored.slice(k)] for k in range(self.stored.n_blocks)]
        y = np.nan_to_num(targets.y)[:, None]
        if self.shared:
            total = blocks[0].copy()  # one by one: stacked, they would take as much again
            for block in blocks[1:]:
                total += block
            return [total, targets.count, y]
        counts = [targets.count[:, k : k + 1] for k in range(len(blocks))]
        return [*(side for pair in zip(blocks, counts, strict=True) for side in pair), y]

    def structures(self, sums: FloatArray, count: IntArray) -> tuple[FloatArray, FloatArray]:
        """Rows of structures in the model's convention.

        Parameters
        ----------
        sums : (n, stored.n_columns) float64
        count : (n, n_species) int
            Atoms.

        Returns
        -------
        rows : (n, layout.n_columns) float64
        factor : (n,) float64
            Of the convention, already in the rows.
        """
        nothing = np.zeros(len(sums))
        targets = energies(sums, count, nothing, nothing, self.rows)
        return self.chosen(targets), targets.factor

    def chosen(self, targets: Targets) -> FloatArray:
        """The model's own rows (n, layout.n_columns) of some targets, times their factors."""
        factor, sides = targets.factor[:, None], self.sides(targets)[:-1]
        if self.constant:
            rows = np.concatenate(sides, axis=1)
            rows *= factor * self.scale
        else:  # all but the numbers of atoms
            rows = np.concatenate(sides[::2], axis=1)
            rows *= factor
        return rows


def energies(
    sums: FloatArray, count: IntArray, energy: FloatArray, weight: FloatArray, convention: str
) -> Targets:
    """Targets of total energies (n,), from sums over structures and their atoms (n, n_species)."""
    factor = row_factor(count.sum(axis=1), convention)
    return Targets(sums, count.astype(np.float64), energy, factor, weight)


def joined(pieces: Sequence[Targets]) -> Targets:
    """Targets one after the other, without the numbers of their structures."""
    if len(pieces) == 1:
        return pieces[0]
    names = ("rows", "count", "y", "factor", "weight")
    return Targets(*(np.concatenate([getattr(piece, name) for piece in pieces]) for name in names))
