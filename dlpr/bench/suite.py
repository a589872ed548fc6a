"""All measurements by name, in the order in which they are taken."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from importlib import import_module
from pathlib import Path

from dlpr.bench.measure import DATA, Bench, Row, Sizes
from dlpr.bench.report import Report
from dlpr.store.files import explained

MEASUREMENTS = {
    "limits": "dlpr.bench.limits:measure",
    "sum": "dlpr.bench.passes:measure_sum",
    "fold": "dlpr.bench.passes:measure_fold",
    "forces": "dlpr.bench.forces:measure",
    "rigidity": "dlpr.bench.passes:measure_rigidity",
    "features": "dlpr.bench.passes:measure_features",
    "proposal": "dlpr.bench.proposal:measure",
    "accuracy": "dlpr.bench.accuracy:measure",
    "float32": "dlpr.bench.precision:measure",
    "peers": "dlpr.bench.naive:measure",
    "tiles": "dlpr.bench.tiles:measure",
    "growth": "dlpr.bench.growth:measure",
    "run": "dlpr.bench.runs:measure",
    "memory": "dlpr.bench.memory:measure",
    "simulate": "dlpr.bench.simulate:measure",
    "scaling": "dlpr.bench.scaling:measure",
}
"""Where each measurement lives; it is imported when it is taken."""
NEEDS = {"scaling": ("limits", "simulate")}
"""Measurements whose figures another one takes."""


def wanted(only: Sequence[str], found: Collection[str] = ()) -> list[str]:
    """The measurements to take: all, or some and what they need and is not found."""
    names = set(only or MEASUREMENTS)
    for name in only:
        names |= {needed for needed in NEEDS.get(name, ()) if needed not in found}
    return [name for name in MEASUREMENTS if name in names]


def run_bench(
    output: Path,
    sizes: Sizes,
    only: Sequence[str] = (),
    begin: Callable[[str], None] = lambda name: None,
    tell: Callable[[Row], None] = lambda row: None,
    data: Path = DATA,
) -> Report:
    """Take measurements and write them to ``bench.json``.

    Parameters
    ----------
    output : Path
        Made if need be. Its disk is the one that is measured.
    sizes : Sizes
    only : sequence of str
        Keys of `MEASUREMENTS`; none: all.
    begin, tell : callable
        Told of every measurement that begins, and of every row.
    data : Path
        See `Bench`.

    Raises
    ------
    StoreError
        If the folder cannot be written to, or another version wrote in it.
    """
    with explained(output):
        output.mkdir(parents=True, exist_ok=True)
    report = Report.load(output)
    for name in wanted(only, report.alike(sizes)):
        begin(name)
        module, _, function = MEASUREMENTS[name].partition(":")
        measure: Callable[[Bench], Iterator[Row]] = getattr(import_module(module), function)
        with explained(output):
            scratch = Path(tempfile.mkdtemp(prefix=f"{name}-", suffix=".scratch", dir=output))
        try:
            found = [row for other in report.alike(sizes) for row in report.rows(other)]
            bench = Bench(sizes, scratch, found, data)
            report.add(name, sizes, measure(bench), tell)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return report
