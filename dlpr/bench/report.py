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

FORMAT_VERSION = 1
FILE = "bench.json"
HOURS = "10^8 environments"
SCALING_CAPTION = (
    "one core each; training set of 20 D structures of 64 atoms; features computed, never stored; "
    "constants of this machine, a file system of 10 GB/s; a factor in tiles stays in page caches"
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

    def all_rows(self) -> list[Row]:
        """Rows of all measurements."""
        return [row for name in self.measured for row in self.rows(name)]

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


def scaling_table(found: list[Row]) -> TextTable:
    """Hours for 10^8 environments by D and workers, and what a worker needs."""
    hours = [row for row in found if row.name == HOURS]
    columns = sorted({row.size["columns"] for row in hours})
    workers = sorted({row.size["workers"] for row in hours})
    kinds = list(dict.fromkeys(row.name for row in found if set(row.size) == {"columns"}))
    value = {(row.name, row.size.get("columns"), row.size.get("workers")): row for row in found}
    rows = [
        [
            f"{d:,}",
            *(show_value(value[HOURS, d, n]) for n in workers),
            *(show_value(value[kind, d, None]) for kind in kinds),
        ]
        for d in columns
    ]
    names = ("D", *(f"{n:,} worker{'s' * (n > 1)}" for n in workers), *kinds)
    return TextTable("10^8 environments, by the model", names, 0, rows, SCALING_CAPTION)


def tables(report: Report, names: Sequence[str]) -> list[TextTable]:
    """Tables of some measurements."""
    rows = [row for name in names if name != "scaling" for row in report.rows(name)]
    scaling = report.rows("scaling") if "scaling" in names else []
    beside = [row for row in scaling if row.against]
    made = [limit_table(rows), pass_table(rows + beside), scaling_table(scaling)]
    return [table for table in made if table.rows]
