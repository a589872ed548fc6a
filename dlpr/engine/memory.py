"""Memory of every task, promised before the run: a process's own, and what a task adds to it.

Constants are measured upper bounds (Linux, Python 3.11 to 3.13, NumPy 2, featomic 0.6).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from dlpr.core.kernel import STRIP_ROWS as KERNEL_ROWS
from dlpr.core.models import FeatureMap
from dlpr.core.sampling import CANDIDATES_NBYTES
from dlpr.descriptors import Descriptor
from dlpr.descriptors.gradients import STRIP_NBYTES, derivative_nbytes
from dlpr.engine.factor_size import MIB, FactorSize
from dlpr.errors import ResourceError
from dlpr.stages import ingest as ingest_stage
from dlpr.stages.derivatives import PART_NBYTES
from dlpr.stages.features import ROWS_NBYTES
from dlpr.stages.forces import SOLVE_ROWS as FORCE_ROWS
from dlpr.stages.result import CHUNK_ROWS
from dlpr.stages.sample import BATCH as SAMPLE_BATCH
from dlpr.stages.sample import drawn_count
from dlpr.stages.scan import BATCH as SCAN_BATCH
from dlpr.stages.targets import BATCH as TARGET_BATCH
from dlpr.store.folder import StageFolder
from dlpr.structures.spatial import SORTED_FRAME_ATOMS
from dlpr.units import format_bytes

BASE_NBYTES = (256 + 192 * bool(find_spec("torch"))) * MIB
"""A worker with all libraries loaded, and its cache of structures (`CACHED_NBYTES`, 8 MiB).
metatensor, which featomic needs, loads torch wherever it is installed."""
INDEX_NBYTES = 48 * MIB
"""Text of a file under its scan for frames."""
ATOM_NBYTES = 700
"""Ingest, per atom of a run of frames: positions, labels, sorting, the check of distances."""
TEXT_NBYTES = 96 * MIB
"""ASE's parser on one block of rows, whose numbers are Python objects."""
DENSITY = 0.2
"""Atoms per Å³ that are reckoned with where frames are thinner: diamond has 0.18."""
RAGGED = 1.6
"""Atoms around a block of a large frame, over those around a cube of as many centres."""
DECOMPOSED_COPIES = 8
"""Matrices of all columns that a decomposition holds at once."""
RESULT_NBYTES = 256
"""Result stage, per environment of a chunk: all arrays, and one with its copy on the way."""
WHITENED_COPIES = 8
"""Rows of all columns that are held while as many are whitened, at most."""
STRUCTURE_NBYTES = 336
"""Result and cross-validation, per structure: all arrays over structures."""


def tasks_at_once(task_nbytes: int, memory_per_worker: int, threads: int) -> int:
    """How many tasks of a size a worker runs at once.

    Raises
    ------
    ResourceError
        If not even one fits.
    """
    free = memory_per_worker - BASE_NBYTES
    if free < task_nbytes:
        raise ResourceError(
            f"memory_per_worker is {format_bytes(memory_per_worker)}; one task needs "
            f"{format_bytes(task_nbytes)} beside the process's own "
            f"{format_bytes(BASE_NBYTES)}: at least "
            f"{format_bytes(task_nbytes + BASE_NBYTES)}. Use fewer workers with more "
            f"memory each, or lower numerics.block_environments."
        )
    return min(threads, free // max(1, task_nbytes))


def ingest_nbytes(largest_frame: int) -> int:
    """One run of frames as text, as records, as arrays."""
    return TEXT_NBYTES + ATOM_NBYTES * max(ingest_stage.TASK_ATOMS, largest_frame)


@dataclass(frozen=True)
class Crowd:
    """What the memory of a descriptor depends on beside its hyperparameters.

    Attributes
    ----------
    largest_frame : int
        Atoms.
    density : float
        Atoms per Å³ of the densest periodic frame.
    n_structures : int
    volume : float
        Å³ of the largest cell that is periodic in all directions.
    """

    largest_frame: int
    density: float
    n_structures: int
    volume: float = 0.0


def block_nbytes(calculator: Descriptor, block: int, crowd: Crowd) -> int:
    """A block of features while it is computed, its neighbours and halo included."""
    density, cutoff = max(crowd.density, DENSITY), calculator.cutoff
    n_atoms = crowd.largest_frame
    if n_atoms > SORTED_FRAME_ATOMS and np.isfinite(cutoff):
        n_atoms = int(RAGGED * density * ((block / density) ** (1 / 3) + 2 * cutoff) ** 3)
    return calculator.compute_nbytes(block, n_atoms, density, crowd.volume)


@dataclass(frozen=True)
class MapSize:
    """What the memory of a feature map depends on.

    Attributes
    ----------
    n_columns : int
        Of the rows' sums, a block for each central species.
    widest : int
        Columns of the largest block; of its references if there are more.
    n_references : int
        Of all central species; 0 where features are rows.
    """

    n_columns: int
    widest: int
    n_references: int = 0

    @classmethod
    def of(cls, mapping: FeatureMap) -> MapSize:
        """That of a feature map at hand."""
        widest = max((*mapping.widths, *mapping.raw_widths))
        n_references = sum(mapping.raw_widths) if mapping.is_sparse else 0
        return cls(sum(mapping.widths), widest, n_references)

    def nbytes(self, n_features: int, block: int) -> int:
        """References, and a block of environments on its way through them."""
        if not self.n_references:
            return 0
        held = self.n_references * (n_features + self.widest)
        strips = KERNEL_ROWS * (3 * self.widest + 2 * n_features)
        return 8 * (held + block * (n_features + self.widest) + strips)


def rows_nbytes(
    calculator: Descriptor, size: MapSize, block: int, crowd: Crowd, n_rows: int
) -> int:
    """A block of features and the rows of the structures of a task."""
    mapped = size.nbytes(calculator.n_features, block)
    return block_nbytes(calculator, block, crowd) + mapped + 3 * 8 * size.n_columns * n_rows


def references_nbytes(
    calculator: Descriptor,
    block: int,
    task: int,
    crowd: Crowd,
    n_environments: int,
    counts: Sequence[int],
) -> int:
    """Candidates, features of a task, numbers and distances of all, K_MM with its eigenvectors.

    Scores need a Gram matrix of the features. ``counts`` are the references of each species.
    """
    d, most = calculator.n_features, max(counts)
    candidates = min(CANDIDATES_NBYTES, 8 * n_environments * d)
    held = (2 * task + 4 * block) * d + sum(counts) * (d + most)
    made = 10 * n_environments + 6 * most**2 + 2 * most * d + 6 * d**2
    return block_nbytes(calculator, block, crowd) + candidates + 8 * (held + made)


def _derivative_rows(crowd: Crowd, forces: bool, stress: bool) -> int:
    """Most rows of one structure, or of the part of a large one that is in a task."""
    return 3 * min(crowd.largest_frame, SORTED_FRAME_ATOMS) * forces + 6 * stress


def derivative_part_nbytes(n_columns: int, crowd: Crowd, *, forces: bool, stress: bool) -> int:
    """The largest part of the rows of forces and stresses, if all structures have them."""
    return max(PART_NBYTES, 8 * n_columns * _derivative_rows(crowd, forces, stress))


def fold_nbytes(n_columns: int, tile_columns: int, block_rows: int, part_nbytes: int) -> int:
    """A tile, the block that is folded into it, and parts of the rows.

    Of ``part_nbytes``, the largest part of rows of forces and stresses, there are two mapped, and
    what is taken out of one or put together.
    """
    width = min(n_columns, tile_columns)
    blocks = block_rows * (4 * width + 2 * n_columns)
    return 8 * (2 * width**2 + blocks) + max(ROWS_NBYTES, 3 * part_nbytes)


def rigidity_nbytes(
    calculator: Descriptor, size: FactorSize, mapping: MapSize, block: int, task: int, crowd: Crowd
) -> int:
    """Factor and committee, a block of features, its solution, rows of a task's structures."""
    n_sums = mapping.n_columns
    rows = 2 * 8 * block * (n_sums + calculator.n_features + size.n_members)
    rows += mapping.nbytes(calculator.n_features, block)
    solved = 3 * 8 * size.solve_rows * n_sums
    structures = 8 * n_sums * min(task, crowd.n_structures)
    structures = 3 * (structures if mapping.n_references else min(ROWS_NBYTES, structures))
    computed = block_nbytes(calculator, block, crowd)
    return size.nbytes + size.members_nbytes + computed + rows + solved + structures


def decomposition_nbytes(n_columns: int, n_rows: int | None = None) -> int:
    """A fold put together and decomposed; or so few rows, if they are not folded."""
    if n_rows is not None:
        return DECOMPOSED_COPIES * 8 * n_columns * n_rows + ROWS_NBYTES + 64 * MIB
    return DECOMPOSED_COPIES * 8 * (n_columns + 1) ** 2 + 64 * MIB


def cross_validation_nbytes(size: FactorSize, part_nbytes: int, n_structures: int) -> int:
    """A fit, the rows of a fold and what is solved of them; or arrays over structures at last."""
    rows = 2 * max(ROWS_NBYTES, 3 * part_nbytes)
    return size.factorize_nbytes + rows + STRUCTURE_NBYTES * n_structures


def scan_nbytes(
    calculator: Descriptor,
    mapping: MapSize,
    crowd: Crowd,
    n_columns: int,
    rank: int,
    n_mu: int,
    part_nbytes: int,
) -> int:
    """A basis as it lies and as it is taken to pieces, weights, rows, and features of a batch.

    ``part_nbytes`` as for `fold_nbytes`.
    """
    held = 8 * n_columns * (2 * rank + 3 * n_mu)
    rows = 3 * max(ROWS_NBYTES, part_nbytes) + 6 * 8 * SCAN_BATCH * mapping.n_columns
    return held + rows + _some_nbytes(calculator, mapping, SCAN_BATCH, crowd)


def _some_nbytes(calculator: Descriptor, mapping: MapSize, batch: int, crowd: Crowd) -> int:
    """Rows of environments from here and there, each in a frame or a cut of its own."""
    n_atoms = crowd.largest_frame
    if np.isfinite(calculator.cutoff):
        n_atoms = min(n_atoms, SORTED_FRAME_ATOMS)
    frames = 64 * batch * n_atoms
    mapped = mapping.nbytes(calculator.n_features, batch)
    return mapped + frames + block_nbytes(calculator, batch, crowd)


def whitened_nbytes(size: FactorSize, mapping: MapSize, n_rows: int) -> int:
    """The factor, sums of some structures, and their rows on the way through it."""
    columns = 3 * mapping.n_columns + WHITENED_COPIES * size.layout.n_columns
    return size.nbytes + 8 * n_rows * columns + 64 * MIB


def targets_nbytes(
    calculator: Descriptor,
    size: FactorSize,
    mapping: MapSize,
    crowd: Crowd,
    count: int,
    task: int,
) -> int:
    """What is known of the environments of a task, and some of them as they are whitened."""
    some = _some_nbytes(calculator, mapping, TARGET_BATCH, crowd)
    return whitened_nbytes(size, mapping, count) + some + 64 * (task + count)


def proposal_nbytes(n_columns: int, n_candidates: int, largest_part: int, n_targets: int) -> int:
    """Rows of candidates, copies of those of one part, targets, and products of all with these."""
    rows = n_candidates * n_columns + 4 * largest_part * (n_columns + n_targets)
    products = n_candidates * (n_targets + 8)
    return 8 * (rows + products + 6 * n_targets * n_columns) + 64 * MIB


def _gradient_nbytes(
    calculator: Descriptor, raw_widths: Sequence[int], crowd: Crowd, forces: bool, stress: bool
) -> int:
    """Rows of the forces on the atoms of a task of one structure, or its stress."""
    density, cutoff = max(crowd.density, DENSITY), calculator.cutoff
    n_atoms, n_around = min(crowd.largest_frame, SORTED_FRAME_ATOMS), crowd.largest_frame
    if n_around > n_atoms and np.isfinite(cutoff) and not stress:
        n_around = int(RAGGED * density * ((n_atoms / density) ** (1 / 3) + 4 * cutoff) ** 3)
    sizes = (_derivative_rows(crowd, forces, stress), n_around, density, crowd.volume)
    return derivative_nbytes(calculator, *sizes, raw_widths, forces=forces, stress=stress)


def derivatives_nbytes(
    calculator: Descriptor,
    mapping: MapSize,
    raw_widths: Sequence[int],
    crowd: Crowd,
    *,
    forces: bool,
    stress: bool,
) -> int:
    """Rows of a structure or of a part of it, finished and put together with others."""
    one = _gradient_nbytes(calculator, raw_widths, crowd, forces, stress)
    rows = 8 * _derivative_rows(crowd, forces, stress) * (sum(raw_widths) + 2 * mapping.n_columns)
    strips = 3 * STRIP_NBYTES if mapping.n_references else 0
    return one + rows + strips + 3 * PART_NBYTES + mapping.nbytes(calculator.n_features, 0)


def forces_nbytes(
    calculator: Descriptor,
    size: FactorSize,
    mapping: MapSize,
    raw_widths: Sequence[int],
    crowd: Crowd,
) -> int:
    """The factor, gradients of a batch, rows of the atoms of a task, and some that are solved."""
    one = _gradient_nbytes(calculator, raw_widths, crowd, forces=True, stress=False)
    strips = 3 * STRIP_NBYTES + mapping.nbytes(calculator.n_features, 0)
    solved = 8 * FORCE_ROWS * (4 * sum(raw_widths) + 5 * mapping.n_columns)
    n_atoms = min(crowd.largest_frame, SORTED_FRAME_ATOMS, 3 * FORCE_ROWS)
    joined = 2 * 8 * 3 * n_atoms * sum(raw_widths)
    return size.nbytes + one + strips + solved + joined


def result_nbytes(size: FactorSize, n_structures: int) -> int:
    """A chunk of every array; or arrays over structures, and the factor for those cut by tasks."""
    rows = 2 * min(ROWS_NBYTES, 8 * size.layout.n_columns * n_structures)
    structures = size.nbytes + size.members_nbytes + rows + STRUCTURE_NBYTES * n_structures
    return max(RESULT_NBYTES * CHUNK_ROWS, structures)


def sample_nbytes(calculator: Descriptor, mapping: MapSize, crowd: Crowd, count: int) -> int:
    """Features that are drawn, of tests and training, and picks among them; rows of the picks."""
    d, block = calculator.n_features, min(SAMPLE_BATCH, drawn_count(calculator.n_features))
    n_atoms = crowd.largest_frame
    if np.isfinite(calculator.cutoff):
        n_atoms = min(n_atoms, SORTED_FRAME_ATOMS)
    held = 6 * drawn_count(d) * d + 2 * count * (4 * max(d, mapping.n_columns) + 6 * count)
    mapped = mapping.nbytes(d, 2 * count)
    return 8 * held + mapped + 64 * block * n_atoms + block_nbytes(calculator, block, crowd)


def crowd_of(structures: StageFolder) -> Crowd:
    """How crowded the frames of a finished set are."""
    facts = [receipt.facts for receipt in structures.receipts()]
    return Crowd(
        max(f["largest_frame"] for f in facts),
        max(f["density"] for f in facts),
        sum(f["n_structures"] for f in facts),
        max(f["volume"] for f in facts),
    )
