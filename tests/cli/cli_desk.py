"""A user's folder with structures and a job, and the commands that the user types in it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
import zarr
from ase import Atoms
from ase.build import bulk
from ase.io import write
from numpy.typing import NDArray

from dlpr import cli
from dlpr.stages import factor, rows, structures


@dataclass(frozen=True)
class Said:
    """What a command left behind: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """The one message of a command that failed, with nothing of the program's own in it."""
        assert self.code != 0, self
        assert "Traceback" not in self.out + self.err, self
        assert self.err.startswith("Error: "), self
        assert self.err.count("Error") == 1, self
        return self.err.removeprefix("Error: ").rstrip()


def crystals(n: int, seed: int = 0) -> list[Atoms]:
    """Small rattled crystals in two groups."""
    found = []
    for k in range(n):
        atoms = bulk("Si", cubic=True)
        atoms.rattle(0.1, seed=seed + k)
        atoms.info["config_type"] = "even" if k % 2 == 0 else "odd"
        found.append(atoms)
    return found


class Desk:
    """A folder with train.xyz, probe.xyz and job.yaml, and the command line used in it."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
        self.path, self.results = path, path / "results"
        self._monkeypatch, self._capsys = monkeypatch, capsys
        self.put("train.xyz", crystals(4))
        self.put("probe.xyz", crystals(2, seed=40))
        cutoff = {"radius": 3.0, "smoothing": {"type": "ShiftedCosine", "width": 0.5}}
        basis = {
            "type": "TensorProduct",
            "max_angular": 2,
            "radial": {"type": "Gto", "max_radial": 2},
        }
        density = {"type": "Gaussian", "width": 0.4}
        self.job: dict[str, Any] = {
            "output": "results",
            "train": {"files": ["train.xyz"], "group_by": "config_type"},
            "test": {"probe": {"files": ["probe.xyz"]}},
            "descriptor": {"soap": {"cutoff": cutoff, "density": density, "basis": basis}},
            "model": {"linear": {"regularizer": 1.0e-6}},
            "solver": "cholesky",
            "cluster": {"local": {"workers": 1, "memory_per_worker": "2GiB"}},
        }
        self.save()

    def put(self, name: str, atoms: Sequence[Atoms]) -> None:
        """Write a file of structures."""
        write(self.path / name, list(atoms), format="extxyz")

    def save(self) -> None:
        """Write the job file."""
        (self.path / "job.yaml").write_text(yaml.safe_dump(self.job, sort_keys=False))

    def says(self, *arguments: object) -> Said:
        """Run a command in this process, with nothing remembered from the one before."""
        for module in (structures, rows, factor):
            module._open.cache_clear()
        self._monkeypatch.chdir(self.path)
        self._monkeypatch.setattr(sys, "argv", ["dlpr", *map(str, arguments)])
        self._capsys.readouterr()
        code: object = 0
        try:
            cli.main()
        except SystemExit as leave:
            code = leave.code
        assert isinstance(code, int)
        return Said(code, *self._capsys.readouterr())

    def does(self, *arguments: object) -> str:
        """What a command prints that succeeds."""
        said = self.says(*arguments)
        assert (said.code, said.err) == (0, ""), said
        return said.out

    def refuses(self, *arguments: object, code: int) -> str:
        """The message of a command that leaves with ``code``."""
        said = self.says(*arguments)
        message = said.message
        assert said.code == code, said
        return message

    def start(self, *arguments: object, **options: Any) -> subprocess.Popen[str]:
        """Begin a command in a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "dlpr", *map(str, arguments)],
            cwd=self.path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={k: v for k, v in os.environ.items() if not k.startswith("SLURM_")},
            **options,
        )

    def finish(self) -> NDArray[np.float64]:
        """Plan and work until the result is there; the rigidities of the probe."""
        self.does("plan", "job.yaml")
        self.does("work", "results")
        return self.of_probe("lpr")

    def of_probe(self, quantity: str) -> NDArray[Any]:
        """A quantity of the probe's environments, as published."""
        group = zarr.open_group(str(self.results / "rigidity.zarr"), mode="r")
        return np.asarray(group[f"probe/environment_{quantity}"][:])  # type: ignore[index]

    def stage(self, pattern: str) -> Path:
        """The one thing below work/ that a pattern names."""
        (found,) = self.results.glob(f"work/{pattern}")
        return found

    def receipts(self) -> dict[str, int]:
        """Receipts of finished tasks and when they were written."""
        found = self.results.glob("work/*/receipts/*.json")
        return {
            path.relative_to(self.results).as_posix(): path.stat().st_mtime_ns for path in found
        }


def finished(process: subprocess.Popen[str], timeout: float = 60.0) -> Said:
    """Wait for a command in a process of its own."""
    out, err = process.communicate(timeout=timeout)
    return Said(process.returncode, out, err)


JOB, INPUT, STORE, RESOURCE = 2, 3, 4, 5
"""Exit codes."""


def leftovers(desk: Desk) -> list[Path]:
    """What a command that stopped has left half-written."""
    return [path for path in desk.results.rglob("*") if path.name.endswith(".partial")]
