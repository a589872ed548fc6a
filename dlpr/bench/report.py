"""What was measured: a JSON file that grows measurement by measurement, and tables of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from dlpr.bench.measure import Json, Row, Sizes, conditions
from dlpr.errors import StoreError
from dlpr.store.files import read_json, write_json
from dlpr.tables import TextTable

FORMAT_VERSION = 2
FILE = "bench.json"
HOURS, LOAD, TRAFFIC = "10^8 environments", "scheduler's load", "bytes moved"
"""Rows of the scaling model by D and workers: hours of a run, the share of it in which client and
scheduler are busy, and what workers read and write together."""
LOADED = 10
"""Workers from which on load and traffic are shown."""
SCALING_CAPTION = (
    "one core each; training set of 20 D structures of 64 atoms; features computed, never stored; "
    "constants of this machine, a file system of 10 GB/s; a factor in tiles stays in page caches"
)


LOAD_CAPTION = (
    "by the number of workers; load: share of the run in which client and scheduler are busy (much "
    "above 50 %, make longer tasks); bytes: parts, partials and results, a factor once a worker"
)


@dataclass
class Report:
    """All measurements of a folder.

    Attributes
    ----------
    folder : Path
    measured : dict
        By name: ``conditions`` (time, load, versions, kernel), ``sizes``, ``seconds``, ``rows``.
    """

    folder: Path
    measured: dict[str, Json]

    @classmethod
    def load(cls, folder: Path) -> Report:
        """What the folder holds; nothing where there is none.

        Raises
        ------
        StoreError
            If another version wrote it.
        """
        found = read_json(folder / FILE)
        if found is None:
            return cls(folder, {})
        if found.get("format_version") != FORMAT_VERSION:
            raise StoreError(
                f"{folder / FILE} has format {found.get('format_version')!r}, this dlpr writes "
                f"{FORMAT_VERSION}. Give another folder with --output."
            )
        return cls(folder, found["measured"])

    def rows(self, name: str) -> list[Row]:
        """Rows of one measurement."""
        return [Row(**row) for row in self.measured.get(name, {"rows": []})["rows"]]

    def alike(self, sizes: Sizes) -> list[str]:
        """Measurements whose figures may stand beside those of other sizes: quick ones, or not."""
        return [
            name
            for name, record in self.measured.items()
            if record["sizes"]["is_quick"] == sizes.is_quick
        ]

    def add(
        self, name: str, sizes: Sizes, rows: Iterator[Row], tell: Callable[[Row], None]
    ) -> None:
        """Take a measurement, in place of an earlier one of its name; every row is kept at once."""
        record: Json = {"conditions": conditions(), "sizes": asdict(sizes), "rows": []}
        self.measured[name] = record
        start = time.perf_counter()
        for row in rows:
            record["rows"].append(asdict(row))
            record["seconds"] = time.perf_counter() - start
            content = {"format_version": FORMAT_VERSION, "measured": self.measured}
            write_json(self.folder / FILE, content)
            tell(row)


def line(row: Row) -> str:
    """A row in words, for whoever waits."""
    floor = "" if row.reach is None else f" ({'<=' if row.at_most else '>='} {row.reach:g})"
    note = f"; {row.note}" if row.note else ""
    return f"{row.name} [{show_size(row)}]: {show_value(row)}{floor}{note}"


def show_size(row: Row) -> str:
    """What a row was measured at."""
    short = {"columns": "D", "environments": "env"}
    return ", ".join(f"{short.get(key, key)} {_number(value)}" for key, value in row.size.items())


def show_value(row: Row) -> str:
    """A value with its unit."""
    return "-" if row.value is None else f"{_number(row.value)} {row.unit}".strip()


def _number(value: object) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def pass_table(found: list[Row]) -> TextTable:
    """Every figure that has a peer or a floor."""
    rows = [
        [
            row.name,
            show_size(row),
            show_value(row),
            "" if row.reach is None else f"{'<=' if row.at_most else '>='} {row.reach:g}",
            {True: "reached", False: "NOT reached", None: ""}[row.is_reached],
            row.against,
            _seconds(row),
        ]
        for row in found
        if row.against or row.reach is not None
    ]
    names = ("measurement", "size", "value", "reach", "", "against", "medians, s")
    caption = "a ratio is the peer's seconds over dlpr's, medians of samples taken in turn"
    return TextTable("What dlpr makes of the machine", names, 2, rows, caption)


def _seconds(row: Row) -> str:
    return ", ".join(f"{name} {median(found):.3g}" for name, found in row.samples.items())


def limit_table(found: list[Row]) -> TextTable:
    """Every figure that stands alone."""
    rows = [
        [row.name, show_size(row), show_value(row), row.note]
        for row in found
        if not row.against and row.reach is None
    ]
    return TextTable("What the machine does", ("limit", "size", "value", ""), 2, rows)


def scaling_tables(found: list[Row]) -> list[TextTable]:
    """Hours for 10^8 environments by D and workers, what a worker needs, what the others bear."""
    kinds = list(dict.fromkeys(row.name for row in found if set(row.size) == {"columns"}))
    many = [row for row in found if row.size.get("workers", LOADED) >= LOADED]
    return [
        _by_columns("10^8 environments, by the model", found, (HOURS,), kinds, SCALING_CAPTION),
        _by_columns(
            "10^8 environments, scheduler and files", many, (LOAD, TRAFFIC), (), LOAD_CAPTION
        ),
    ]


def _by_columns(
    title: str, found: list[Row], shared: Sequence[str], own: Sequence[str], caption: str
) -> TextTable:
    """A row for each D: figures by workers, then those that know none."""
    value = {(row.name, row.size.get("columns"), row.size.get("workers")): row for row in found}
    of_shared = [row.size for row in found if row.name in shared]
    workers = sorted({size["workers"] for size in of_shared})
    heads = [(name, n) for name in shared for n in workers]
    rows = [
        [
            f"{d:,}",
            *(show_value(value[name, d, n]) for name, n in [*heads, *((k, None) for k in own)]),
        ]
        for d in sorted({size["columns"] for size in of_shared})
    ]
    named = len(shared) > 1
    names = [f"{name}, {n:,}" if named else f"{n:,} worker{'s' * (n > 1)}" for name, n in heads]
    return TextTable(title, ("D", *names, *own), 0, rows, caption)


def tables(report: Report, names: Sequence[str]) -> list[TextTable]:
    """Tables of some measurements."""
    rows = [row for name in names if name != "scaling" for row in report.rows(name)]
    scaling = report.rows("scaling") if "scaling" in names else []
    beside = [row for row in scaling if row.against]
    made = [limit_table(rows), pass_table(rows + beside), *scaling_tables(scaling)]
    return [table for table in made if table.rows]
