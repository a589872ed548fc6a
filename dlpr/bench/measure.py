"""What a measurement is made of: samples in turn, rows of the table, the state of the machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from dlpr.core.blas import blas_kernel
from dlpr.engine.probe import versions
from dlpr.job.cluster import n_cores

Json = dict[str, Any]
Samples = dict[str, list[float]]
DATA = Path("../shared/data")
"""Where the developers' data lie, beside a checkout."""
FEWEST_COLUMNS, FEWEST_ENVIRONMENTS = 32, 200
"""D at least, and environments of a whole run: one small frame."""
MOST_ROWS = 1 << 20
"""Stored rows that are enough for any D: each is a structure in a file."""
CORETYPE = "OPENBLAS_CORETYPE"
OURS = "dlpr"
"""Name of dlpr's own samples; all others are of peers."""


@dataclass(frozen=True)
class Row:
    """One measured figure.

    Attributes
    ----------
    name : str
    value : float or None
        None: not measured, ``note`` says why.
    unit : str
        "" for a ratio.
    size : dict
        What it was measured at: columns, environments, workers, threads.
    against : str
        The peer.
    reach : float or None
        The floor, or with ``at_most`` the ceiling, of the value.
    at_most : bool
    samples : dict of str to list of float
        Seconds of each repeat, of dlpr and of its peer.
    note : str
    """

    name: str
    value: float | None
    unit: str = ""
    size: Json = field(default_factory=dict)
    against: str = ""
    reach: float | None = None
    at_most: bool = False
    samples: Samples = field(default_factory=dict)
    note: str = ""

    @property
    def is_reached(self) -> bool | None:
        """Whether the value is at least (or at most) what is to be reached; None: no such thing."""
        if self.reach is None or self.value is None:
            return None
        return self.value <= self.reach if self.at_most else self.value >= self.reach


@dataclass(frozen=True)
class Sizes:
    """How large the measurements are.

    Attributes
    ----------
    columns : tuple of int
        D.
    rows_per_column, fewest_numbers : int
        Stored rows and features: N / D at least, and N D at least. Few tasks share out badly.
    repeats : int
    frames : int
        Frames of 200 atoms that features are computed of: just under 2 tasks.
    environments : tuple of int
        Of whole runs, ascending; those with one worker and of the peers are of the first.
    train_frames : int
        Frames of 64 atoms in the training set of a whole run.
    serial_seconds : float
        What the serial script may take.
    workers : tuple of int
        Simulated workers.
    simulated_tasks : int
        For each number of workers.
    tiled_columns : (int, int)
        D at which tiles are held against one piece, and D that goes beyond a worker's memory.
    tiled_rows, tile_columns : int
        Rows of these training sets, and columns of a tile.
    memory_environments : tuple of int
        Of runs whose workers' memory is compared.
    grown_environments : int
        Of a training set before it grows: more than one part of the structures.
    proposal : (int, int, int)
        D, candidates and targets of picks to label next.
    is_quick : bool
        Whether figures mean nothing.
    """

    columns: tuple[int, ...] = (715, 1300, 2000, 4000)
    rows_per_column: int = 20
    fewest_numbers: int = 1 << 28
    repeats: int = 5
    frames: int = 163
    environments: tuple[int, ...] = (128_000, 1_000_000)
    train_frames: int = 450
    serial_seconds: float = 120.0
    workers: tuple[int, ...] = (10, 100, 300)
    simulated_tasks: int = 1500
    tiled_columns: tuple[int, int] = (6000, 30_000)
    tiled_rows: int = 6000
    tile_columns: int = 4096
    memory_environments: tuple[int, ...] = (100_000, 1_000_000, 10_000_000)
    grown_environments: int = 300_000
    proposal: tuple[int, int, int] = (1000, 2000, 1000)
    is_quick: bool = False

    def n_rows(self, n_columns: int) -> int:
        """Stored rows, or environments, of a D."""
        some = min(MOST_ROWS, self.fewest_numbers // n_columns)
        return max(some, self.rows_per_column * n_columns)


QUICK = Sizes(
    columns=(300,),
    rows_per_column=10,
    fewest_numbers=0,
    repeats=2,
    frames=8,
    environments=(2_000,),
    train_frames=16,
    serial_seconds=5.0,
    workers=(10,),
    simulated_tasks=100,
    tiled_columns=(200, 400),
    tiled_rows=150,
    tile_columns=96,
    memory_environments=(1_000, 4_000),
    grown_environments=6400,
    proposal=(60, 80, 30),
    is_quick=True,
)
"""Shows that everything runs; its figures mean nothing."""


@dataclass(frozen=True)
class Bench:
    """What a measurement is given.

    Attributes
    ----------
    sizes : Sizes
    scratch : Path
        A folder for its files, on the disk whose speed counts.
    found : list of Row
        All that was measured before.
    data : Path
        A folder of carbon structures of the literature, which may be absent.
    """

    sizes: Sizes
    scratch: Path
    found: list[Row]
    data: Path = DATA

    def rows(self, name: str, **size: object) -> list[Row]:
        """Rows of a name and a size that have a value."""
        return [
            row
            for row in self.found
            if row.name == name
            and row.value is not None
            and all(row.size.get(key) == value for key, value in size.items())
        ]

    def value(self, name: str, **size: object) -> float:
        """The value of the last row of a name and a size (that of the most columns)."""
        value = self.rows(name, **size)[-1].value
        assert value is not None
        return value


def timed(function: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def sample(function: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each of several calls, after one that does not count."""
    function()
    return [timed(function) for _ in range(repeats)]


def in_turn(
    ours: Callable[[], float], peers: Mapping[str, Callable[[], float]], repeats: int
) -> Samples:
    """Samples of dlpr and its peers taken by turns, so that a drifting machine favours nobody.

    Each function returns the seconds it took. A first round does not count.
    """
    functions = {OURS: ours, **peers}
    found: Samples = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            seconds = function()
            if turn:
                found[name].append(seconds)
    return found


def ratio(samples: Samples, pick: Callable[[list[float]], float] = min) -> float:
    """Seconds of the quickest peer (or of the one to pick) over those of dlpr, of medians.

    Above 1 where dlpr is quicker.
    """
    medians = {name: median(found) for name, found in samples.items()}
    return pick([value for name, value in medians.items() if name != OURS]) / medians[OURS]


def conditions() -> Json:
    """Time, machine, load, BLAS kernel and versions."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "load": list(os.getloadavg()),
        "cores": n_cores(),
        "processor": _processor(),
        "memory_nbytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "blas": blas_kernel(),
        "held_back": held_back(),
        "environment": {
            name: value
            for name, value in os.environ.items()
            if name.endswith(("_NUM_THREADS", "_CORETYPE"))
        },
        "versions": versions("google-crc32c", "skmatter"),
    }


def held_back() -> str | None:
    """Say whether the environment keeps OpenBLAS from the kernel that it takes by itself here.

    dlpr's own setting is not meant: embedded workers get the kernel of this process. What counts
    is what was set before it began.
    """
    asked = os.environ.get(CORETYPE)
    if asked is None:
        return None
    environment = {name: value for name, value in os.environ.items() if name != CORETYPE}
    code = "from dlpr.core.blas import blas_kernel; print(blas_kernel())"
    free = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()
    if free == blas_kernel():
        return None
    return (
        f"{CORETYPE}={asked} in the environment holds BLAS to {blas_kernel()}; by itself it would "
        f"take {free} here. All figures, dlpr's and its peers', are of the former: unset "
        f"{CORETYPE} to measure this machine at its best."
    )


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    names = path.read_text().splitlines() if path.exists() else []
    return next((s.partition(":")[2].strip() for s in names if s.startswith("model name")), "")
