"""Memory of a worker from 100 thousand to 10 million environments, with a descriptor that is cheap.

Half of the environments are in frames of 64,000 atoms. Frames are a few, written again and again:
it is their number that memory could depend on, not what is in them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from dlpr.bench.fabricate import warm_pipeline
from dlpr.bench.frames import LARGE, SMALL, carbon, carbon_job, frame_text, write_carbon
from dlpr.bench.measure import Bench, Row
from dlpr.bench.watch import peak_nbytes, promised_nbytes
from dlpr.job.cluster import n_cores

CHEAP = {
    "cutoff": {"radius": 3.0, "smoothing": {"type": "ShiftedCosine", "width": 0.5}},
    "density": {"type": "Gaussian", "width": 0.5},
    "basis": {
        "type": "TensorProduct",
        "max_angular": 1,
        "radial": {"type": "Gto", "max_radial": 1},
    },
}
"""2 radial functions, l up to 1: 6 columns."""
FLAT = 1.1
MEASURED, PROMISED = "peak of a worker, cheap SOAP", "promise of a worker, cheap SOAP"
"""Rows of bytes, whose ratio is one as well."""
_TRAIN_FRAMES = 20
_KINDS = {LARGE: (2, 8), SMALL: (50, 500)}
"""Different frames of a size, and frames of a file at most."""


def measure(bench: Bench) -> Iterator[Row]:
    """Peak of a worker and its promise for every size, and the largest over the smallest."""
    peaks: dict[int, int] = {}
    for n in bench.sizes.memory_environments:
        folder = bench.scratch / f"cheap-{n}"
        write_carbon(folder, 0, _TRAIN_FRAMES)
        count = _write(folder, n)
        with warm_pipeline(carbon_job(folder, n_cores(), descriptor={"soap": CHEAP})) as steps:
            steps.result()
            peaks[n], promise = peak_nbytes(steps), promised_nbytes(steps)
            used = steps.workspace.used.values()
            seconds = sum(r.cost["seconds"] for stage in used for r in stage.receipts())
        shutil.rmtree(folder)
        size = {"environments": count, "workers": n_cores()}
        note = f"tasks took {seconds:.0f} s"
        yield Row(MEASURED, peaks[n] / 2**20, "MiB", size, note=note)
        yield Row(PROMISED, promise / 2**20, "MiB", size)
        name, against = "memory of a worker / promise, cheap SOAP", "the stages' promise"
        yield Row(name, peaks[n] / promise, "", size, against, 1.0, True)
    span = {"environments": f"{min(peaks):,} to {max(peaks):,}"}
    value = max(peaks.values()) / min(peaks.values())
    yield Row("memory of a worker, largest / smallest", value, "", span, "", FLAT, True)


def _write(folder: Path, n_environments: int) -> int:
    """The test set; returns its environments."""
    rng = np.random.default_rng(1)
    n_large = round(n_environments / 2 / LARGE)
    counts = {LARGE: n_large, SMALL: (n_environments - n_large * LARGE) // SMALL}
    for n_atoms, count in counts.items():
        n_kinds, per_file = _KINDS[n_atoms]
        texts = [frame_text(carbon(n_atoms, rng)) for _ in range(min(n_kinds, count))]
        frames = iter(texts[k % n_kinds] for k in range(count))
        for start in range(0, count, per_file):
            with (folder / f"test-{n_atoms}-{start:06d}.xyz").open("w") as file:
                file.writelines(islice(frames, per_file))
    return sum(n_atoms * count for n_atoms, count in counts.items())
