"""dlpr's passes, through its own stages on a worker for each core, in turn with their peers."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import google_crc32c
import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf, dtrtri

from dlpr.bench.fabricate import again, fabricated_job, warm_pipeline, write_atoms
from dlpr.bench.frames import SOAP, carbon_job, small_frames, write_carbon
from dlpr.bench.measure import Bench, Row, in_turn, ratio, timed
from dlpr.bench.peers import FeatomicAlone, fold_in_memory, multiply_in_memory, solve_in_memory
from dlpr.core.blas import blas_threads
from dlpr.engine.pipeline import Pipeline
from dlpr.job import Job
from dlpr.job.cluster import n_cores
from dlpr.stages.features import FeatureSource
from dlpr.stages.fold import all_rows
from dlpr.stages.model import open_model
from dlpr.stages.sources import sources_of
from dlpr.store.folder import StageFolder

FloatArray = NDArray[np.float64]
FRAME_ATOMS = 64
"""Atoms of a fabricated structure with more than one."""
LARGE_COLUMNS, FEW_REPEATS = 2000, 2
"""Beyond so many columns a route of minutes is repeated less often."""


def fabricate_rows(folder: Path, n_columns: int, n_rows: int, n_test: int) -> None:
    """A training set of ``n_rows`` structures of one atom, and ``n_test`` environments."""
    folder.mkdir()
    write_atoms(folder / "train.xyz", n_rows, 1, seed=1)
    write_atoms(folder / "test.xyz", max(1, n_test // FRAME_ATOMS), FRAME_ATOMS, seed=2)


def rows_in_memory(steps: Pipeline) -> FloatArray:
    """(n_structures, n_columns) rows of the training set."""
    model = open_model(steps.rows(), steps.model())
    sources = sources_of(steps.targets(), steps.kinds())
    return all_rows(sources, model, lambda kind, group: 1.0, np.zeros(1))[:, :-1]


def features_in_memory(steps: Pipeline, name: str) -> FloatArray:
    """(n_environments, n_columns) features of a set."""
    source = FeatureSource(steps.ingest(name), steps.feature_settings(name))
    tasks = range(len(source.edges) - 1)
    return np.concatenate([block for task in tasks for _, _, block in source.blocks(task)])


def measure_sum(bench: Bench) -> Iterator[Row]:
    """Stored features summed into structure rows, beside the sum in memory and a bare read."""
    return (_sum(bench, d) for d in bench.sizes.columns)


def _sum(bench: Bench, d: int) -> Row:
    folder = bench.scratch / f"D{d}"
    fabricate_rows(folder, d, 1, FRAME_ATOMS)
    n_frames = bench.sizes.n_rows(d) // FRAME_ATOMS
    write_atoms(folder / "train.xyz", n_frames, FRAME_ATOMS, seed=1)
    with warm_pipeline(fabricated_job(folder, d, store_train_features=True)) as steps:
        rows, stored = steps.rows(), steps.featurize("train")
        features = features_in_memory(steps, "train")
        samples = in_turn(
            partial(again, steps, rows),
            {
                "sum in memory": partial(sum_in_memory, features),
                "store read": partial(read_files, chunk_files(stored)),
            },
            bench.sizes.repeats,
        )
    size = {"columns": d, "environments": len(features), "workers": n_cores()}
    name, against = "segment sum of stored features", "sum in memory, or store read (the slower)"
    return Row(name, ratio(samples, max), "", size, against, 0.9, samples=samples)


def chunk_files(folder: StageFolder) -> list[Path]:
    """All files of a finished stage."""
    return [folder.path / name for receipt in folder.receipts() for name in receipt.files]


def sum_in_memory(features: FloatArray) -> float:
    """Sum over structures of `FRAME_ATOMS` environments, a run of them on every core."""
    edges = np.linspace(0, len(features) // FRAME_ATOMS, n_cores() + 1).astype(int) * FRAME_ATOMS

    def part(k: int) -> None:
        own = features[edges[k] : edges[k + 1]]
        np.add.reduceat(own, np.arange(0, len(own), FRAME_ATOMS), axis=0)

    with ThreadPoolExecutor(n_cores()) as pool:
        return timed(lambda: list(pool.map(part, range(n_cores()))))


def read_files(paths: list[Path]) -> float:
    """Read files and take their CRC-32C, on every core."""

    def read(path: Path) -> int:
        return int(google_crc32c.value(path.read_bytes()))

    with ThreadPoolExecutor(n_cores()) as pool:
        return timed(lambda: list(pool.map(read, paths)))


def measure_fold(bench: Bench) -> Iterator[Row]:
    """The Hessian of stored rows beside `dsyrk`, and the route of QR beside that of Cholesky."""
    for d in bench.sizes.columns:
        folder = bench.scratch / f"D{d}"
        fabricate_rows(folder, d, bench.sizes.n_rows(d), FRAME_ATOMS)
        with warm_pipeline(fabricated_job(folder, d, store_train_features=False)) as steps:
            yield _fold(steps, d, bench.sizes.repeats)
            few = bench.sizes.repeats if d <= LARGE_COLUMNS else FEW_REPEATS
            yield _routes(steps, d, few)


def _fold(steps: Pipeline, d: int, repeats: int) -> Row:
    partials, rows = steps.fold("hessian"), rows_in_memory(steps)
    matrix = np.zeros((d, d), order="F")
    peers = {"dsyrk": partial(fold_in_memory, rows, matrix)}
    samples = in_turn(partial(again, steps, partials), peers, repeats)
    size = {"columns": d, "rows": len(rows), "workers": n_cores()}
    name, against = "fold of stored rows", "dsyrk in memory, all cores"
    return Row(name, ratio(samples), "", size, against, 1.0, samples=samples)


def _routes(steps: Pipeline, d: int, repeats: int) -> Row:
    qr_job = Job.from_dict({**steps.job.resolved(), "solver": "qr"}, base=steps.job.base)
    by_qr = Pipeline(qr_job, steps.workspace, steps.kernel)
    stages = {
        "cholesky": [steps.fold("hessian"), steps.factor()],
        "qr": [by_qr.fold("triangle"), by_qr.factor()],
    }

    def route(solver: str) -> float:
        return sum(again(steps, folder) for folder in stages[solver])

    samples = in_turn(lambda: route("qr"), {"cholesky": lambda: route("cholesky")}, repeats)
    name, against = "QR route / Cholesky route", "dlpr's own Cholesky"
    size = {"columns": d, "workers": n_cores()}
    return Row(name, 1 / ratio(samples), "", size, against, 4.0, at_most=True, samples=samples)


def measure_rigidity(bench: Bench) -> Iterator[Row]:
    """Rigidities of stored features beside one triangular solve or multiplication in memory."""
    return (_rigidity(bench, d) for d in bench.sizes.columns)


def _rigidity(bench: Bench, d: int) -> Row:
    folder = bench.scratch / f"D{d}"
    fabricate_rows(folder, d, 2 * d, bench.sizes.n_rows(d))
    with warm_pipeline(fabricated_job(folder, d, store_test_features=True)) as steps:
        rigidity = steps.rigidity("test")
        features, triangle = features_in_memory(steps, "test"), triangle_of(steps)
        inverse = dtrtri(triangle, lower=0)[0]
        samples = in_turn(
            partial(again, steps, rigidity),
            {
                "dtrsm": partial(solve_in_memory, features, triangle),
                "dtrmm": partial(multiply_in_memory, features, inverse),
            },
            bench.sizes.repeats,
        )
    size = {"columns": d, "environments": len(features), "workers": n_cores()}
    name, against = "rigidity of stored features", "dtrsm or dtrmm in memory, all cores"
    return Row(name, ratio(samples), "", size, against, 0.85, samples=samples)


def triangle_of(steps: Pipeline) -> FloatArray:
    """R of the training rows and a small regularizer."""
    rows = rows_in_memory(steps)
    with blas_threads(n_cores()):
        hessian = rows.T @ rows
        hessian[np.diag_indices_from(hessian)] *= 1 + 1e-6
        triangle: FloatArray = dpotrf(hessian, lower=0)[0]
    return triangle


def measure_features(bench: Bench) -> Iterator[Row]:
    """SOAP of carbon: rigidities with nothing stored, and features into the store."""
    folder = bench.scratch / "carbon"
    frames, repeats = bench.sizes.frames, bench.sizes.repeats
    n = write_carbon(folder, 200 * frames, bench.sizes.train_frames)
    job = carbon_job(folder, n_cores())
    with warm_pipeline(job) as steps, FeatomicAlone(SOAP, small_frames(frames)) as alone:
        rigidity = steps.rigidity("carbon")
        triangle, features = triangle_of(steps), features_in_memory(steps, "carbon")
        size = {"columns": features.shape[1], "environments": n, "workers": n_cores()}
        samples = in_turn(
            lambda: again(steps, rigidity),
            {"featomic and dtrsm": lambda: alone.seconds() + solve_in_memory(features, triangle)},
            repeats,
        )
        name, against = "features and rigidity, nothing stored", "featomic alone + dtrsm alone"
        yield Row(name, ratio(samples), "", size, against, 1.8, samples=samples)
        stored = steps.featurize("carbon")
        samples = in_turn(lambda: again(steps, stored), {"featomic": alone.seconds}, repeats)
        name, against = "features into the store", "featomic alone"
        yield Row(name, ratio(samples), "", size, against, 1.5, samples=samples)
