"""What `dlpr info` says of an output folder, a stage's folder or a Zarr store."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from dlpr.engine.output import JOB, owner_of, read_job, stage_states
from dlpr.errors import StoreError
from dlpr.handles import Features, Handle, Result, Rigidities, Structures
from dlpr.stages.result import STORE
from dlpr.stages.structures import part_name
from dlpr.store.arrays import chunk_files
from dlpr.store.files import DAMAGE, Json, read_json
from dlpr.store.folder import Receipt, StageFolder, check_format, folders
from dlpr.units import format_bytes

Rows = list[list[str]]

_HANDLES: dict[str, type[Handle]] = {
    "structures": Structures,
    "features": Features,
    "rigidity": Rigidities,
}
_STORES: dict[str, Callable[[int], str]] = {
    "structures": part_name,
    "features": part_name,
    "result": lambda _: STORE,
}
"""Stages whose data are Zarr: where those of a task are. The others have parts, ``.npz``."""


def describe_store(path: Path) -> tuple[str, Rows, Json]:
    """Describe whatever dlpr has written at ``path``.

    Parameters
    ----------
    path : Path
        An output folder, a stage's folder, or a Zarr store or a group or an array of one.

    Returns
    -------
    title : str
    rows : list of [name, value]
        What is there, and how it was made.
    record : dict
        The job, the plan or the attributes, whole.

    Raises
    ------
    StoreError
        If a newer dlpr wrote it, or it is none of these.
    """
    path = Path(path).absolute()
    for is_one, describe in _KINDS:
        if is_one(path):
            return describe(path)
    found = "a file" if path.is_file() else "a folder" if path.is_dir() else "nothing"
    raise StoreError(
        f"{path} is no store of dlpr: found {found} without {JOB}, plan.json or a zarr.json with "
        f"dlpr's format_version. Give an output folder (of `dlpr run`), a stage below its work/, "
        f"or a Zarr store such as {STORE}."
    )


# output folders ---------------------------------------------------------------------------------


def _is_output(path: Path) -> bool:
    return (path / JOB).exists() or bool(folders(path / "work"))


def _output(path: Path) -> tuple[str, Rows, Json]:
    record: Json = {}
    rows: Rows = []
    if (path / JOB).exists():
        job = read_job(path)
        record = job.resolved()
        rows.append(["job", f"paths start from {job.base}"])
    if (path / STORE / "zarr.json").exists():
        rows += _result(path)
    else:
        rows.append(["result", f"none yet: dlpr status {path}"])
    for state in stage_states(path):
        n_tasks = state.folder.n_tasks
        done = f"{n_tasks - len(state.missing)} of {n_tasks} tasks, {format_bytes(state.nbytes)}"
        unused = "" if state.live else "; not in use (dlpr clean)"
        rows.append([f"stage {state.folder.name}", done + unused])
    rows.append(["owner", owner_of(path)])
    return f"{path}: output folder", rows, record


def _result(path: Path) -> Rows:
    store = Result(path).path
    attributes = _attributes(store, store)
    rows: Rows = [["result", f"{STORE} -> {store.resolve().parent.name}"]]
    for name in sorted(one.name for one in store.iterdir() if _metadata(one)):
        group = zarr.open_group(str(store / name), mode="r")
        counts = [
            f"{_length(group, 'environment_lpr')} environments",
            f"{_length(group, 'structure_pr')} structures",
            "groups: " + ", ".join(map(str, group["structure_group"].attrs["names"])),  # type: ignore[arg-type]
        ]
        rows.append([f"set {name}", "; ".join(counts)])
    return rows + _versions(attributes)


def _length(group: zarr.Group, name: str) -> int:
    array = group[name]
    assert isinstance(array, zarr.Array)
    return int(array.shape[0])


def _versions(attributes: Json) -> Rows:
    found = attributes.get("versions", {})
    return [["versions", ", ".join(f"{k} {v}" for k, v in found.items())]] if found else []


# stages -----------------------------------------------------------------------------------------


def _is_stage(path: Path) -> bool:
    return {"stage", "format_version"} <= set(read_json(path / "plan.json") or {})


def _stage(path: Path) -> tuple[str, Rows, Json]:
    folder = StageFolder(path)
    plan = folder.plan
    receipts = [r for r in map(folder.receipt, range(folder.n_tasks)) if r is not None]
    rows: Rows = [
        ["stage", folder.stage],
        ["tasks done", f"{len(receipts)} of {folder.n_tasks}"],
        ["data", f"{format_bytes(sum(r.nbytes for r in receipts))} in {_n_files(receipts)} files"],
        *([f"input {name}", place] for name, place in plan["places"].items()),
    ]
    shown = ("model", "committee", "subsample", "numerics")
    rows += _flat("", {k: v for k, v in folder.settings.items() if k in shown})
    if receipts:
        rows += _cost(receipts)
        rows += _content(folder, receipts)
    return f"{path}: stage {folder.stage}", rows, plan


def _n_files(receipts: list[Receipt]) -> int:
    return sum(len(receipt.files) for receipt in receipts)


def _cost(receipts: list[Receipt]) -> Rows:
    hosts = sorted({str(r.cost.get("host")) for r in receipts})
    seconds = sum(r.cost.get("seconds", 0.0) for r in receipts)
    peak = max(r.cost.get("peak_nbytes", 0) for r in receipts)
    return [
        ["computed on", ", ".join(hosts[:4]) + (f" and {len(hosts) - 4} more" * (len(hosts) > 4))],
        ["task seconds", f"{seconds:.1f}"],
        ["peak memory of a process", format_bytes(peak)],
    ]


def _content(folder: StageFolder, receipts: list[Receipt]) -> Rows:
    rows: Rows = []
    if folder.stage in _HANDLES and len(receipts) == folder.n_tasks:
        facts = _HANDLES[folder.stage](folder.path).facts()
        rows += _flat("", {name: value for name, value in facts.items() if name != "path"})
    if folder.stage in ("fit", "factor", "cholesky"):
        rows += _flat("", receipts[-1].facts)
    task = receipts[0].task
    if folder.stage in _STORES:
        name = _STORES[folder.stage](task)
        arrays = _zarr_rows(folder.path / name)
    else:
        name = next(iter(receipts[0].files))
        arrays = _part_rows(folder.path / name)
    if name.startswith("parts/"):
        name += f" (one of {folder.n_tasks} parts)"
    return [*rows, ["arrays", name], *arrays]


def _part_rows(path: Path) -> Rows:
    """The arrays of an ``.npz``, from their headers."""
    rows: Rows = []
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                with archive.open(info) as member:
                    np.lib.format.read_magic(member)
                    shape, _, dtype = np.lib.format.read_array_header_1_0(member)
                name = info.filename.removesuffix(".npy")
                rows.append([f"  {name}", f"{shape} {dtype}; {format_bytes(info.file_size)}"])
    except DAMAGE as error:
        rows.append(["  damaged", f"{error}: dlpr status --verify {path.parents[3]}"])
    return rows


# Zarr -------------------------------------------------------------------------------------------


def _is_zarr(path: Path) -> bool:
    return _root_of(path) is not None


def _metadata(path: Path) -> Json:
    """The Zarr metadata of a folder; empty where there is none."""
    return read_json(path / "zarr.json") or {}


def _root_of(path: Path) -> Path | None:
    """The group at or above ``path`` that carries dlpr's format version."""
    for place in (path, path.parent, path.parent.parent):
        if "format_version" in _metadata(place).get("attributes", {}):
            return place
        if not _metadata(place):
            break
    return None


def _zarr(path: Path) -> tuple[str, Rows, Json]:
    root = _root_of(path)
    assert root is not None
    attributes = _attributes(root, path)
    rows = _zarr_rows(path)
    stage = _stage_of(path)
    if stage is not None:
        lacking = len(stage.missing())
        done = f"{stage.n_tasks - lacking} of {stage.n_tasks} tasks done"
        rows.append(["made by", f"{stage.name} ({done})"])
        rows += [[f"input {name}", place] for name, place in stage.plan["places"].items()]
    rows.append(["on-disk format", str(attributes["format_version"])])
    rows += _versions(attributes)
    conventions = ("model", "factor", "committee", "numerics", "units")
    rows += _flat("", {name: attributes[name] for name in conventions if name in attributes})
    return f"{path}: Zarr store", rows, attributes


def _attributes(root: Path, path: Path) -> Json:
    """Attributes of the groups from a store's root down to ``path``."""
    check_format(_metadata(root)["attributes"].get("format_version"), root)
    found: Json = {}
    for place in (path.parent.parent, path.parent, path):
        if place == root or root in place.parents:
            found |= _metadata(place)["attributes"]
    return found


def _stage_of(path: Path) -> StageFolder | None:
    """The stage whose folder holds a store."""
    for place in path.resolve().parents:
        if _is_stage(place):
            return StageFolder(place)
    return None


def _zarr_rows(path: Path) -> Rows:
    """Every array at or below ``path``: shape, type, dimensions, chunks, what is on disk."""
    rows: Rows = []
    for place in _arrays_below(path):
        array = zarr.open_array(str(place), mode="r")
        files = chunk_files(place)
        parts = [
            f"{array.shape} {array.dtype}",
            f"dimensions {', '.join(array.metadata.dimension_names or ('unnamed',))}",  # type: ignore[union-attr,arg-type]
            f"chunks {array.chunks}",
            f"{len(files)} of {array.nchunks if array.size else 0} chunks there",
            format_bytes(sum(file.stat().st_size for file in files)),
        ]
        name = place.relative_to(path).as_posix() if place != path else place.name
        rows.append([f"  {name}", "; ".join(parts)])
    return rows


def _arrays_below(path: Path) -> Iterator[Path]:
    kind = _metadata(path).get("node_type")
    if kind == "array":
        yield path
    elif kind == "group":
        for below in sorted(path.iterdir()):
            if not below.name.startswith("."):
                yield from _arrays_below(below)


def _flat(prefix: str, values: Any) -> Rows:
    """Dotted names and values of nested settings."""
    if not isinstance(values, dict):
        return [[prefix, str(values)]]
    rows: Rows = []
    for key, value in values.items():
        rows += _flat(f"{prefix} {key}".strip(), value)
    return rows


_KINDS: tuple[tuple[Callable[[Path], bool], Callable[[Path], tuple[str, Rows, Json]]], ...] = (
    (_is_stage, _stage),
    (_is_output, _output),
    (_is_zarr, _zarr),
)
