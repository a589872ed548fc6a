"""Many regularizers tried on a finished run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

from dlpr.api import worker
from dlpr.engine import regularizer_choice
from dlpr.engine.events import Listener
from dlpr.engine.memory import decomposition_nbytes
from dlpr.engine.pipeline import Pipeline
from dlpr.errors import JobError, ResourceError
from dlpr.handles import Result
from dlpr.regularizer_scan import RegularizerScan
from dlpr.units import format_bytes


def scan(
    results: str | os.PathLike[str],
    name: str,
    regularizers: Sequence[float] | NDArray[np.float64] | None = None,
    *,
    sample: int = regularizer_choice.SAMPLE,
    listeners: tuple[Listener, ...] = (),
) -> RegularizerScan:
    """Fit with many regularizers by one decomposition, and test every fit on a set.

    The fold or the rows of the finished run serve; features are computed of the test set alone.

    Parameters
    ----------
    results : path
        The output folder of a finished run.
    name : str
        A test set that has energies and took no part in the fit.
    regularizers : sequence of float, optional
        Positive, as a job has them; by default 37 from 1e-12 to 1.
    sample : int
        Environments of the set, evenly chosen, whose LPR is looked at.
    listeners : tuple of callable, optional
        As for `dlpr.api.pipeline`.

    Returns
    -------
    RegularizerScan

    Raises
    ------
    JobError
        If a regularizer is not positive, or the set is the training set.
    StoreError
        If there is no result, or no such set in it.
    InputError
        If structures have no labels.
    ResourceError
        If the matrices do not fit into memory.
    """
    alpha = np.geomspace(1e-12, 1.0, 37) if regularizers is None else np.array(regularizers)
    alpha = np.sort(alpha.astype(np.float64))
    if not len(alpha) or not ((alpha > 0.0) & (alpha < np.inf)).all():
        raise JobError(f"regularizers must be positive numbers, and they are {alpha.tolist()}")
    Result(Path(results)).open(name)  # says what there is, if not this
    steps = worker(results, rank=0, listeners=listeners)
    if steps.job.loss.is_reweighted:
        raise JobError(
            "the loss is not a sum of squares, and has to be fitted anew for every regularizer: a "
            "scan would not be of that loss. Run the job with each regularizer: rows are kept."
        )
    if steps.set_spec(name) is steps.job.train:
        raise JobError(
            f"{name} is the training set, whose errors always want the smallest regularizer. Name "
            f"a test set that took no part in the fit; the job has: {', '.join(steps.job.test)}."
        )

    def tried() -> RegularizerScan:
        regularizer_choice.check_labels(steps, name)
        _require_memory(steps)
        folder = regularizer_choice.scan(steps, name, alpha.tolist(), sample)
        return RegularizerScan.of(folder, regularizer_choice.regularizer(steps))

    return steps.mended(tried)


def _require_memory(steps: Pipeline) -> None:
    few = steps.n_rows() if steps.form() == "rows" else None
    n_columns = steps.layout().n_columns
    needed, available = decomposition_nbytes(n_columns, few), psutil.virtual_memory().available
    if needed > available:
        raise ResourceError(
            f"to decompose {n_columns} columns takes {format_bytes(needed)} of memory, and "
            f"{format_bytes(available)} are free here. Run this command on a larger machine that "
            f"sees the same folder."
        )
