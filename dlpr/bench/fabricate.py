"""Sets with features of any number of columns, which cost nothing to compute: dlpr's own stages
take them, with real files, receipts and workers, as they take SOAP."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dlpr import descriptors
from dlpr.api import pipeline
from dlpr.bench.measure import timed
from dlpr.clusters import starter
from dlpr.core.blas import blas_kernel
from dlpr.descriptors import Descriptor, Soap
from dlpr.descriptors.kind import DERIVED, Kind
from dlpr.engine.events import Listener
from dlpr.engine.pipeline import Pipeline
from dlpr.job import Job
from dlpr.job.cluster import n_cores
from dlpr.store.folder import StageFolder
from dlpr.structures.frames import Piece

if TYPE_CHECKING:
    from distributed import Client

FREQUENCY = 40.0
"""Radians per Å of the waves: neighbouring rows are independent, the Hessian has full rank."""


class Waves(Kind):
    """``cos(w_k . r + b_k)`` of an atom's position r, for random w and b.

    Parameters
    ----------
    hypers : mapping
        ``waves``: the number of columns.
    species : sequence of int
    """

    kind = "waves"
    underived = dict.fromkeys(DERIVED, "it is made up")
    cutoff = 1.0

    def __init__(self, hypers: Mapping[str, Any], species: Sequence[int]) -> None:
        self._n_features = int(hypers["waves"])
        self.species = tuple(species)
        rng = np.random.default_rng(0)
        self._frequency = rng.normal(scale=FREQUENCY, size=(3, self.n_features))
        self._phase = rng.uniform(0, 2 * np.pi, self.n_features)

    @property
    def n_features(self) -> int:
        """Number of waves."""
        return self._n_features

    @property
    def columns(self) -> dict[str, NDArray[Any]]:
        """The number of each column."""
        return {"wave": np.arange(self.n_features)}

    def settings(self) -> dict[str, Any]:
        """What `make` takes back."""
        return {"soap": {"waves": self.n_features}, "species": list(self.species)}

    def compute(self, pieces: Sequence[Piece]) -> NDArray[np.float64]:
        """One row for each centre."""
        centres = [p.position if p.centre is None else p.position[p.centre] for p in pieces]
        rows: NDArray[np.float64] = np.concatenate(centres) @ self._frequency
        rows += self._phase
        return np.cos(rows, out=rows)

    def compute_nbytes(
        self,
        n_environments: int,
        n_atoms: int | None = None,
        density: float = 0.2,
        volume: float | None = None,
    ) -> int:
        """The rows, and some room."""
        return 8 * (n_environments + 64) * self.n_features


def make(hypers: Mapping[str, Any], species: Sequence[int]) -> Descriptor:
    """`Waves` where the hyperparameters say so, else SOAP."""
    return Waves(hypers, species) if "waves" in hypers else Soap(hypers, species)


def register() -> None:
    """Have this process take `make` for the descriptor that jobs call soap."""
    descriptors.KINDS["soap"] = make


def write_atoms(path: Path, n_frames: int, n_atoms: int, seed: int, forces: bool = False) -> None:
    """Frames of carbon atoms strewn at random, in extended xyz, with forces of 0 if need be."""
    rng = np.random.default_rng(seed)
    columns = "Properties=species:S:1:pos:R:3" + ":forces:R:3" * forces
    more = " 0.0 0.0 0.0" * forces
    with path.open("w") as file:
        for _ in range(n_frames):
            places = rng.uniform(0, 500, (n_atoms, 3))
            lines = [f"C {x:.8f} {y:.8f} {z:.8f}{more}" for x, y, z in places]
            file.write("\n".join([str(n_atoms), columns, *lines, ""]))


def again(steps: Pipeline, folder: StageFolder) -> float:
    """Seconds in which the workers do all tasks of a finished stage once more."""
    for task in range(folder.n_tasks):
        folder.withdraw(task)
    return timed(lambda: steps.workspace.finish("again", folder))


def fabricated_job(folder: Path, n_columns: int, **settings: Any) -> Job:
    """A job of this folder's ``train.xyz`` and ``test.xyz`` with `Waves` as its descriptor."""
    return Job.from_dict(
        {
            "output": "results",
            "train": {"files": "train.xyz", "minimum_distance": 0.0},
            "test": {"test": {"files": "test.xyz", "minimum_distance": 0.0}},
            "descriptor": {"soap": {"waves": n_columns}},
            "model": {"linear": {"regularizer": 1e-6}},
            "solver": "cholesky",
            "cluster": {"local": {"workers": n_cores()}},
            **settings,
        },
        base=folder,
    )


@contextmanager
def warm_client(job: Job) -> Iterator[Client]:
    """Workers of a job's own that know `Waves`."""
    register()
    running = starter(job.cluster, job.base).start(blas_kernel())
    try:
        running.client.run(register)
        yield running.client
    finally:
        running.close()


@contextmanager
def warm_pipeline(job: Job, *listeners: Listener) -> Iterator[Pipeline]:
    """A job's pipeline on such workers."""
    with (
        warm_client(job) as client,
        pipeline(job, client=client, listeners=listeners) as steps,
    ):
        yield steps
