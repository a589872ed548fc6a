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
from ase import Atoms
from ase.build import bulk
from ase.io import write

from dlpr import cli
from dlpr.stages import factor, rows, structures

PROGRAM = [sys.executable, "-m", "dlpr"]


@dataclass(frozen=True)
class Said:
    """What a command left behind: its exit code and what it printed."""

    code: int
    out: str
    err: str


def frames(n: int, symbol: str = "Si", seed: int = 0) -> list[Atoms]:
    """Small rattled crystals in two groups."""
    found = []
    for k in range(n):
        atoms = bulk("Si", cubic=True)
        atoms.set_chemical_symbols([symbol] * len(atoms))
        atoms.rattle(0.1, seed=seed + k)
        atoms.info["config_type"] = "even" if k % 2 == 0 else "odd"
        found.append(atoms)
    return found


class Desk:
    """A folder with train.xyz, probe.xyz and job.yaml, and the command line used in it.

    Commands run in this process (`says`) or in one of their own (`start`).
    """

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
        self.path = path
        self._monkeypatch, self._capsys = monkeypatch, capsys
        self.results = path / "results"
        self.put("train.xyz", frames(4))
        self.put("probe.xyz", frames(2, seed=40))
        self.job: dict[str, Any] = {
            "output": "results",
            "train": {"files": ["train.xyz"], "group_by": "config_type"},
            "test": {"probe": {"files": ["probe.xyz"]}},
            "descriptor": {
                "soap": {
                    "cutoff": {
                        "radius": 3.0,
                        "smoothing": {"type": "ShiftedCosine", "width": 0.5},
                    },
                    "density": {"type": "Gaussian", "width": 0.4},
                    "basis": {
                        "type": "TensorProduct",
                        "max_angular": 2,
                        "radial": {"type": "Gto", "max_radial": 2},
                    },
                }
            },
            "model": {"linear": {"regularizer": 1.0e-6}},
            "cluster": {"local": {"workers": 1, "memory_per_worker": "2GiB"}},
        }
        self.save()

    def put(self, name: str, atoms: Sequence[Atoms]) -> Path:
        """Write a file of structures."""
        path = self.path / name
        write(path, list(atoms), format="extxyz")
        return path

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
        code = 0
        try:
            cli.main()
        except SystemExit as leave:
            code = int(leave.code or 0)
        return Said(code, *self._capsys.readouterr())

    def does(self, *arguments: object) -> str:
        """Run a command that succeeds; what it printed."""
        said = self.says(*arguments)
        assert (said.code, said.err) == (0, ""), said
        return said.out

    def refuses(self, *arguments: object, code: int) -> str:
        """Run a command that fails as a user should see it: one message, no traceback."""
        said = self.says(*arguments)
        return message(said, code)

    def start(self, *arguments: object, **options: Any) -> subprocess.Popen[str]:
        """Begin a command in a process of its own."""
        return subprocess.Popen(
            [*PROGRAM, *map(str, arguments)],
            cwd=self.path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={k: v for k, v in os.environ.items() if not k.startswith("SLURM_")},
            **options,
        )

    def finish(self) -> np.ndarray:
        """Plan and work until the result is there; the rigidities of the probe."""
        self.does("plan", "job.yaml")
        self.does("work", "results")
        return self.lpr()

    def lpr(self, name: str = "probe", quantity: str = "lpr") -> np.ndarray:
        """The published rigidities."""
        import zarr

        return np.asarray(zarr.open_group(str(self.results / "rigidity.zarr"), mode="r")[name][f"environment_{quantity}"][:])  # fmt: skip


def message(said: Said, code: int) -> str:
    """The one message of a command that failed; nothing of the program's own in it."""
    assert said.code == code, said
    assert "Traceback" not in said.out + said.err, said
    assert said.err.startswith("Error: "), said
    assert said.err.count("Error: ") == 1, said
    return said.err.removeprefix("Error: ").rstrip()


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Desk:
    return Desk(tmp_path, monkeypatch, capsys)
