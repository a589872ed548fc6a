"""The memory of every task of a stage that is planned, promised to whoever does it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dlpr.engine.factor_size import FactorSize, takes_basis
from dlpr.engine.memory import (
    INDEX_NBYTES,
    MapSize,
    block_nbytes,
    cross_validation_nbytes,
    crowd_of,
    decomposition_nbytes,
    derivatives_nbytes,
    fold_nbytes,
    forces_nbytes,
    ingest_nbytes,
    proposal_nbytes,
    references_nbytes,
    result_nbytes,
    rigidity_nbytes,
    rows_nbytes,
    sample_nbytes,
    scan_nbytes,
    targets_nbytes,
    whitened_nbytes,
)
from dlpr.stages.features import open_descriptor, task_edges
from dlpr.stages.fold import tiling_of
from dlpr.stages.model import open_map, open_model
from dlpr.stages.rows import open_rows
from dlpr.stages.sample import structures_of
from dlpr.stages.sources import kinds_of, sources_of
from dlpr.stages.structures import open_structures
from dlpr.store.folder import StageFolder


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
    settings, mapping = folder.settings, open_map(folder)
    return derivatives_nbytes(
        open_descriptor(settings["features"]["descriptor"]),
        MapSize.of(mapping),
        mapping.raw_widths,
        crowd_of(folder.input("structures")),
        forces="forces" in settings["kinds"],
        stress="stress" in settings["kinds"],
    )


def _part_nbytes(folder: StageFolder) -> int:
    """The largest part of the rows of forces and stresses that a stage reads."""
    if "derivatives" not in folder.plan["inputs"]:
        return 0
    return max(receipt.nbytes for receipt in folder.input("derivatives").receipts())


def _fold(folder: StageFolder) -> int:
    settings = folder.settings
    model = open_model(folder.input("rows"), settings["model"])
    width = max(tiling_of(model, settings).widths)
    block = settings["numerics"]["fold_block_rows"]
    return fold_nbytes(model.folded.n_columns + 1, width, block, _part_nbytes(folder))


def _factor_size(factor: StageFolder, committee: StageFolder | None = None) -> FactorSize:
    """Of a planned "fit", "factor" or "cholesky", and of a committee that uses it."""
    form = "tiles" if factor.stage == "cholesky" else "whole"
    if factor.settings["solver"] == "dual":
        form = "rows"
    sources = sources_of(factor.inputs(), kinds_of(factor.settings["loss"]))
    n_rows = sum(source.n_rows for source in sources.values())
    tile_columns = factor.settings.get("tile_columns", 0)
    model = open_model(factor.input("rows"), factor.settings["model"])
    n_components = len(model.map.components)
    basis = takes_basis(factor.settings["solver"], factor.settings["model"]["regularizer"])
    n_members = 0
    if committee is not None:
        ((_, spec),) = committee.settings["committee"].items()
        n_members = spec["members"]
    return FactorSize(form, model.folded, n_rows, tile_columns, n_components, basis, n_members)


def _factorize(folder: StageFolder) -> int:
    return _factor_size(folder).factorize_nbytes


def _decomposition(folder: StageFolder) -> int:
    kinds = kinds_of(folder.settings["loss"])
    n_rows = sum(source.n_rows for source in sources_of(folder.inputs(), kinds).values())
    model = open_model(folder.input("rows"), folder.settings["model"])
    is_folded = "fold" in folder.plan["inputs"]
    return decomposition_nbytes(model.folded.n_columns, None if is_folded else n_rows)


def _scan(folder: StageFolder) -> int:
    settings, structures = folder.settings, folder.input("rows").input("structures")
    calculator = open_descriptor(settings["features"]["descriptor"])
    n_columns, rank = folder.input("decomposition").receipts()[0].facts["shape"]
    return scan_nbytes(
        calculator,
        MapSize.of(open_map(folder.input("rows"))),
        crowd_of(structures),
        n_columns,
        rank,
        len(settings["regularizers"]),
        _part_nbytes(folder),
    )


def _committee(folder: StageFolder) -> int:
    size = _factor_size(folder.input("factor"), folder)
    drawn = "posterior" in folder.settings["committee"]
    return size.draw_nbytes if drawn else size.factorize_nbytes


def _cross_validation(folder: StageFolder) -> int:
    n_structures = open_structures(folder.input("rows").input("structures")).n_structures
    size = _factor_size(folder.input("factor"))
    return cross_validation_nbytes(size, _part_nbytes(folder), n_structures)


def _of_rigidity(folder: StageFolder) -> FactorSize:
    """Size of what a "rigidity" uses."""
    committee = folder.input("committee") if "committee" in folder.plan["inputs"] else None
    return _factor_size(folder.input("factor"), committee)


def _rigidity(folder: StageFolder) -> int:
    features = folder.settings["features"]
    calculator = open_descriptor(features["descriptor"])
    crowd = crowd_of(folder.input("structures"))
    size = _of_rigidity(folder)
    block, task = features["block_environments"], features["task_environments"]
    mapping = MapSize.of(open_map(folder.input("factor").input("rows")))
    return rigidity_nbytes(calculator, size, mapping, block, task, crowd)


def _forces(folder: StageFolder) -> int:
    calculator = open_descriptor(folder.settings["features"]["descriptor"])
    factor, crowd = folder.input("factor"), crowd_of(folder.input("structures"))
    mapping = open_map(factor.input("rows"))
    size, raw = _factor_size(factor), mapping.raw_widths
    return forces_nbytes(calculator, size, MapSize.of(mapping), raw, crowd)


def _whitened(folder: StageFolder) -> int:
    size = _factor_size(folder.input("factor"))
    runs = open_rows(folder.input("rows")).runs(folder.settings["run_rows"])
    mapping = MapSize.of(open_map(folder.input("rows")))
    return whitened_nbytes(size, mapping, max(one.n_rows for one in runs))


def _targets(folder: StageFolder) -> int:
    rigidity = folder.input("rigidity")
    features, factor = rigidity.settings["features"], rigidity.input("factor")
    return targets_nbytes(
        open_descriptor(features["descriptor"]),
        _factor_size(factor),
        MapSize.of(open_map(factor.input("rows"))),
        crowd_of(rigidity.input("structures")),
        folder.settings["count"],
        features["task_environments"],
    )


def _proposal(folder: StageFolder) -> int:
    candidates = folder.input("candidates")
    counts = [receipt.facts["n_rows"] for receipt in candidates.receipts()]
    n_columns = _factor_size(candidates.input("factor")).layout.n_columns
    return proposal_nbytes(n_columns, sum(counts), max(counts), folder.settings["n_targets"])


def _result(folder: StageFolder) -> int:
    sets = [folder.input(name) for name in folder.settings["sets"]]
    crowds = [crowd_of(one.input("structures")) for one in sets]
    n_structures = max(crowd.n_structures for crowd in crowds)
    return result_nbytes(_of_rigidity(sets[0]), n_structures)


def _sample(folder: StageFolder) -> int:
    mapping = open_map(folder.input("rows"))
    return max(
        sample_nbytes(
            open_descriptor(features["descriptor"]),
            MapSize.of(mapping),
            crowd_of(folder.input(structures_of(name))),
            folder.settings["count"],
        )
        for name, features in folder.settings["of_sets"].items()
    )


_TASK: dict[str, Callable[[StageFolder], int]] = {
    "index": lambda folder: INDEX_NBYTES,
    "structures": _ingest,
    "features": _features,
    "references": _references,
    "rows": _rows,
    "derivatives": _derivatives,
    "hessian": _fold,
    "triangle": _fold,
    "decomposition": _decomposition,
    "scan": _scan,
    "factor": _factorize,
    "cholesky": _factorize,
    "fit": _factorize,
    "committee": _committee,
    "cross_validation": _cross_validation,
    "rigidity": _rigidity,
    "forces": _forces,
    "whitened": _whitened,
    "targets": _targets,
    "proposal": _proposal,
    "result": _result,
    "sample": _sample,
}
