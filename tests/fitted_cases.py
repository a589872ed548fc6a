"""Small models, the runs that fitted them, and what these said."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

from dlpr.engine.executors import WorkExecutor
from dlpr.engine.output import write_job
from dlpr.engine.pipeline import Pipeline
from dlpr.engine.workspace import Workspace
from dlpr.handles import Result
from dlpr.job import Job
from dlpr.saving import fitted_model

HYPERS: dict[str, Any] = {
    "cutoff": {"radius": 3.5, "smoothing": {"type": "ShiftedCosine", "width": 0.5}},
    "density": {"type": "Gaussian", "width": 0.5},
    "basis": {
        "type": "TensorProduct",
        "max_angular": 1,
        "radial": {"type": "Gto", "max_radial": 1},
    },
}
SOAP = {"soap": HYPERS}
LINEAR = {"linear": {"regularizer": 1e-4}}
SHARED = {"linear": {"regularizer": 1e-4, "centre_species": "shared", "rows": "sqrt"}}
BASED = {"linear": {"regularizer": 1e-4, "baseline": {"composition": {"regularizer": 1e-3}}}}
ISOLATED = {"linear": {"regularizer": 1e-4, "baseline": {"isolated": {"Si": -3.0, "Ge": 2.0}}}}
REFERENCES = {"count": 5}
KERNEL = {"kernel": {"regularizer": 1e-3, "references": REFERENCES, "rows": "sum"}}
CUBIC = {
    "kernel": {
        "regularizer": 1e-3,
        "references": REFERENCES,
        "zeta": 3,
        "normalize": False,
        "baseline": {"composition": {"regularizer": 1e-3}},
    }
}
LODE = {
    "lode": {
        "density": {"type": "SmearedPowerLaw", "smearing": 1.0, "exponent": 1},
        "k_cutoff": 2.0,
        "basis": {
            "type": "TensorProduct",
            "max_angular": 1,
            "radial": {"type": "Gto", "max_radial": 1, "radius": 3.0},
        },
    }
}
RADIAL = {"radial": {**HYPERS, "basis": {"radial": {"type": "Gto", "max_radial": 2}}}}
PARTS = {"parts": {"pair": RADIAL, "short": SOAP}}
FAR = {"parts": {"far": LODE, **PARTS["parts"]}}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "linear": (LINEAR, SOAP, {"solver": "qr"}),
    "shared": (SHARED, SOAP, {"solver": "cholesky"}),
    "dual": (LINEAR, SOAP, {}),
    "composition": (BASED, SOAP, {"solver": "eigh"}),
    "isolated": (ISOLATED, SOAP, {"solver": "cholesky"}),
    "kernel": (KERNEL, SOAP, {"solver": "cholesky"}),
    "cubic": (CUBIC, SOAP, {"loss": {"forces": 0.1, "stress": 0.1}, "solver": "qr"}),
    "parts": (LINEAR, PARTS, {"loss": {"forces": 0.1}, "solver": "cholesky"}),
    "tiles": (LINEAR, SOAP, {"solver": "cholesky", "numerics": {"tile_columns": 7}}),
}


def frames_of(n: int, seed: int, film: bool = True) -> list[Atoms]:
    """Rattled crystals of SiGe with labels of all kinds, and one film, second of all."""
    rng = np.random.default_rng(seed)
    found = []
    for k in range(n):
        atoms = bulk("Si", cubic=k % 2 == 0).repeat((1, 1, 2))
        atoms.positions += rng.normal(scale=0.1, size=atoms.positions.shape)
        atoms.symbols[rng.random(len(atoms)) < 0.4] = "Ge"
        atoms.symbols[:2] = ["Si", "Ge"]
        if k == 1 and film:
            atoms.pbc = (True, True, False)
        labels = {"energy": rng.normal() * len(atoms), "forces": rng.normal(size=(len(atoms), 3))}
        if atoms.pbc.all():
            labels["stress"] = rng.normal(size=6)
        atoms.calc = SinglePointCalculator(atoms, **labels)
        found.append(atoms)
    return found


class Done:
    """A finished run, its test frames and the model it gives."""

    def __init__(
        self,
        folder: Path,
        model: Any,
        descriptor: Any = SOAP,
        film: bool = True,
        **settings: Any,
    ) -> None:
        write(folder / "train.xyz", frames_of(6, 0, film), format="extxyz")
        write(folder / "test.xyz", frames_of(3, 1, film), format="extxyz")
        data = {
            "output": "out",
            "train": {"files": "train.xyz"},
            "test": {"test": {"files": "test.xyz"}},
            "descriptor": descriptor,
            "model": model,
            **settings,
        }
        job = Job.from_dict(data, base=folder)
        workspace = Workspace(job.path(job.output), WorkExecutor(0))
        write_job(workspace.output, job)
        Pipeline(job, workspace).result()
        self.output = workspace.output
        self.frames: list[Atoms] = list(read(folder / "test.xyz", ":"))
        self.model = fitted_model(self.output)

    def expected(self, name: str) -> list[np.ndarray[Any, Any]]:
        """An array of the result, frame by frame."""
        group: Any = Result(self.output).open("test")
        values, offset = group[name][:], group["structure_offset"][:]
        if len(values) == len(offset) - 1:
            return list(values)
        return [values[a:b] for a, b in pairwise(offset)]
