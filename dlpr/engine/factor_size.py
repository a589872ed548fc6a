"""What a factorization and its use take of a process's memory."""

from __future__ import annotations

from dataclasses import dataclass

from dlpr.core.rows import Layout
from dlpr.core.substitution import LEAF, PART_ROWS
from dlpr.stages.features import ROWS_NBYTES
from dlpr.stages.rigidity import TILED_ROWS

MIB = 1 << 20


def takes_basis(solver: str, regularizer: float) -> bool:
    """Whether a factorization may look for eigenvectors."""
    return solver in ("auto", "eigh") or regularizer == 0.0


@dataclass(frozen=True)
class FactorSize:
    """What the memory of a factorization and of its use depends on.

    Attributes
    ----------
    form : str
        See `dlpr.stages.fold.form_of`.
    layout : Layout
        Columns that are folded.
    n_rows : int
        Of the loss.
    tile_columns : int
    n_components : int
        Parts of every block that have factors of their own as well.
    takes_basis : bool
        Whether eigenvectors may be looked for.
    n_members : int
        Of a committee that uses it; 0: there is none.
    """

    form: str
    layout: Layout
    n_rows: int
    tile_columns: int
    n_components: int = 0
    takes_basis: bool = False
    n_members: int = 0

    @property
    def nbytes(self) -> int:
        """The factor as a worker maps it and takes it to pieces: all of it, or two tiles."""
        n_columns = self.layout.n_columns
        if self.form == "tiles":
            return 2 * 8 * min(self.tile_columns, n_columns) ** 2
        if self.form == "rows":
            return self.on_disk_nbytes
        pieces = self.on_disk_nbytes // 2 + 8 * (LEAF // 2) * n_columns
        return self.on_disk_nbytes + pieces + 8 * PART_ROWS * n_columns

    @property
    def on_disk_nbytes(self) -> int:
        """All of the factor: in tiles, once for every block that comes last."""
        n_columns, widths = self.layout.n_columns, self.layout.widths
        if self.form == "tiles":
            return 4 * len(widths) * n_columns**2
        blocks = widths if len(widths) > 1 else ()
        if self.form == "rows":
            return 8 * n_columns * min(self.n_rows, n_columns)
        blocks += widths if self.n_components else ()
        return 8 * (n_columns**2 + sum(width**2 for width in blocks))

    @property
    def factorize_nbytes(self) -> int:
        """Partials combined and factorized."""
        n_columns = self.layout.n_columns
        if self.form == "tiles":
            return 5 * 8 * self.tile_columns**2 + 64 * MIB
        if self.form == "rows":
            return self.nbytes + 4 * 8 * n_columns * self.n_rows + ROWS_NBYTES + 64 * MIB
        copies = 9 if self.takes_basis else 6
        return 2 * self.on_disk_nbytes + copies * 8 * n_columns**2 + 64 * MIB

    @property
    def members_nbytes(self) -> int:
        """Weights of a committee, their mean taken off, and copies on the way there."""
        return 4 * 8 * self.n_members * self.layout.n_columns

    @property
    def draw_nbytes(self) -> int:
        """Members drawn with the factor at hand."""
        return self.nbytes + 2 * self.members_nbytes + 64 * MIB

    @property
    def solve_rows(self) -> int:
        """Rows that are held while they are solved at once."""
        return TILED_ROWS if self.form == "tiles" else 0
