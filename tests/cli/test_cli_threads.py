"""What a run says of its threads."""

from __future__ import annotations

import pytest

from dlpr.cli.report import thread_line
from dlpr.clusters.config import worker_environment
from dlpr.job import Job


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_are_those_that_workers_get(threads: int) -> None:
    job = Job.from_dict(
        {
            "train": {"files": "a.xyz"},
            "test": {"train": "train"},
            "descriptor": {"soap": {}},
            "model": {"linear": {"regularizer": 1.0}},
            "numerics": {"blas_threads": 5, "factor_threads": 7},
            "cluster": {"local": {"workers": 2, "threads_per_worker": threads}},
        }
    )
    said = thread_line(job)
    rayon = worker_environment("openblas 0.3.30 Haswell", threads)["RAYON_NUM_THREADS"]
    for words in (f"Dask {threads} ", "BLAS 5 ", "(7 in the", f"Rayon {rayon} "):
        assert words in said
