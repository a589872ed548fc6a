"""Pictures of what was measured: cost against D, environments and workers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from dlpr.bench.measure import OURS, Row
from dlpr.bench.memory import MEASURED, PROMISED
from dlpr.bench.overhead import PARTS
from dlpr.bench.report import HOURS, Report
from dlpr.plots import STYLE
from dlpr.store.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OURS, _PEER = "#2f7fbf", "#a9adb3"
PASSES = ("fold", "forces", "rigidity", "sum")
"""Measurements of one pass for several D."""


def draw(report: Report) -> list[Path]:
    """Draw every picture whose figures there are, as SVG."""
    pictures: dict[str, tuple[Callable[[Report, Axes], None], bool]] = {
        "columns.svg": (_columns, any(report.rows(name) for name in PASSES)),
        "environments.svg": (_environments, bool(report.rows("run"))),
        "overhead.svg": (_overhead, bool(report.rows("run"))),
        "memory.svg": (_memory, bool(report.rows("memory"))),
        "workers.svg": (_workers, bool(report.rows("scaling"))),
        "scheduler.svg": (_scheduler, bool(report.rows("simulate"))),
    }
    return [
        _drawn(report.folder / name, function, report)
        for name, (function, is_there) in pictures.items()
        if is_there
    ]


def _drawn(path: Path, function: Callable[[Report, Axes], None], report: Report) -> Path:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.0, 4.6), layout="constrained")
        function(report, figure.subplots())
        with atomic_file(path) as file:
            figure.savefig(file, format="svg")
    return path


def _columns(report: Report, ax: Axes) -> None:
    """Microseconds per row or environment against D, dlpr and its peers."""
    kinds = {
        "fold of stored rows": ("rows", "o"),
        "fold of stored rows of forces": ("rows", "v"),
        "rigidity of stored features": ("environments", "s"),
        "segment sum of stored features": ("environments", "^"),
    }
    rows = [row for name in PASSES for row in report.rows(name)]
    for name, (count, marker) in kinds.items():
        found = [row for row in rows if row.name == name]
        if not found:
            continue
        d = [row.size["columns"] for row in found]
        ours = [1e6 * median(row.samples[OURS]) / row.size[count] for row in found]
        peer = [
            one * (row.value or 0.0) for one, row in zip(ours, found, strict=True)
        ]  # by the ratio of the table
        ax.plot(d, ours, f"{marker}-", color=_OURS, label=name)
        ax.plot(d, peer, f"{marker}--", color=_PEER, label=found[0].against)
    ax.set(xscale="log", yscale="log", xlabel="columns D", ylabel="µs per row or environment")
    ax.legend(fontsize=8)


def _environments(report: Report, ax: Axes) -> None:
    """Seconds of whole runs, and of the serial script scaled to them."""
    rows = report.rows("run")
    for workers in sorted({row.size["workers"] for row in _named(rows, "whole run")}):
        found = [row for row in _named(rows, "whole run") if row.size["workers"] == workers]
        n, seconds = [row.size["environments"] for row in found], [row.value or 0 for row in found]
        ax.plot(n, seconds, "o-", label=f"dlpr run, {workers} worker{'s' * (workers > 1)}")
    serial = [row for row in _named(rows, "whole run, times as fast") if row.samples]
    n = [row.size["environments"] for row in serial]
    seconds = [row.samples["script, scaled"][0] for row in serial]
    ax.plot(n, seconds, "s--", color=_PEER, label="ASE + featomic + scikit-matter, scaled")
    ax.set(xscale="log", yscale="log", xlabel="environments", ylabel="seconds")
    ax.legend()


def _overhead(report: Report, ax: Axes) -> None:
    """The parts of a run's core-seconds in which no task computed, for every run."""
    rows = report.rows("run")
    runs = [row.size for row in _named(rows, "overhead")]
    left = [0.0] * len(runs)
    labels = [f"{size['environments']:,} env., {size['workers']} workers" for size in runs]
    for part in PARTS:
        found = _named(rows, f"overhead: {part}")
        share = [100 * (row.value or 0.0) for row in found]
        ax.barh(labels, share, left=left, height=0.5, label=part)
        left = [a + b for a, b in zip(left, share, strict=True)]
    ax.axvline(5.0, color=_PEER, linestyle="--")
    ax.set(xlabel="% of the run's core-seconds in which no task computed")
    ax.legend(fontsize=8)


def _memory(report: Report, ax: Axes) -> None:
    """Peak of a worker and its promise against environments."""
    for name, color, mark in ((MEASURED, _OURS, "o-"), (PROMISED, _PEER, "s--")):
        rows = _named(report.rows("memory"), name)
        n = [row.size["environments"] for row in rows]
        ax.plot(n, [row.value or 0 for row in rows], mark, color=color, label=name)
    ax.set(xscale="log", xlabel="environments", ylabel="memory of a worker, MiB")
    ax.set_ylim(bottom=0)
    ax.legend()


def _workers(report: Report, ax: Axes) -> None:
    """Hours for 10^8 environments against workers, by D."""
    rows = _named(report.rows("scaling"), HOURS)
    for d in sorted({row.size["columns"] for row in rows}):
        found = [row for row in rows if row.size["columns"] == d]
        workers = [row.size["workers"] for row in found]
        ax.plot(workers, [row.value or 0 for row in found], "o-", label=f"D = {d:,}")
    ax.set(xscale="log", yscale="log", xlabel="workers of one core", ylabel="hours")
    ax.set_title("10^8 environments, by the model", loc="left")
    ax.legend()


def _scheduler(report: Report, ax: Axes) -> None:
    """Tasks per second through a real scheduler, against simulated workers."""
    rows = _named(report.rows("simulate"), "tasks per second")
    workers = [row.size["workers"] for row in rows]
    ax.plot(workers, [row.value or 0 for row in rows], "o-", color=_OURS)
    ax.set(xscale="log", xlabel="simulated workers", ylabel="tasks per second")
    ax.set_ylim(bottom=0)


def _named(rows: list[Row], name: str) -> list[Row]:
    return [row for row in rows if row.name == name and row.value is not None]
