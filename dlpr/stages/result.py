"""The result as users see it: one Zarr group per set, in the order of the source files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
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
from dlpr.stages.features import task_edges
from dlpr.stages.forces import ATTRIBUTES as FORCE_ATTRIBUTES
from dlpr.stages.forces import ForceRows
from dlpr.stages.rigidity import COMMITTEE, STRUCTURE_COMMITTEE, arrays_of, finish_structures
from dlpr.stages.structures import StructureStore, open_structures
from dlpr.store.arrays import (
    METADATA,
    checksums,
    create_array,
    create_group,
    store_files,
    write_rows,
)
from dlpr.store.files import (
    Json,
    atomic_folder,
    explained,
    fsync_directory,
    keep_json,
    partial_path,
)
from dlpr.store.folder import FORMAT_VERSION, StageFolder

STORE = "rigidity.zarr"
CHUNK_ROWS = 1 << 18
QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)


def forces_of(name: str) -> str:
    """The input of a result that has the forces of a set; no set has such a name."""
    return f"forces of {name}"


def plan(
    work: Path,
    sets: Mapping[str, StageFolder],
    forces: Mapping[str, StageFolder],
    attributes: Json,
) -> StageFolder:
    """One task per set.

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
    settings = {"sets": list(sets), "attributes": attributes, "numerics": numerics}
    inputs = {**sets, **{forces_of(name): stage for name, stage in forces.items()}}
    folder = StageFolder.create(work, "result", settings, inputs, len(sets))
    attributes = {**attributes, "format_version": FORMAT_VERSION}
    group = {"attributes": attributes, "zarr_format": 3, "node_type": "group"}
    keep_json(folder.path / STORE / METADATA, group)
    return folder


def run(folder: StageFolder, task: int) -> tuple[dict[str, Any], Json]:
    """Write the group of one set."""
    name = folder.settings["sets"][task]
    rigidity = folder.input(name)
    structures = open_structures(rigidity.input("structures"))
    of_forces = folder.inputs().get(forces_of(name))
    forces = None if of_forces is None else ForceRows(of_forces)
    target = folder.path / STORE / name
    with atomic_folder(target) as partial:
        group = create_group(partial, _attributes(folder, rigidity))
        _write_environments(group, partial, rigidity, structures, forces)
        _write_structures(group, partial, rigidity, structures)
        summary_rows = _summary(group, structures)
        if "committee" in rigidity.plan["inputs"]:
            about = describe_committee(rigidity.input("committee"))
            about["rank_correlation"] = _add_committee(group, structures, summary_rows)
            group.attrs["committee"] = about
        group.attrs["summary"] = summary_rows
    facts = {"summary": summary_rows, "n_environments": structures.n_environments}
    return checksums(store_files(target), folder.path), facts


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


def _write_environments(
    group: zarr.Group,
    path: Path,
    rigidity: StageFolder,
    structures: StructureStore,
    forces: ForceRows | None,
) -> None:
    n = structures.n_environments
    out = {
        name: create_array(group, name, (n,), dtype, ("environment",), CHUNK_ROWS)
        for name, dtype in arrays_of(rigidity).items()
    }
    for name in forces.names if forces else ():
        dimensions = ("environment", "direction")
        out[name] = create_array(
            group, name, (n, 3), np.float64, dimensions, CHUNK_ROWS, FORCE_ATTRIBUTES[name]
        )
    masks = [UNSEEN_CENTRE, UNSEEN_NEIGHBOUR, UNLIKE]
    out["environment_unseen"].attrs["flag_masks"] = masks
    meanings = "central_species neighbour_species unlike_references"
    out["environment_unseen"].attrs["flag_meanings"] = meanings
    if COMMITTEE in out:
        out[COMMITTEE].attrs.update(OF_VARIANCE)
    species = create_array(
        group, "environment_species", (n,), np.uint8, ("environment",), CHUNK_ROWS
    )
    start = 0
    for block in _rechunk(_source_order(rigidity, structures, forces), CHUNK_ROWS):
        for name, array in out.items():
            write_rows(array, start, block[name], path)
        write_rows(species, start, block["species"], path)
        start += len(block["species"])


Block = dict[str, NDArray[Any]]


def _stored_order(
    rigidity: StageFolder, structures: StructureStore, forces: ForceRows | None
) -> Iterator[tuple[int, Block]]:
    edges = task_edges(rigidity.input("structures"), rigidity.settings["features"])
    names = tuple(arrays_of(rigidity))
    for task, (start, stop) in enumerate(pairwise(edges.tolist())):
        part: Block = rigidity.read_part(task, names)
        if forces:
            part |= forces.read(start, stop)
        part["species"] = structures.read("species", start, stop)
        part["source_atom"] = structures.read("source_atom", start, stop)
        yield start, part


def _source_order(
    rigidity: StageFolder, structures: StructureStore, forces: ForceRows | None
) -> Iterator[Block]:
    """Blocks in source order: a frame that is stored by spatial bins is put back whole."""
    offset = structures.structure_offset
    by_space = np.any(structures.over_structures("bin_shape"), axis=1)
    held: list[Block] = []
    for start, part in _stored_order(rigidity, structures, forces):
        stop = start + len(part["species"])
        while start < stop:
            index = int(np.searchsorted(offset, start, side="right")) - 1
            if by_space[index]:
                end = min(stop, int(offset[index + 1]))
            else:
                following = np.flatnonzero(by_space[index:])
                limit = int(offset[index + following[0]]) if len(following) else stop
                end = min(stop, limit)
            piece = {name: rows[: end - start] for name, rows in part.items()}
            part = {name: rows[end - start :] for name, rows in part.items()}
            if by_space[index]:
                held.append(piece)
                if end == offset[index + 1]:
                    frame = _concatenate(held)
                    order = np.argsort(frame["source_atom"], kind="stable")
                    yield {name: rows[order] for name, rows in frame.items()}
                    held = []
            else:
                yield piece
            start = end


def _concatenate(blocks: list[Block]) -> Block:
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _rechunk(blocks: Iterator[Block], size: int) -> Iterator[Block]:
    held: list[Block] = []
    count = 0
    for block in blocks:
        held.append(block)
        count += len(block["species"])
        if count >= size:
            whole = _concatenate(held)
            stop = count // size * size
            for a in range(0, stop, size):
                yield {name: rows[a : a + size] for name, rows in whole.items()}
            held, count = [{name: rows[stop:] for name, rows in whole.items()}], count - stop
    if count:
        yield _concatenate(held)


def _write_structures(
    group: zarr.Group, path: Path, rigidity: StageFolder, structures: StructureStore
) -> None:
    source, files = structures.sources()
    columns: dict[str, tuple[NDArray[Any], Json]] = {
        **{
            name: (values, OF_VARIANCE if name == STRUCTURE_COMMITTEE else {})
            for name, values in finish_structures(rigidity).items()
        },
        "structure_energy_label": (structures.energy, {}),
        "structure_group": (structures.group, {"names": list(structures.group_names)}),
        "structure_source_file": (source, {"names": files}),
        "structure_source_frame": (structures.over_structures("source_frame"), {}),
    }
    for name, (values, attributes) in columns.items():
        array = create_array(
            group, name, values.shape, values.dtype, ("structure",), CHUNK_ROWS, attributes
        )
        write_rows(array, 0, values, path)
    offset = structures.structure_offset
    array = create_array(
        group, "structure_offset", offset.shape, offset.dtype, ("structure_edge",), CHUNK_ROWS
    )
    write_rows(array, 0, offset, path)


def _summary(group: zarr.Group, structures: StructureStore) -> list[Json]:
    """Counts and quantiles per group and species of one set, read back chunk by chunk."""
    keys: dict[tuple[int, int], tuple[QuantileSketch, QuantileSketch, NDArray[np.int64]]] = {}
    for start in range(0, structures.n_environments, CHUNK_ROWS):
        stop = min(start + CHUNK_ROWS, structures.n_environments)
        names = ("environment_lpr", "environment_prior_ratio", "environment_unseen")
        lpr, ratio, unseen = _chunks(group, names, start, stop)
        label = _labels(group, structures, start, stop)
        for key in np.unique(label):
            own = label == key
            entry = keys.setdefault(
                divmod(int(key), 256), (QuantileSketch(), QuantileSketch(), np.zeros(3, np.int64))
            )
            entry[0].add(lpr[own])
            entry[1].add(ratio[own])
            flags = unseen[own]
            entry[2][:] += [
                np.count_nonzero(flags & UNSEEN_CENTRE),
                np.count_nonzero(flags & UNSEEN_NEIGHBOUR),
                np.count_nonzero(flags),
            ]
    return [
        {
            "group": structures.group_names[g],
            "species": z,
            "n_environments": lpr.n,
            "n_inf": lpr.n_inf,
            "n_unseen_centre": int(counts[0]),
            "n_unseen_neighbour": int(counts[1]),
            "n_unseen": int(counts[2]),
            "lpr": _quantiles(lpr),
            "prior_ratio": _quantiles(ratio),
        }
        for (g, z), (lpr, ratio, counts) in sorted(keys.items())
    ]


def _add_committee(group: zarr.Group, structures: StructureStore, rows: list[Json]) -> float | None:
    """Say in every summary row how the committee's variance goes with LPR; return that of all."""

    def blocks() -> Iterator[tuple[NDArray[np.int64], FloatArray, FloatArray]]:
        for start in range(0, structures.n_environments, CHUNK_ROWS):
            stop = min(start + CHUNK_ROWS, structures.n_environments)
            lpr, variance = _chunks(group, ("environment_lpr", COMMITTEE), start, stop)
            yield _labels(group, structures, start, stop), lpr, variance

    found = agreements(blocks)
    for row in rows:
        own = found[_label(structures.group_names.index(row["group"]), row["species"])]
        row["committee_variance"] = _quantiles(own.variance)
        row["rank_correlation"] = own.rank_correlation
    return found[ALL].rank_correlation


def _label(group: Any, species: Any) -> Any:
    """One number for group and species."""
    return group * 256 + species


def _labels(
    group: zarr.Group, structures: StructureStore, start: int, stop: int
) -> NDArray[np.int64]:
    of_group = structures.group[structures.structure_of(start, stop)]
    (species,) = _chunks(group, ("environment_species",), start, stop)
    labels: NDArray[np.int64] = _label(of_group.astype(np.int64), species)
    return labels


def _chunks(group: zarr.Group, names: tuple[str, ...], start: int, stop: int) -> list[NDArray[Any]]:
    return [np.asarray(group[name][start:stop]) for name in names]  # type: ignore[index]


def _quantiles(sketch: QuantileSketch) -> list[float] | None:
    """Quantiles of the finite values; None where there are none."""
    if sketch.n == sketch.n_inf:
        return None
    return [sketch.quantile(q) for q in QUANTILES]


def publish(folder: StageFolder, output: Path) -> Path:
    """Let ``output/rigidity.zarr`` name the finished result, by one rename.

    Raises
    ------
    StoreError
        If something else has that name.
    """
    link = output / STORE
    if link.exists() and not link.is_symlink():
        raise StoreError(
            f"the result cannot be published: {link} is none of dlpr's. The result is kept; move "
            f"that away and run the same command again."
        )
    target = (folder.path / STORE).relative_to(output)
    with explained(link):
        if not link.is_symlink() or link.readlink() != target:
            partial = partial_path(link)
            partial.symlink_to(target)
            partial.replace(link)
            fsync_directory(output)
    keep_json(output / "summary.json", summary(folder))
    return link


def summary(folder: StageFolder) -> Json:
    """Summary rows of every set of a finished result."""
    names = folder.settings["sets"]
    receipts = folder.receipts()
    return {name: r.facts["summary"] for name, r in zip(names, receipts, strict=True)}
