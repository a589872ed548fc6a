"""Memory of every task, promised before the run: a process's own, and what a task adds to it.

Constants are measured upper bounds (Linux, Python 3.11 to 3.13, NumPy 2, featomic 0.6).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from dlpr.core.kernel import STRIP_ROWS as KERNEL_ROWS
from dlpr.core.models import FeatureMap
from dlpr.core.rows import Layout
from dlpr.core.substitution import LEAF, PART_ROWS
from dlpr.descriptors import Descriptor, Soap
from dlpr.descriptors.gradients import STRIP_NBYTES, derivative_nbytes
from dlpr.errors import ResourceError
from dlpr.stages import ingest as ingest_stage
from dlpr.stages.derivatives import PART_NBYTES
from dlpr.stages.features import ROWS_NBYTES, open_descriptor, task_edges
from dlpr.stages.fold import tiling_of
from dlpr.stages.model import open_map, open_model
from dlpr.stages.references import CACHED_BLOCKS as REFERENCE_BLOCKS
from dlpr.stages.result import CHUNK_ROWS
from dlpr.stages.rigidity import TILED_ROWS
from dlpr.stages.sources import kinds_of, sources_of
from dlpr.stages.structures import open_structures
from dlpr.store.folder import StageFolder
from dlpr.structures.spatial import SORTED_FRAME_ATOMS
from dlpr.units import format_bytes

MIB = 1 << 20
BASE_NBYTES = (256 + 192 * bool(find_spec("torch"))) * MIB
"""A worker with all libraries loaded, and its caches of structures. metatensor, which featomic
needs, loads torch wherever it is installed."""
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
RESULT_NBYTES = 160
"""Result stage, per environment of a chunk, or of the largest frame stored by space."""


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
    """Features of some tasks, distances or scores of all, and K_MM with its eigenvectors.

    Scores need a Gram matrix of the features. ``counts`` are the references of each species.
    """
    d, most = calculator.n_features, max(counts)
    held = (REFERENCE_BLOCKS + 2) * task * d + sum(counts) * (d + most)
    made = 6 * n_environments + 6 * most**2 + 2 * most * d + 6 * d**2
    return block_nbytes(calculator, block, crowd) + 8 * (held + made)


def fold_nbytes(n_columns: int, tile_columns: int, block_rows: int) -> int:
    """A tile, the block that is folded into it, and a part of the rows, mapped and put together."""
    width = min(n_columns, tile_columns)
    blocks = block_rows * (4 * width + 2 * n_columns)
    return 8 * (2 * width**2 + blocks) + ROWS_NBYTES


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
    is_singular : bool
        Whether the regularizer is 0, which takes the whole spectrum.
    """

    form: str
    layout: Layout
    n_rows: int
    tile_columns: int
    n_components: int = 0
    is_singular: bool = False

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
            n_copies = 1 + len(blocks) + self.n_components * len(widths)
            return 8 * n_copies * n_columns * min(self.n_rows, n_columns)
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
        copies = 9 if self.is_singular else 6
        return 2 * self.on_disk_nbytes + copies * 8 * n_columns**2 + 64 * MIB

    @property
    def solve_rows(self) -> int:
        """Rows that are held while they are solved at once."""
        return TILED_ROWS if self.form == "tiles" else 0


def rigidity_nbytes(
    calculator: Descriptor, size: FactorSize, mapping: MapSize, block: int, task: int, crowd: Crowd
) -> int:
    """The factor, a block of features, its solution, and the rows of a task's structures."""
    n_sums = mapping.n_columns
    rows = 2 * 8 * block * (n_sums + calculator.n_features)
    rows += mapping.nbytes(calculator.n_features, block)
    solved = 3 * 8 * size.solve_rows * n_sums
    structures = 8 * n_sums * min(task, crowd.n_structures)
    structures = 3 * (structures if mapping.n_references else min(ROWS_NBYTES, structures))
    computed = block_nbytes(calculator, block, crowd)
    return size.nbytes + computed + rows + solved + structures


def result_nbytes(size: FactorSize, largest_frame: int, n_structures: int) -> int:
    """Arrays of some chunks, or of a frame that is put back in source order, and the factor."""
    rows = 2 * min(ROWS_NBYTES, 8 * size.layout.n_columns * n_structures)
    return size.nbytes + rows + RESULT_NBYTES * max(2 * CHUNK_ROWS, largest_frame)


def task_nbytes(folder: StageFolder) -> int:
    """What one task of a stage adds to its process at most, in bytes."""
    return _TASK[folder.stage](folder)


def _ingest(folder: StageFolder) -> int:
    index = folder.input("index")
    largest = 0
    for number in range(index.n_tasks):
        part = index.read_part(number, ("n_atoms", "selected"))
        largest = max(largest, int(part["n_atoms"][part["selected"]].max(initial=0)))
    return ingest_nbytes(largest)


def crowd_of(structures: StageFolder) -> Crowd:
    """How crowded the frames of a finished set are."""
    facts = [receipt.facts for receipt in structures.receipts()]
    return Crowd(
        max(f["largest_frame"] for f in facts),
        max(f["density"] for f in facts),
        sum(f["n_structures"] for f in facts),
        max(f["volume"] for f in facts),
    )


def _features(folder: StageFolder) -> int:
    settings, crowd = folder.settings, crowd_of(folder.input("structures"))
    calculator = open_descriptor(settings["descriptor"])
    return block_nbytes(calculator, settings["block_environments"], crowd)


def _rows(folder: StageFolder) -> int:
    features = folder.settings["features"]
    edges = task_edges(folder.input("structures"), features)
    offset = open_structures(folder.input("structures")).structure_offset
    first = np.searchsorted(offset, edges[:-1], side="right")
    last = np.searchsorted(offset, edges[1:], side="left")
    calculator = open_descriptor(features["descriptor"])
    n_rows = int((last - first).max()) + 1
    crowd = crowd_of(folder.input("structures"))
    size = MapSize.of(open_map(folder))
    return rows_nbytes(calculator, size, features["block_environments"], crowd, n_rows)


def _references(folder: StageFolder) -> int:
    settings, structures = folder.settings, folder.input("structures")
    features, spec = settings["features"], settings["kernel"]["references"]
    n = open_structures(structures).n_environments
    calculator = open_descriptor(features["descriptor"])
    count = len(spec["indices"]) if spec["indices"] is not None else spec["count"] or n
    counts = list(count.values()) if isinstance(count, dict) else [count] * len(calculator.species)
    return references_nbytes(
        calculator,
        features["block_environments"],
        features["task_environments"],
        crowd_of(structures),
        n,
        [min(n, own) for own in counts],
    )


def _derivatives(folder: StageFolder) -> int:
    settings, crowd = folder.settings, crowd_of(folder.input("structures"))
    calculator, mapping = open_descriptor(settings["features"]["descriptor"]), open_map(folder)
    assert isinstance(calculator, Soap)
    density = max(crowd.density, DENSITY)
    kinds = {kind: kind in settings["kinds"] for kind in ("forces", "stress")}
    widths = mapping.raw_widths
    n_atoms = crowd.largest_frame
    one = derivative_nbytes(
        calculator, n_atoms, density * 4 / 3 * np.pi * calculator.cutoff**3, widths, **kinds
    )
    rows = 8 * (3 * n_atoms + 6) * (sum(mapping.raw_widths) + 2 * sum(mapping.widths))
    strips = 3 * STRIP_NBYTES if mapping.is_sparse else 0
    return (
        one + rows + strips + 3 * PART_NBYTES + MapSize.of(mapping).nbytes(calculator.n_features, 0)
    )


def _fold(folder: StageFolder) -> int:
    settings = folder.settings
    model = open_model(folder.input("rows"), settings["model"])
    width, block_rows = (
        max(tiling_of(model, settings).widths),
        settings["numerics"]["fold_block_rows"],
    )
    return fold_nbytes(model.folded.n_columns + 1, width, block_rows)


def _factor_size(factor: StageFolder) -> FactorSize:
    """Of a planned "factor" or "cholesky"."""
    form = {"cholesky": "tiles", "factor": "whole"}[factor.stage]
    if factor.settings["solver"] == "dual":
        form = "rows"
    sources = sources_of(factor.inputs(), kinds_of(factor.settings["loss"]))
    n_rows = sum(source.n_rows for source in sources.values())
    tile_columns = factor.settings.get("tile_columns", 0)
    model = open_model(factor.input("rows"), factor.settings["model"])
    n_components = len(model.map.components)
    is_singular = factor.settings["model"]["regularizer"] == 0.0
    return FactorSize(form, model.folded, n_rows, tile_columns, n_components, is_singular)


def _factorize(folder: StageFolder) -> int:
    return _factor_size(folder).factorize_nbytes


def _rigidity(folder: StageFolder) -> int:
    features = folder.settings["features"]
    calculator = open_descriptor(features["descriptor"])
    crowd = crowd_of(folder.input("structures"))
    size = _factor_size(folder.input("factor"))
    block, task = features["block_environments"], features["task_environments"]
    mapping = MapSize.of(open_map(folder.input("factor").input("rows")))
    return rigidity_nbytes(calculator, size, mapping, block, task, crowd)


def _result(folder: StageFolder) -> int:
    sets = [folder.input(name) for name in folder.settings["sets"]]
    crowds = [crowd_of(one.input("structures")) for one in sets]
    largest = max(crowd.largest_frame for crowd in crowds)
    n_structures = max(crowd.n_structures for crowd in crowds)
    return result_nbytes(_factor_size(sets[0].input("factor")), largest, n_structures)


_TASK: dict[str, Callable[[StageFolder], int]] = {
    "index": lambda folder: INDEX_NBYTES,
    "structures": _ingest,
    "features": _features,
    "references": _references,
    "rows": _rows,
    "derivatives": _derivatives,
    "hessian": _fold,
    "triangle": _fold,
    "factor": _factorize,
    "cholesky": _factorize,
    "rigidity": _rigidity,
    "result": _result,
}
