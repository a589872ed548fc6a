"""Errors and rigidities against the regularizer, from the rows or the fold of a finished run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

from dlpr.api import worker
from dlpr.core.baseline import Baseline, Folded, fitted, given
from dlpr.core.blas import blas_threads
from dlpr.core.factor import EPS, reciprocal
from dlpr.core.folds import Gram
from dlpr.core.models import Model, Targets
from dlpr.core.scan import Decomposition, Scan, square_error
from dlpr.core.scan import scan as fit
from dlpr.engine.events import Listener
from dlpr.engine.pipeline import Pipeline
from dlpr.errors import InputError, JobError, ResourceError
from dlpr.handles import Result
from dlpr.scans import QUANTILES, RegularizerScan
from dlpr.stages import derivatives as derivatives_stage
from dlpr.stages import rows as rows_stage
from dlpr.stages.factor import factor_facts
from dlpr.stages.features import FeatureSource
from dlpr.stages.fold import all_rows, combined, tiling_of
from dlpr.stages.loss import isolated_energies, weights_of
from dlpr.stages.model import open_model
from dlpr.stages.sources import kinds_of, lambda_of, off_diagonals_of, sources_of
from dlpr.store.folder import StageFolder
from dlpr.units import format_bytes

SAMPLE = 2000
"""Environments whose LPR is looked at."""
BATCH = 128
"""Of these, those whose features are held at once."""
GRAM_ERROR = 1e-9
"""eps cond(H) beyond which triangles take the place of a Hessian, as for `solver: auto`."""
COPIES = 6
"""Matrices of all columns that a decomposition holds at once."""


def scan(
    results: str | os.PathLike[str],
    name: str,
    regularizers: Sequence[float] | NDArray[np.float64] | None = None,
    *,
    sample: int = SAMPLE,
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
    return steps.mended(lambda: _scanned(steps, name, alpha, sample))


def _scanned(
    steps: Pipeline, name: str, alpha: NDArray[np.float64], sample: int
) -> RegularizerScan:
    factor = steps.factor()
    facts, settings = factor_facts(factor), factor.settings
    if not facts["is_fitted"]:
        raise InputError(
            "the training set has not all labels of the loss, so there is nothing to fit. Name "
            "them in train.keys of the job file, or remove what is not there from loss."
        )
    mu = alpha * facts["scale_square"]
    model = open_model(factor.input("rows"), settings["model"])
    sources = _validation(steps, name)
    decomposition, baseline, resolved = _decomposed(steps, factor, model, float(mu[0]))
    with blas_threads(steps.job.numerics.factor_threads):
        found = fit(decomposition, mu)
        # what the penalty of fitted energies per atom adds is no error
        missed = np.square(found.train_rmse) - baseline.penalty(found.weights) / facts["n_rows"]
        fits = Scan(mu, found.weights, np.sqrt(np.maximum(missed, 0.0)))
        twice = off_diagonals_of(settings["loss"])
        squares, counts = _errors(sources, steps.kinds(), twice, model, baseline, fits.weights)
        weight = {kind: lambda_of(settings["loss"], kind) for kind in squares}
        total = np.sum([weight[kind] * squares[kind] for kind in squares], axis=0)
        n = sum(weight[kind] * counts[kind] for kind in squares)
        lpr, n_environments = _rigidities(steps, name, model, baseline, decomposition, mu, sample)
    return RegularizerScan(
        name=name,
        convention=model.rows,
        kind=steps.job.model.kind,
        regularizer=alpha,
        job_regularizer=float(settings["model"]["regularizer"]),
        scan=fits.validated(total, n),
        errors={kind: np.sqrt(squares[kind] / counts[kind]) for kind in squares},
        lpr=lpr,
        n_environments=n_environments,
        resolved=resolved / facts["scale_square"],
        record={
            "model": settings["model"],
            "map": settings["map"],
            "loss": settings["loss"],
            "scale_square": facts["scale_square"],
            "n_rows": {"train": facts["n_rows"], **counts},
            "stages": {"factor": factor.name, **factor.plan["places"]},
            "inputs": factor.plan["inputs"],
            "validation": {role: stage.output_digest() for role, stage in sources.items()},
            "sources": sources["rows"].input("structures").input("index").settings["sources"],
        },
    )


# the training set --------------------------------------------------------------------------------


def _decomposed(
    steps: Pipeline, factor: StageFolder, model: Model, least: float
) -> tuple[Decomposition, Baseline, float]:
    """The fit without energies per atom, what these leave, and the least mu that is resolved."""
    found, baseline, through_gram = _decompose(steps, factor, model, _folded(factor))
    resolved = EPS * float(found.sigma[0]) ** 2 / GRAM_ERROR if through_gram else 0.0
    if least < resolved and steps.job.solver == "auto" and factor.stage == "factor":
        triangle = combined(steps.fold("triangle"), 0, weights_of(factor.settings["loss"]))
        return *_decompose(steps, factor, model, triangle)[:2], 0.0
    return found, baseline, resolved


def _decompose(
    steps: Pipeline, factor: StageFolder, model: Model, folded: Folded
) -> tuple[Decomposition, Baseline, bool]:
    """One decomposition, what energies per atom leave, and whether it went through ``G^T G``."""
    n_rows = factor_facts(factor)["n_rows"]
    with blas_threads(steps.job.numerics.factor_threads):
        reduced, baseline = _reduced(folded, factor, model)
        if isinstance(reduced, np.ndarray):
            made = Decomposition.of_rows(reduced[:, :-1], reduced[:, -1], n_rows)
        else:
            made = Decomposition.of_fold(reduced, model.layout.n_columns, n_rows)
    return made, baseline, isinstance(reduced, Gram)


def _folded(factor: StageFolder) -> Folded:
    """The fold or the rows that a factor was made of: all columns and the target."""
    loss, inputs = factor.settings["loss"], factor.inputs()
    weights = weights_of(loss)
    # with 1 in the columns of energies per atom, the model has all that are folded
    whole = open_model(inputs["rows"], factor.settings["model"], 1.0)
    if "fold" not in inputs:
        none = np.zeros(len(whole.constants))
        sources = sources_of(inputs, kinds_of(loss), off_diagonals_of(loss))
        return all_rows(sources, whole, weights, none)
    fold, n_columns = inputs["fold"], whole.layout.n_columns + 1
    _require_memory(n_columns)
    tiling = tiling_of(whole, fold.settings)
    if len(tiling.pairs()) == 1:
        return combined(fold, 0, weights)
    matrix = np.zeros((n_columns, n_columns), order="F")
    for number, (i, j) in enumerate(tiling.pairs()):
        matrix[tiling.slice(i), tiling.slice(j)] = combined(fold, number, weights).matrix
    return Gram(matrix)


def _require_memory(n_columns: int) -> None:
    needed, available = COPIES * 8 * n_columns**2, psutil.virtual_memory().available
    if needed > available:
        raise ResourceError(
            f"to decompose {n_columns} columns takes {format_bytes(needed)} of memory, and "
            f"{format_bytes(available)} are free here. Run this command on a larger machine that "
            f"sees the same folder."
        )


def _reduced(folded: Folded, factor: StageFolder, model: Model) -> tuple[Folded, Baseline]:
    """Take the energies per atom out: given ones, or those that the fit is to find."""
    composition = factor.settings["model"]["baseline"].get("composition")
    if composition:
        return fitted(folded, model.constants, composition["regularizer"])
    return given(folded, model.constants, isolated_energies(factor))


# the test set ------------------------------------------------------------------------------------


def _validation(steps: Pipeline, name: str) -> dict[str, StageFolder]:
    """The rows of a test set, as the loss has those of the training set."""
    training, workspace = steps.planned_rows(), steps.workspace
    references = training.inputs().get("references")
    structures, features = steps.ingest(name), steps.feature_settings(name)
    labels = {
        kind: sum(receipt.facts["labels"][kind] for receipt in structures.receipts())
        for kind in (*(k for k in steps.kinds() if k == "energy"), *steps.derivatives())
    }
    lacking = [kind for kind, n in labels.items() if not n]
    if lacking:
        raise InputError(
            f"0 structures of {name} have {' and '.join(lacking)}, which the loss has; at least 1 "
            f"is needed. Where the files have such labels under other names, give them as "
            f"test.{name}.keys of the job file and run it again; else take another set."
        )
    mapping = training.settings["map"]
    rows = rows_stage.plan(workspace.work, structures, features, mapping, references)
    found = {"rows": workspace.finish(f"rows of {name}", rows)}
    kinds = steps.derivatives()
    if kinds:
        derivatives = derivatives_stage.plan(workspace.work, found["rows"], kinds)
        role = f"rows of {' and '.join(kinds)} of {name}"
        found["derivatives"] = workspace.finish(role, derivatives)
    return found


def _reduced_rows(
    model: Model, baseline: Baseline, targets: Targets
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Rows and targets without energies per atom, and what these add to the variance."""
    sides = np.hstack(model.sides(targets)) * targets.scale[:, None]
    count = sides[:, model.constants]
    rows = baseline.rows(sides[:, model.columns], count)
    return rows, baseline.target(sides[:, -1], count), baseline.variance(count)


def _errors(
    sources: dict[str, StageFolder],
    kinds: list[str],
    off_diagonals: str,
    model: Model,
    baseline: Baseline,
    weights: NDArray[np.float64],
) -> tuple[dict[str, NDArray[np.float64]], dict[str, int]]:
    """Sums of squared errors (n_mu,) and numbers of rows, by kind of target."""
    squares, counts = {}, {}
    for kind, source in sources_of(sources, kinds, off_diagonals).items():
        square, count = np.zeros(weights.shape[1]), 0
        for run in source.runs(1):
            for targets in source.targets(run, model.rows):
                rows, y, _ = _reduced_rows(model, baseline, targets)
                square += square_error(rows, y, weights)
                count += len(y)
        squares[kind], counts[kind] = square, count
    return squares, counts


def _rigidities(
    steps: Pipeline,
    name: str,
    model: Model,
    baseline: Baseline,
    decomposition: Decomposition,
    mu: NDArray[np.float64],
    sample: int,
) -> tuple[NDArray[np.float64], int]:
    """Quantiles (n_mu, len(QUANTILES)) of the LPR of environments of a set, and their number."""
    source = FeatureSource(steps.ingest(name), steps.feature_settings(name))
    found = []
    for targets in _environments(model, source, sample):
        rows, _, added = _reduced_rows(model, baseline, targets)
        rigidity = decomposition.rigidity(rows, mu)
        with np.errstate(divide="ignore"):
            variance = 1.0 / rigidity + added[:, None]
        if steps.job.model.kernel:  # unlike all references: nothing is known of it
            variance[~targets.rows.any(axis=1)] = np.inf
        found.append(reciprocal(variance))
    lpr = np.concatenate(found)
    lpr = lpr[np.isfinite(lpr).all(axis=1)]
    if not len(lpr):
        raise InputError(f"no environment of {name} that was looked at has any features")
    return np.quantile(lpr, QUANTILES, axis=0, method="inverted_cdf").T, len(lpr)


def _environments(model: Model, source: FeatureSource, sample: int) -> Iterator[Targets]:
    """Rows of environments, evenly chosen, without labels."""
    store, n_species = source.structures, len(source.descriptor.species)
    n = store.n_environments
    chosen = np.unique(np.linspace(0, n - 1, min(n, sample)).round().astype(np.int64))
    for start in range(0, len(chosen), BATCH):
        batch = chosen[start : start + BATCH]
        runs = np.split(batch, np.flatnonzero(np.diff(batch) > 1) + 1)
        ends = [(int(run[0]), int(run[-1]) + 1) for run in runs]
        cutoff = source.descriptor.cutoff
        pieces = [piece for a, b in ends for piece in store.pieces(a, b, cutoff)]
        features = source.descriptor.compute(pieces)
        species = np.concatenate([source.environment_species(a, b) for a, b in ends])
        sums = np.zeros((len(batch), model.stored.n_columns))
        model.add_sums(sums, model.mapped(features, species), np.arange(len(batch)))
        count = np.eye(n_species)[species]
        ones = np.ones(len(batch))
        yield Targets(sums, count, np.full(len(batch), np.nan), ones, ones)
