"""Frames of carbon that measurements read, and the SOAP they are described by."""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import ase.build
import ase.io
import numpy as np

from dlpr.job import Job

SOAP: dict[str, Any] = {
    "cutoff": {"radius": 5.0, "smoothing": {"type": "ShiftedCosine", "width": 0.5}},
    "density": {"type": "Gaussian", "width": 0.3},
    "basis": {
        "type": "TensorProduct",
        "max_angular": 12,
        "radial": {"type": "Gto", "max_radial": 9},
    },
}
"""10 radial functions, l up to 12: 715 distinct columns for one species."""
ALPHA = 1e-8
TRAIN, SMALL, LARGE = 64, 200, 64_000
"""Atoms of a frame of the training set, and of the frames of a test set."""
_REPEAT = {TRAIN: (2, 2, 2), SMALL: (5, 5, 1), LARGE: (20, 20, 20)}
_FRAMES_PER_FILE = 500


def carbon(n_atoms: int, rng: np.random.Generator) -> ase.Atoms:
    """Diamond, strained and rattled: `TRAIN`, `SMALL` or `LARGE` atoms."""
    cell = ase.build.bulk("C", "diamond", a=3.57 * rng.uniform(0.97, 1.12), cubic=True)
    atoms: ase.Atoms = cell * _REPEAT[n_atoms]
    atoms.positions += rng.normal(0, rng.uniform(0.05, 0.25), atoms.positions.shape)
    return atoms


def small_frames(count: int, seed: int = 0) -> list[ase.Atoms]:
    """Frames of `SMALL` atoms."""
    rng = np.random.default_rng(seed)
    return [carbon(SMALL, rng) for _ in range(count)]


def write_carbon(folder: Path, n_environments: int, train_frames: int) -> int:
    """Write ``train.xyz`` and the test set ``test-*.xyz``; returns the environments of the latter.

    Half of them are in frames of `LARGE` atoms as far as that comes out even.
    """
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    write_frames(folder / "train.xyz", (carbon(TRAIN, rng) for _ in range(train_frames)))
    n_large = round(n_environments / 2 / LARGE)
    for k in range(n_large):
        write_frames(folder / f"test-large-{k:03d}.xyz", iter([carbon(LARGE, rng)]))
    n_small = (n_environments - n_large * LARGE) // SMALL
    for k in range(0, n_small, _FRAMES_PER_FILE):
        count = min(_FRAMES_PER_FILE, n_small - k)
        write_frames(folder / f"test-small-{k:06d}.xyz", (carbon(SMALL, rng) for _ in range(count)))
    return n_large * LARGE + n_small * SMALL


def write_frames(path: Path, frames: Iterator[ase.Atoms]) -> None:
    """Write frames as extended xyz."""
    ase.io.write(path, list(frames), format="extxyz")


def frame_text(atoms: ase.Atoms) -> str:
    """A frame as `write_frames` writes it."""
    text = StringIO()
    ase.io.write(text, atoms, format="extxyz")
    return text.getvalue()


def carbon_job(folder: Path, workers: int, **settings: Any) -> Job:
    """A job of what `write_carbon` wrote into ``folder``."""
    return Job.from_dict(
        {
            "output": "results",
            "train": {"files": "train.xyz"},
            "test": {"carbon": {"files": "test-*.xyz"}},
            "descriptor": {"soap": SOAP},
            "model": {"linear": {"regularizer": ALPHA}},
            "cluster": {"local": {"workers": workers, "memory_per_worker": "4GiB"}},
            **settings,
        },
        base=folder,
    )
