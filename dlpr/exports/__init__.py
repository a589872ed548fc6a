"""A finished result for other programs: extended xyz, chemiscope, CSV, Parquet.

Structures go out as they came in, in the order of their source files, atoms in the source's order,
with the rigidities of their environments.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from ase.io.extxyz import output_column_format
from numpy.typing import NDArray

from dlpr.errors import CorruptPartError, JobError, StoreError
from dlpr.exports.structures import SetStructures
from dlpr.handles import Result
from dlpr.stages.summary import QUANTILES
from dlpr.store.files import Json, atomic_file

SUFFIXES = {
    ".extxyz": "extxyz",
    ".xyz": "extxyz",
    ".json": "chemiscope",
    ".csv": "csv",
    ".parquet": "parquet",
}
"""Formats by the suffix of a file, which ``.gz`` may follow (but for Parquet)."""
FORMATS = tuple(dict.fromkeys(SUFFIXES.values()))
_BLOCK_ROWS = 1 << 16
_comment_format: Callable[..., Any] = output_column_format

PathLike = str | os.PathLike[str]


def export(
    output: PathLike,
    to: PathLike,
    name: str | None = None,
    format: str | None = None,
    structures: slice | str | None = None,
) -> Path:
    """Write a result, or one set of it, for another program.

    Parameters
    ----------
    output : path
        The output folder of a finished run.
    to : path
        The file, which appears when it is whole and replaces what was there.
    name : str, optional
        A test set. Needed for structures where the result has several; a summary then has all.
    format : str, optional
        "extxyz", "chemiscope", "csv" or "parquet"; the suffix of ``to`` says it otherwise.
    structures : slice or str, optional
        Which structures of the set: ``slice(0, 10)``, ``"0:10"``, ``"::5"``, ``"-1"``.

    Returns
    -------
    Path
        ``to``, absolute.

    Raises
    ------
    JobError
        For a format, a set or structures that there are not.
    InputError
        For more atoms than chemiscope can show.
    StoreError
        If there is no result, or it is damaged.

    Notes
    -----
    Extended xyz has the columns ``lpr`` and ``prior_ratio`` (`inf` where the rigidity is infinite)
    with all digits, and ``committee_variance`` and ``forces`` where there are; of a run with
    ``test_forces``, ``pr_forces`` and ``predicted_forces``, three columns each; in its comment
    ``structure_pr``, ``group``, ``source_file``, ``source_frame``, and ``energy``, ``stress`` and
    ``structure_committee_variance`` where there are. It is written structure by structure.
    """
    target = Path(to).absolute()
    kind = format_of(target, format)
    result = Result(Path(output))
    if name is not None and name not in result.sets:
        raise JobError(f"{result.path} has no set {name!r}; it has: {', '.join(result.sets)}.")
    if target.is_dir():
        raise JobError(f"{target} is a folder; give the name of a file.")
    if kind in _TABLES:
        if structures is not None:
            raise JobError(f"a {kind} file is a summary of whole sets; leave --structures out.")
        rows = _summary_rows(result, name)
        with opened(target) as file:
            _TABLES[kind](file, rows)
        return target
    with _explained(result):
        of_set = SetStructures(result, _only_set(result, name))
        chosen = _choose(structures, of_set.n_structures)
        if kind == "chemiscope":
            of_set.check_chemiscope(chosen)
        with opened(target) as file:
            _STRUCTURES[kind](file, of_set, chosen)
    return target


def format_of(path: Path, format: str | None) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes[-1:] == [".gz"]
    found = format or SUFFIXES.get("".join(suffixes[-2:-1] if packed else suffixes[-1:]))
    if found not in FORMATS:
        what = f"the format {format!r}" if format else f"the suffix of {path.name}"
        raise JobError(
            f"{what} is none that dlpr writes. Name one of the formats {', '.join(FORMATS)} "
            f"(--format), or a file that ends in {', '.join(SUFFIXES)}; .gz may follow."
        )
    if packed and found == "parquet":
        raise JobError(f"{path.name}: Parquet is compressed inside; leave .gz out of the name.")
    return found


def _only_set(result: Result, name: str | None) -> str:
    if name is None and len(result.sets) != 1:
        raise JobError(
            f"{result.path} has {len(result.sets)} sets; a file of structures holds 1. Say which "
            f"with --set: {', '.join(result.sets)}."
        )
    return name or result.sets[0]


def _choose(structures: slice | str | None, n_structures: int) -> range:
    """The structures that are asked for.

    Raises
    ------
    JobError
        If there are none of them.
    """
    if isinstance(structures, slice):
        structures = ":".join(
            "" if edge is None else str(edge)
            for edge in (structures.start, structures.stop, structures.step)
        )
    try:
        numbers = [int(edge) if edge.strip() else None for edge in (structures or ":").split(":")]
        found = range(n_structures)[slice(*_of_one(numbers))]
    except (ValueError, TypeError):
        raise JobError(
            f"structures {structures!r} is no number and no slice; write e.g. 0:10, ::5 or 7."
        ) from None
    if len(found) == 0:
        raise JobError(
            f"structures {structures!r} are 0 of the set's {n_structures}; at least 1 is needed. "
            f"They are numbered from 0 to {n_structures - 1}."
        )
    return found


def _of_one(numbers: list[int | None]) -> list[int | None]:
    """The slice of a single number; a slice as it is."""
    if len(numbers) > 1 or numbers[0] is None:
        return numbers
    return [numbers[0], None if numbers[0] == -1 else numbers[0] + 1]


@contextmanager
def _explained(result: Result) -> Iterator[None]:
    """Say what to do about a damaged part: an export mends nothing."""
    try:
        yield
    except CorruptPartError as error:
        what = str(error).split(" Run the same", maxsplit=1)[0]
        receipt = Path(error.folder) / "receipts" / f"{error.task:06d}.json"
        raise StoreError(
            f"{what} Remove {receipt}, and `dlpr work {result.output}` does this task anew."
        ) from error


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file that appears when it is whole, compressed if it is to end in ``.gz``."""
    with ExitStack() as stack:
        file = stack.enter_context(atomic_file(path))
        if path.suffix.lower() == ".gz":
            packed = gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0)
            file = cast(BinaryIO, stack.enter_context(packed))
        yield file


def _write_extxyz(file: BinaryIO, of_set: SetStructures, chosen: range) -> None:
    for index in chosen:
        for text in extxyz(of_set.frame(index)):
            file.write(text.encode())


def extxyz(atoms: Any) -> Iterator[str]:
    """One frame, a block of rows at a time, every number with all its digits.

    ASE's own rows have 8 decimals, in which most rigidities would be lost.
    """
    symbols = np.array(atoms.get_chemical_symbols())
    floats = [name for name in atoms.arrays if name not in ("numbers", "positions")]
    arrays = {"symbols": symbols, **{name: atoms.arrays[name] for name in ("positions", *floats)}}
    comment = _comment_format(atoms, list(arrays), arrays)[0]
    yield f"{len(atoms)}\n{comment}\n"
    columns = [column for name in arrays if name != "symbols" for column in _columns(arrays[name])]
    row = "%-2s" + " %r" * len(columns) + "\n"
    for start in range(0, len(atoms), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        values = (column[block].tolist() for column in (symbols, *columns))
        yield "".join(row % one for one in zip(*values, strict=True))


def _columns(array: NDArray[Any]) -> NDArray[Any]:
    """Columns of one or more numbers per atom."""
    return array.reshape(len(array), -1).T


Values = dict[str, tuple[str, NDArray[np.float64], str]]
"""Properties by name: "atom" or "structure", numbers, what they are."""


def _write_chemiscope(file: BinaryIO, of_set: SetStructures, chosen: range) -> None:
    frames = [of_set.frame(index) for index in chosen]
    lpr = np.concatenate([frame.arrays["lpr"] for frame in frames])
    pr = np.array([frame.info["structure_pr"] for frame in frames])
    what = "prediction rigidity of the structure, in the model's own convention"
    values: Values = {**lpr_values(lpr), "pr": ("structure", pr, what)}
    if all("committee_variance" in frame.arrays for frame in frames):
        variance = np.concatenate([frame.arrays["committee_variance"] for frame in frames])
        what = "variance over a committee of the environment's energy, eV^2"
        values["committee variance"] = ("atom", variance, what)
    words = {"group": [str(frame.info["group"]) for frame in frames]}
    shown = [
        (k, atom, of_set.cutoff) for k, frame in enumerate(frames) for atom in range(len(frame))
    ]
    write_chemiscope(file, of_set.name, frames, shown, values, words)


def lpr_values(lpr: NDArray[np.float64]) -> Values:
    """Rigidities of environments, and the logarithm by which chemiscope colours."""
    with np.errstate(divide="ignore"):
        logarithm = np.log10(lpr)
    return {
        "lpr": ("atom", lpr, "local prediction rigidity of the environment"),
        "log10 lpr": ("atom", logarithm, "its decimal logarithm"),
    }


def write_chemiscope(
    file: BinaryIO,
    name: str,
    frames: list[Any],
    environments: list[tuple[int, int, float]],
    values: Values,
    words: dict[str, list[str]],
) -> None:
    """Write structures for chemiscope.

    Parameters
    ----------
    file : binary file
    name : str
        Of the data set.
    frames : list of Atoms
    environments : list of (frame, atom, cutoff)
        Those that have values, in their order.
    values : dict
        With those of `lpr_values`.
    words : dict
        Properties of structures that are text.
    """
    import chemiscope

    scope: Any = chemiscope
    properties: Json = {
        name: {"target": target, "values": _finite(array), "description": description}
        for name, (target, array, description) in values.items()
    }
    properties |= {name: {"target": "structure", "values": text} for name, text in words.items()}
    data = scope.create_input(frames, properties=properties, environments=environments)
    data["meta"]["name"] = name
    data["settings"] = {"target": "atom"}
    if np.isfinite(properties["log10 lpr"]["values"]).any():
        data["settings"]["structure"] = [{"color": {"property": "log10 lpr"}}]
    text = io.TextIOWrapper(file, encoding="utf-8", write_through=True)
    json.dump(data, text)
    text.detach()


def _finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """NaN for what is infinite: chemiscope reads NaN, and no infinity."""
    return np.where(np.isfinite(values), values, np.nan)


_STRUCTURES: dict[str, Callable[[BinaryIO, SetStructures, range], None]] = {
    "extxyz": _write_extxyz,
    "chemiscope": _write_chemiscope,
}


# summaries --------------------------------------------------------------------------------------


def _summary_rows(result: Result, name: str | None) -> list[Json]:
    """The summary flat: a row per set, group and species; quantiles in columns, by per cent."""
    rows = []
    for of_set in result.sets if name is None else [name]:
        for row in result.summary[of_set]:
            flat: Json = {"set": of_set, "group": row["group"], "species": row["species"]}
            flat |= {key: row[key] for key in sorted(row) if key.startswith("n_")}
            for key in ("lpr", "prior_ratio", "committee_variance"):
                if key in row:
                    names = [f"{key}_q{round(100 * q):03d}" for q in QUANTILES]
                    flat |= dict(zip(names, row[key] or [None] * len(names), strict=True))
            if "rank_correlation" in row:
                flat["committee_rank_correlation"] = row["rank_correlation"]
            rows.append(flat)
    return rows


def _write_csv(file: BinaryIO, rows: list[Json]) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    text.detach()


def _write_parquet(file: BinaryIO, rows: list[Json]) -> None:
    import pyarrow
    import pyarrow.parquet

    arrow: Any = pyarrow
    arrow.parquet.write_table(arrow.Table.from_pylist(rows), file)


_TABLES: dict[str, Callable[[BinaryIO, list[Json]], None]] = {
    "csv": _write_csv,
    "parquet": _write_parquet,
}
