"""The result as users see it: one Zarr group per set, in the order of the source files.

A task writes one chunk of every array over environments, and what it says of its group and species;
the last task of a set adds arrays over structures, the names of all arrays, and the summary. Chunks
have keys: of a set that grows, those that have not changed are adopted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from dlpr.core.fit import UNLIKE, UNSEEN_CENTRE, UNSEEN_NEIGHBOUR
from dlpr.core.quantiles import QuantileSketch
from dlpr.core.rows import FloatArray
from dlpr.errors import StoreError
from dlpr.stages.agreement import ALL, agreements
from dlpr.stages.committee import OF_VARIANCE, describe_committee
from dlpr.stages.factor import factor_facts
from dlpr.stages.forces import ATTRIBUTES as FORCE_ATTRIBUTES
from dlpr.stages.rigidity import COMMITTEE, PROJECTION, STRUCTURE_COMMITTEE, finish_structures
from dlpr.stages.source_order import SPECIES, SourceOrder
from dlpr.stages.summary import (
    STRUCTURE_LEVELS,
    label_of,
    merged,
    quantiles,
    structure_levels,
    summarize,
    summary_arrays,
    summary_rows,
)
from dlpr.store.arrays import (
    METADATA,
    checksums,
    chunk_name,
    create_array,
    create_group,
    map_chunk,
    store_files,
    write_chunk,
    write_rows,
)
from dlpr.store.files import (
    Json,
    explained,
    filled_folder,
    fsync_directory,
    keep_json,
    partial_path,
)
from dlpr.store.folder import FORMAT_VERSION, StageFolder

STORE = "rigidity.zarr"
CHUNK_ROWS = 1 << 17
LPR, STRUCTURE_LPR = "environment_lpr", "structure_lpr"


def forces_of(name: str) -> str:
    """The input of a result that has the forces of a set; no set has such a name."""
    return f"forces of {name}"


def plan(
    work: Path,
    sets: Mapping[str, StageFolder],
    forces: Mapping[str, StageFolder],
    attributes: Json,
) -> StageFolder:
    """One task for each chunk of each set, and one more for each set.

    Parameters
    ----------
    sets : mapping of str to StageFolder
        Finished "rigidity" stages by the name of their set.
    forces : mapping of str to StageFolder
        Finished "forces" stages of sets that are to have them.
    attributes : dict
        The job as resolved, versions, conventions: kept with the result.
    """
    numerics = next(iter(sets.values())).settings["numerics"]  # structures cut between tasks
    inputs = {**sets, **{forces_of(name): stage for name, stage in forces.items()}}
    tasks: list[tuple[str, int | None]] = []
    keys: list[Json] = []
    for name, rigidity in sets.items():
        order = SourceOrder(rigidity, forces.get(name))
        contents = order.contents(chunks_of(order.n_environments))
        for chunk, content in enumerate(contents):
            tasks.append((name, chunk))
            keys.append({"set": name, "chunk": chunk, "of": content})
    n_chunks = len(tasks)
    made_of = {name: stage.output_digest() for name, stage in inputs.items()}
    # rigidities know nothing of the labels that stand beside them
    structures = {name: one.input("structures").output_digest() for name, one in sets.items()}
    for name in sets:
        tasks.append((name, None))
        own = {"inputs": made_of, "structures": structures[name]}
        keys.append({"set": name, "attributes": attributes, **own})
    settings = {
        "sets": list(sets),
        "structures": structures,
        "attributes": attributes,
        "numerics": numerics,
        "tasks": tasks,
        "waves": [list(range(n_chunks)), list(range(n_chunks, len(tasks)))],
    }
    folder = StageFolder.create(work, "result", settings, inputs, keys)
    attributes = {**attributes, "format_version": FORMAT_VERSION}
    group = {"attributes": attributes, "zarr_format": 3, "node_type": "group"}
    keep_json(folder.path / STORE / METADATA, group)
    return folder


def chunks_of(n_environments: int) -> list[tuple[int, int]]:
    """First and last environments of the chunks of a set, in source order."""
    starts = range(0, n_environments, CHUNK_ROWS)
    return [(start, min(start + CHUNK_ROWS, n_environments)) for start in starts]


def run(folder: StageFolder, task: int) -> tuple[dict[str, Any], Json]:
    """Write a chunk of every array over the environments of a set, or all else of the set."""
    name, chunk = folder.settings["tasks"][task]
    order = SourceOrder(folder.input(name), folder.inputs().get(forces_of(name)))
    target = folder.path / STORE / name
    if chunk is not None:
        return _write_chunk(folder, task, target, order, chunk)
    return _write_set(folder, name, target, order)


def _write_chunk(
    folder: StageFolder, task: int, target: Path, order: SourceOrder, chunk: int
) -> tuple[dict[str, Any], Json]:
    start, stop = chunks_of(order.n_environments)[chunk]
    arrays = order.read(start, stop)
    structures = order.structures
    summary = summarize(
        structures.group_names,
        structures.group[structures.structure_of(start, stop)].astype(np.int64),
        arrays[SPECIES],
        arrays[LPR],
        arrays["environment_prior_ratio"],
        arrays["environment_unseen"],
    )
    edges = structures.structure_offset
    edges = edges[(edges >= start) & (edges <= stop)]
    inside = arrays[LPR][edges[0] - start : edges[-1] - start] if len(edges) else np.empty(0)
    levels = structure_levels(inside, np.diff(edges))
    files = folder.write_part(task, {**summary_arrays(summary), STRUCTURE_LPR: levels})
    rows = min(CHUNK_ROWS, order.n_environments)
    for name, values in arrays.items():
        path = target / name / chunk_name(chunk, values.ndim)
        files[path.relative_to(folder.path).as_posix()] = write_chunk(path, values, rows)
    return files, {}


def _write_set(
    folder: StageFolder, name: str, target: Path, order: SourceOrder
) -> tuple[dict[str, Any], Json]:
    rigidity = order.rigidity
    tasks = enumerate(folder.settings["tasks"])
    chunks = [task for task, (own, chunk) in tasks if own == name and chunk is not None]
    rows = summary_rows(merged(map(folder.read_part, chunks)))
    attributes = {**_attributes(folder, rigidity), "summary": rows}
    if "committee" in rigidity.plan["inputs"]:
        about = describe_committee(rigidity.input("committee"))
        about["rank_correlation"] = _add_committee(folder, target, chunks, order, rows)
        attributes["committee"] = about
    with filled_folder(target) as partial:
        group = create_group(partial, attributes)
        _name_environments(group, order)
        levels = _structure_lpr(folder, target, chunks, order)
        _write_structures(group, partial, order, levels)
        files = [path.relative_to(partial) for path in store_files(partial)]
    facts = {"summary": rows, "n_environments": order.n_environments}
    return checksums([target / file for file in files], folder.path), facts


def _attributes(folder: StageFolder, rigidity: StageFolder) -> Json:
    factor = rigidity.input("factor")
    return {
        "model": factor.settings["model"],
        "map": factor.settings["map"],
        "loss": factor.settings["loss"],
        "features": rigidity.settings["features"],
        "numerics": rigidity.settings["numerics"],
        "factor": factor_facts(factor),
        "stages": {"rigidity": rigidity.name, **rigidity.plan["places"]},
        "inputs": rigidity.plan["inputs"],
        "sources": rigidity.input("structures").input("index").settings["sources"],
        "units": "LPR of energies per unit of the model's loss; see README, section Conventions",
    }


def _name_environments(group: zarr.Group, order: SourceOrder) -> None:
    """Make the arrays over environments, whose chunks are there already."""
    flags = {
        "flag_masks": [UNSEEN_CENTRE, UNSEEN_NEIGHBOUR, UNLIKE],
        "flag_meanings": "central_species neighbour_species unlike_references",
    }
    about: dict[str, Json] = {"environment_unseen": flags, COMMITTEE: OF_VARIANCE}
    about |= FORCE_ATTRIBUTES
    for name, (dtype, further) in order.arrays.items():
        shape = (order.n_environments, *further)
        dimensions = ("environment", *(("direction",) if further else ()))
        create_array(group, name, shape, dtype, dimensions, CHUNK_ROWS, about.get(name))


def _structure_lpr(
    folder: StageFolder, target: Path, tasks: list[int], order: SourceOrder
) -> FloatArray:
    """(n_structures, n_levels) what chunks say of the structures in them; of those that are cut
    between chunks, `STRUCTURE_LEVELS` of a sketch."""
    offset = order.structures.structure_offset
    found = np.empty((order.structures.n_structures, len(STRUCTURE_LEVELS)))
    cut = QuantileSketch()
    chunks = zip(tasks, chunks_of(order.n_environments), strict=True)
    for chunk, (task, (start, stop)) in enumerate(chunks):
        levels = folder.read_part(task, (STRUCTURE_LPR,))[STRUCTURE_LPR]
        first = int(np.searchsorted(offset, start))
        found[first : first + len(levels)] = levels
        ends = np.searchsorted(offset, [start, stop - 1], side="right") - 1
        for structure in np.unique(ends).tolist():
            begin, end = offset[structure : structure + 2].tolist()
            if begin < start or end > stop:
                path = target / LPR / chunk_name(chunk, 1)
                lpr = _read_chunk(folder, task, path, order, LPR)
                own = slice(max(begin - start, 0), min(end, stop) - start)
                cut = QuantileSketch() if begin >= start else cut
                cut.add(lpr[own])
                if end <= stop:
                    found[structure] = [cut.quantile(level) for level in STRUCTURE_LEVELS]
    return found


def _write_structures(
    group: zarr.Group, path: Path, order: SourceOrder, levels: FloatArray
) -> None:
    structures = order.structures
    source, files = structures.sources()
    columns: dict[str, tuple[NDArray[Any], Json]] = {
        **{
            name: (values, OF_VARIANCE if name == STRUCTURE_COMMITTEE else {})
            for name, values in finish_structures(order.rigidity).items()
        },
        STRUCTURE_LPR: (levels, {"levels": list(STRUCTURE_LEVELS)}),
        "structure_energy_label": (structures.energy, {}),
        "structure_group": (structures.group, {"names": list(structures.group_names)}),
        "structure_source_file": (source, {"names": files}),
        "structure_source_frame": (structures.over_structures("source_frame"), {}),
    }
    for name, (values, attributes) in columns.items():
        further = "projection" if name == PROJECTION else "level"
        dimensions = ("structure", further)[: values.ndim]
        array = create_array(
            group, name, values.shape, values.dtype, dimensions, CHUNK_ROWS, attributes
        )
        write_rows(array, 0, values, path)
    offset = structures.structure_offset
    array = create_array(
        group, "structure_offset", offset.shape, offset.dtype, ("structure_edge",), CHUNK_ROWS
    )
    write_rows(array, 0, offset, path)


def _add_committee(
    folder: StageFolder, target: Path, tasks: list[int], order: SourceOrder, rows: list[Json]
) -> float | None:
    """Say in every summary row how the committee's variance goes with LPR; return that of all."""
    structures = order.structures

    def blocks() -> Iterator[tuple[NDArray[np.int64], FloatArray, FloatArray]]:
        chunks = chunks_of(order.n_environments)
        for chunk, (task, (start, stop)) in enumerate(zip(tasks, chunks, strict=True)):
            species, lpr, variance = (
                _read_chunk(folder, task, target / name / chunk_name(chunk, 1), order, name)
                for name in (SPECIES, LPR, COMMITTEE)
            )
            group = structures.group[structures.structure_of(start, stop)].astype(np.int64)
            n = stop - start
            yield label_of(group, species[:n]), lpr[:n], variance[:n]

    found = agreements(blocks)
    for row in rows:
        own = found[label_of(structures.group_names.index(row["group"]), row["species"])]
        row["committee_variance"] = quantiles(own.variance)
        row["rank_correlation"] = own.rank_correlation
    return found[ALL].rank_correlation


def _read_chunk(
    folder: StageFolder, task: int, path: Path, order: SourceOrder, name: str
) -> NDArray[Any]:
    dtype, _ = order.arrays[name]
    try:
        return map_chunk(path, (-1,), dtype)
    except (OSError, ValueError) as error:
        raise folder.corrupt(task, path.relative_to(folder.path).as_posix(), error) from error


def publish(folder: StageFolder, output: Path) -> Path:
    """Let ``output/rigidity.zarr`` name the finished result, by one rename."""
    link = publish_store(folder, output, STORE)
    keep_json(output / "summary.json", summary(folder))
    return link


def publish_store(folder: StageFolder, output: Path, name: str) -> Path:
    """Let a name in ``output`` be that of a finished stage's store, by one rename.

    Raises
    ------
    StoreError
        If something else has that name.
    """
    link = output / name
    if link.exists() and not link.is_symlink():
        raise StoreError(
            f"the result cannot be published: {link} is none of dlpr's. The result is kept; move "
            f"that away and run the same command again."
        )
    target = (folder.path / name).relative_to(output)
    with explained(link):
        if not link.is_symlink() or link.readlink() != target:
            partial = partial_path(link)
            partial.symlink_to(target)
            partial.replace(link)
            fsync_directory(output)
    return link


def summary(folder: StageFolder) -> Json:
    """Summary rows of every set of a finished result."""
    tasks = zip(folder.settings["tasks"], folder.receipts(), strict=True)
    return {name: receipt.facts["summary"] for (name, chunk), receipt in tasks if chunk is None}
