"""A small data set that is audited night after night."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.build import bulk
from ase.io import write

from dlpr import api
from dlpr.audit import flagged, page
from dlpr.audit.night import run_audit
from dlpr.audit.record import AuditRecord, CheckRecord
from dlpr.audit.spec import AuditSpec
from dlpr.engine.executors import WorkExecutor

SOAP: dict[str, Any] = {
    "cutoff": {"radius": 3.0, "smoothing": {"type": "ShiftedCosine", "width": 0.5}},
    "density": {"type": "Gaussian", "width": 0.4},
    "basis": {
        "type": "TensorProduct",
        "max_angular": 2,
        "radial": {"type": "Gto", "max_radial": 2},
    },
}


def crystals(n: int, seed: int, amplitude: float = 0.1, group: str = "cold") -> list[Atoms]:
    """Rattled silicon of eight atoms; its energies are a function of its positions."""
    found = []
    for k in range(n):
        atoms = bulk("Si", cubic=True)
        rest = atoms.positions.copy()
        atoms.positions += np.random.default_rng((seed, k)).normal(0, amplitude, rest.shape)
        atoms.info["config_type"] = group
        atoms.info["energy"] = -4.0 * len(atoms) + float(np.square(atoms.positions - rest).sum())
        found.append(atoms)
    return found


def squeezed(n: int, seed: int) -> list[Atoms]:
    """Another phase: dense, and unlike all that the training set has."""
    found = []
    for k in range(n):
        atoms = bulk("Si", "fcc", a=3.9, cubic=True) * (2, 1, 1)
        atoms.positions += np.random.default_rng((seed, k)).normal(0, 0.1, atoms.positions.shape)
        atoms.info["energy"] = -3.0 * len(atoms)
        found.append(atoms)
    return found


class Nights:
    """A folder with structures and AUDIT.yaml.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.put("cold.xyz", crystals(20, 0))
        self.put("hot.xyz", crystals(20, 1, 0.3, "hot"))
        self.put("md_000.xyz", crystals(60, 2, 0.15))
        self.data: dict[str, Any] = {
            "train": {"files": ["cold.xyz", "hot.xyz"], "group_by": "config_type"},
            "test": {"md": {"files": "md_*.xyz"}},
            "descriptor": {"soap": deepcopy(SOAP)},
            "model": {"linear": {"regularizer": 1.0e-4}},
            "solver": "cholesky",
            "sample": {"count": 0},
            "cluster": {"local": {"workers": 1, "memory_per_worker": "2GiB"}},
        }

    def put(self, name: str, frames: Sequence[Atoms]) -> None:
        """Write a file of structures."""
        write(self.path / name, list(frames), format="extxyz")

    def spec(self, **other: Any) -> AuditSpec:
        """The audit, some of its keys replaced."""
        return AuditSpec.from_dict({**self.data, **other}, self.path)

    def save(self) -> Path:
        """Write AUDIT.yaml."""
        path = self.path / "AUDIT.yaml"
        path.write_text(yaml.safe_dump(self.data, sort_keys=False))
        return path

    def run(self, **other: Any) -> AuditRecord:
        """One night."""
        return run_audit(self.spec(**other))


def shorten(patch: pytest.MonkeyPatch, fsync: Callable[[int], None]) -> None:
    """Have nights in this process, without Dask, and without pages, which have their own tests.

    Parameters
    ----------
    patch : MonkeyPatch
    fsync : callable
        In place of the system's.
    """

    def here(*_: Any) -> WorkExecutor:
        return WorkExecutor(0)

    def write_page(record: AuditRecord, folder: Path) -> Path:
        path = folder / "index.html"
        path.write_text(record.title)
        return path

    def write_flagged(*_: Any) -> list[Path]:
        return []

    patch.setattr(api, "ClusterExecutor", here)
    patch.setattr(os, "fsync", fsync)
    patch.setattr(page, "write_page", write_page)
    patch.setattr(flagged, "write_flagged", write_flagged)


def alarms(record: AuditRecord) -> dict[tuple[str, str], CheckRecord]:
    """Checks that do not hold, by measure and set."""
    return {(one.measure, one.set): one for one in record.checks if one.verdict != "pass"}
