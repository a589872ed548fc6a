"""Structures from files into a structure store: an index of frames, then frames in parallel."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlpr.errors import InputError, JobError
from dlpr.stages.structures import CHUNK_ROWS, PER_ENVIRONMENT, part_name
from dlpr.store.arrays import checksums, create_array, create_group, store_files
from dlpr.store.files import Json, atomic_folder, explained
from dlpr.store.folder import FORMAT_VERSION, StageFolder, digest
from dlpr.structures.files import Source, expand, fingerprint, is_compressed
from dlpr.structures.frames import Frames
from dlpr.structures.index import FileIndex, index_file
from dlpr.structures.ingest import Counts, collect
from dlpr.structures.labels import Reading, reading
from dlpr.structures.selection import Where, absent_names
from dlpr.structures.spatial import BIN_EDGE, SORTED_FRAME_ATOMS, cell_volume

TASK_ATOMS = 1 << 17
"""Atoms that one task reads, but for a frame that has more."""
FEWEST_ATOMS = 1 << 14
"""Atoms of small files that one task reads at least."""

# index ------------------------------------------------------------------------------------------


def plan_index(work: Path, files: list[str], base: Path, full_hash: bool) -> StageFolder:
    """One task per file: where its frames are."""
    sources = []
    for source in expand(files, base):
        found = _fingerprint(source.path, full_hash)
        sources.append({"path": str(source.path), "index": source.index, "fingerprint": found})
    return StageFolder.create(work, "index", {"sources": sources}, {}, sources)


def _scratch(folder: StageFolder, task: int) -> Path:
    return folder.path / "scratch" / f"{task:06d}"


def run_index(folder: StageFolder, task: int) -> tuple[dict[str, Any], Json]:
    """Index one file; a compressed one is decompressed beside the index."""
    index = _index_anew(folder, task)
    arrays = {name: getattr(index, name) for name in ("offset", "nbytes", "n_atoms", "selected")}
    facts = {"format": index.format, "n_frames": len(index.n_atoms)}
    return folder.write_part(task, arrays), facts


def _index_anew(folder: StageFolder, task: int) -> FileIndex:
    source = folder.settings["sources"][task]
    scratch = _scratch(folder, task)
    with explained(scratch):
        scratch.parent.mkdir(exist_ok=True)
    index = index_file(Source(Path(source["path"]), source["index"]), scratch)
    _check_unchanged(source)
    return index


def _fingerprint(path: Path, full: bool) -> Json:
    """What tells whether a file is still the same: with its full hash, times do not matter."""
    found = fingerprint(path, full)
    return {name: found[name] for name in ("size", "sha256")} if full else found


def _check_unchanged(source: Json) -> None:
    """Refuse a file that is no longer what the plan was made for."""
    planned = source["fingerprint"]
    if _fingerprint(Path(source["path"]), "sha256" in planned) != planned:
        raise InputError(
            f"{source['path']} was changed while it was read. Nothing of it was kept: run the same "
            f"command again when it is complete."
        )


def load_index(folder: StageFolder, task: int) -> FileIndex:
    """The index of one file, its decompressed copy made again if it was dropped."""
    path = Path(folder.settings["sources"][task]["path"])
    compressed = is_compressed(path)
    if compressed and not _scratch(folder, task).exists():
        return _index_anew(folder, task)
    part = folder.read_part(task)
    (kind,) = (receipt.facts["format"] for receipt in [folder.receipt(task)] if receipt)
    return FileIndex(path, _scratch(folder, task) if compressed else path, kind, **part)


def drop_scratch(folder: StageFolder) -> None:
    """Remove the decompressed copies: no later stage reads text."""
    shutil.rmtree(folder.path / "scratch", ignore_errors=True)


# structures -------------------------------------------------------------------------------------


def plan(work: Path, index: StageFolder, selection: Json) -> StageFolder:
    """Tasks of one large file's frames, or of whole small files.

    Where a file is put in or grows, other tasks stay what they were: those of a large file begin
    with it, and which small files go together is decided by their names.

    Parameters
    ----------
    index : StageFolder
        Finished.
    selection : dict
        ``keys``, ``units``, ``type_map``, ``where``, ``group_by``, ``minimum_distance``; ``weight``
        where a key of info has the structures' weights.
    """
    sources = index.settings["sources"]
    n_atoms = []
    for number in range(index.n_tasks):
        part = index.read_part(number, ("n_atoms", "selected"))
        n_atoms.append(part["n_atoms"][part["selected"]])
    runs = _runs(n_atoms, [digest(source["path"]) for source in sources])
    same = {
        **selection,
        "spatial": {"sorted_frame_atoms": SORTED_FRAME_ATOMS, "bin_edge": BIN_EDGE},
    }
    tasks = [[same, [[sources[n], start, stop] for n, start, stop in run]] for run in runs]
    return StageFolder.create(work, "structures", {**same, "runs": runs}, {"index": index}, tasks)


Runs = list[list[tuple[int, int, int]]]


def _runs(n_atoms: Sequence[NDArray[np.int64]], names: Sequence[str]) -> Runs:
    """For every task: file, first frame and frame behind the last, for each of its files.

    Parameters
    ----------
    n_atoms : sequence of (n_frames,) int64
        Of every file.
    names : sequence of str
        Hexadecimal digests of the files' names.
    """
    tasks: Runs = []
    small: list[tuple[int, int, int]] = []
    count = 0
    for number, (sizes, name) in enumerate(zip(n_atoms, names, strict=True)):
        total = int(sizes.sum())
        if small and count + total > TASK_ATOMS:
            tasks.append(small)
            small, count = [], 0
        if total > TASK_ATOMS:
            tasks += [[(number, start, stop)] for start, stop in pairwise(_cut(sizes))]
            continue
        small.append((number, 0, len(sizes)))
        count += total
        if count >= FEWEST_ATOMS and name[0] in "0123":
            tasks.append(small)
            small, count = [], 0
    return [*tasks, small] if small else tasks


def _cut(sizes: NDArray[np.int64]) -> list[int]:
    """Frames at which the tasks of a large file begin, and its number of frames."""
    edges, count = [0], 0
    for frame, n in enumerate(sizes.tolist()):
        if count and count + n > TASK_ATOMS:
            edges.append(frame)
            count = 0
        count += n
    return [*edges, len(sizes)]


def run(folder: StageFolder, task: int) -> tuple[dict[str, Any], Json]:
    """Index a file, or read and store one run of frames."""
    if folder.stage == "index":
        return run_index(folder, task)
    settings, source = folder.settings, folder.input("index")
    runs = []
    for number, start, stop in settings["runs"][task]:
        index = load_index(source, number)
        runs.append((index, index.selected[start:stop].tolist()))
    frames, counts = collect(
        runs,
        reading_of(settings),
        Where(settings["where"]) if settings["where"] else None,
        settings["group_by"],
        settings["minimum_distance"],
        settings.get("weight"),
    )
    for number, _, _ in settings["runs"][task]:
        _check_unchanged(source.settings["sources"][number])
    target = folder.path / part_name(task)
    with atomic_folder(target) as partial:
        _write(partial, frames, counts)
    return checksums(store_files(target), folder.path), _facts(frames, counts)


def reading_of(settings: Json) -> Reading:
    """How files are read, as a set's selection says."""
    keys = {label: key for label, key in settings["keys"].items() if key}
    return reading(keys, settings["units"], settings["type_map"])


def _write(path: Path, frames: Frames, counts: Counts) -> None:
    attributes = {
        "format_version": FORMAT_VERSION,
        "groups": list(frames.group_names),
        "source_files": list(frames.source_files),
    }
    group = create_group(path, attributes)
    arrays = {f.name: getattr(frames, f.name) for f in fields(frames)}
    arrays["digest"] = counts.digest
    for name, values in arrays.items():
        if not isinstance(values, np.ndarray) or (name == "force" and not _has_forces(frames)):
            continue
        rows = CHUNK_ROWS if name in PER_ENVIRONMENT else max(1, len(values))
        dimensions = (
            _DIMENSION.get(name, "structure"),
            *(f"{name}_{k}" for k in range(1, values.ndim)),
        )
        array = create_array(group, name, values.shape, values.dtype, dimensions, rows)
        if values.size:
            array[:] = values


_DIMENSION = {
    **dict.fromkeys(PER_ENVIRONMENT, "environment"),
    "structure_offset": "structure_edge",
    "bin_offset": "structure_edge",
    "bin_range": "bin",
}


def _facts(frames: Frames, counts: Counts) -> Json:
    has_force: NDArray[np.bool_] = np.asarray(np.isfinite(frames.force).all(axis=1))
    n_atoms = np.diff(frames.structure_offset)
    first = frames.structure_offset[:-1]
    facts = {
        "n_structures": counts.n_kept,
        "n_environments": len(frames.species),
        "n_read": counts.n_read,
        "species": np.unique(frames.species).tolist(),
        "groups": list(frames.group_names),
        "keys": dict(sorted(counts.keys.items())),
        "density": float(f"{_density(frames):.3g}"),
        "volume": float(f"{_volume(frames):.3g}"),
        "largest_frame": int(n_atoms.max(initial=0)),
        "has_forces": _has_forces(frames),
        "labels": {
            "energy": int(np.isfinite(frames.energy).sum()),
            "forces": int(has_force[first].sum()) if len(first) else 0,
            "stress": int(np.isfinite(frames.stress).all(axis=(1, 2)).sum()),
        },
    }
    if frames.weight is not None:
        none, zero = np.isnan(frames.weight), frames.weight == 0.0
        facts["weights"] = {"none": int(none.sum()), "zero": int(zero.sum())}
    return facts


def _has_forces(frames: Frames) -> bool:
    """Whether forces are kept: those of any atom are known."""
    return not bool(np.isnan(frames.force).all())


def _volume(frames: Frames) -> float:
    """Å³ of the largest cell that is periodic in all directions."""
    return float(cell_volume(frames.cell)[frames.pbc.all(axis=1)].max(initial=0.0))


def _density(frames: Frames) -> float:
    """Atoms per Å³ of the densest frame that is periodic in all directions."""
    volume = cell_volume(frames.cell)
    periodic = frames.pbc.all(axis=1)
    n_atoms = np.diff(frames.structure_offset)
    return float((n_atoms[periodic] / volume[periodic]).max(initial=0.0))


def check_selection(folder: StageFolder, name: str) -> None:
    """Refuse a selection that names keys no frame has, or that keeps nothing.

    Raises
    ------
    JobError, InputError
    """
    settings = folder.settings
    receipts = folder.receipts()
    seen: Counter[str] = Counter()
    for receipt in receipts:
        seen.update(receipt.facts["keys"])
    asked = {f"keys.{label}": [key] for label, key in settings["keys"].items() if key}
    if settings["group_by"]:
        asked["group_by"] = [settings["group_by"]]
    if settings["where"]:
        asked["where"] = list(Where(settings["where"]).names)
    places = {f"{name}.{place}": names for place, names in asked.items()}
    if settings.get("weight"):
        places["loss.structure_weight"] = [settings["weight"]]
    for place, names in places.items():
        for said in absent_names(names, seen):
            raise JobError(f"{place}: {said}. Correct the job file.")
    n_read = sum(receipt.facts["n_read"] for receipt in receipts)
    if not sum(receipt.facts["n_structures"] for receipt in receipts):
        raise InputError(
            f"{name}: 0 of {n_read} frames are kept by where: {settings['where']!r}; at least one "
            f"is needed. Correct the condition."
        )
