"""dlpr beside scikit-matter and beside what one writes with dask.array, on equal numbers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

import dlpr
from dlpr.bench.fabricate import again, fabricated_job, warm_pipeline
from dlpr.bench.measure import Bench, Row, in_turn, ratio, timed
from dlpr.bench.passes import fabricate_rows, features_in_memory, rows_in_memory
from dlpr.bench.peers import naive_dask, scikit_matter, write_stack
from dlpr.core.blas import blas_threads
from dlpr.job.cluster import n_cores

FloatArray = NDArray[np.float64]
N_TEST = 2000
"""Environments of scikit-matter's loop."""
ALPHA = 1e-6
MOST_COLUMNS = 2000


def measure(bench: Bench) -> Iterator[Row]:
    """Both peers, of every D that they can do in reasonable time."""
    for d in bench.sizes.columns:
        if d <= MOST_COLUMNS:
            yield _scikit_matter(d, bench.sizes.repeats)
            yield _dask(bench, d)


def _scikit_matter(d: int, repeats: int) -> Row:
    """LPR of arrays in memory: the same function of both packages."""
    name, against = "local_prediction_rigidity in memory", "scikit-matter"
    size = {"columns": d, "rows": 2 * d, "environments": N_TEST}
    try:
        local_prediction_rigidity = scikit_matter()
    except ImportError:
        return Row(name, None, "", size, against, note="not installed")
    rng = np.random.default_rng(0)
    train = list(rng.standard_normal((2 * d, 2, d)))
    test = [rng.standard_normal((N_TEST, d))]
    with blas_threads(n_cores()):
        samples = in_turn(
            lambda: timed(lambda: dlpr.local_prediction_rigidity(train, test, ALPHA)),
            {"scikit-matter": lambda: timed(lambda: local_prediction_rigidity(train, test, ALPHA))},
            min(repeats, 2),
        )
    return Row(name, ratio(samples), "", size, against, samples=samples)


def _dask(bench: Bench, d: int) -> Row:
    """Fold, factorization and rigidity of stored rows and features, on the same workers."""
    folder = bench.scratch / f"D{d}"
    n = bench.sizes.n_rows(d)
    fabricate_rows(folder, d, n, n)
    job = fabricated_job(folder, d, store_train_features=False, store_test_features=True)
    with warm_pipeline(job) as steps:
        stages = [steps.fold("hessian"), steps.factor(), steps.rigidity("test")]
        rows, features = rows_in_memory(steps), features_in_memory(steps, "test")
        chunk_rows = steps.feature_settings("test")["block_environments"]
        stacks = [
            write_stack(folder / name, array, chunk_rows)
            for name, array in (("x_train", rows), ("x_test", features))
        ]
        client = getattr(steps.workspace.executor, "client")  # noqa: B009
        samples = in_turn(
            lambda: sum(again(steps, stage) for stage in stages),
            {"dask.array": lambda: naive_dask(client, stacks[0], stacks[1], ALPHA)[0]},
            min(bench.sizes.repeats, 3),
        )
    size = {"columns": d, "rows": len(rows), "environments": len(features), "workers": n_cores()}
    name, against = "stored rows to rigidities", "dask.array: X.T @ X, inv"
    return Row(name, ratio(samples), "", size, against, samples=samples)
