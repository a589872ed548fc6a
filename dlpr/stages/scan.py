"""Many regularizers tried on a set: errors of its rows, rigidities of some of its environments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlpr.core.baseline import Baseline
from dlpr.core.decomposition import Decomposition, Scan, square_error
from dlpr.core.factor import reciprocal
from dlpr.core.models import Model, Targets
from dlpr.core.rows import FloatArray
from dlpr.errors import InputError
from dlpr.stages.decomposition import open_decomposition
from dlpr.stages.features import FeatureSource
from dlpr.stages.loss import weights_of
from dlpr.stages.model import open_model
from dlpr.stages.rows import Run
from dlpr.stages.sources import kinds_of, off_diagonals_of, sources_of
from dlpr.stages.summary import QUANTILES
from dlpr.store.files import Json
from dlpr.store.folder import StageFolder

RUN_ROWS = 1 << 14
"""Rows of a task that looks at errors."""
TASK_SAMPLE = 512
"""Environments of a task that looks at rigidities."""
BATCH = 128
"""Of these, those whose features are held at once."""


def plan(
    work: Path,
    decomposition: StageFolder,
    validation: dict[str, StageFolder],
    name: str,
    regularizers: Sequence[float],
    sample: int,
    numerics: Json,
) -> StageFolder:
    """Errors of every run of the set's rows, rigidities of a sample of it, and the curve of both.

    Parameters
    ----------
    decomposition : StageFolder
        Finished.
    validation : dict of str to StageFolder
        Rows of the set, as `dlpr.stages.sources` knows them.
    name : str
        Of the set.
    regularizers : sequence of float
        Positive and ascending, as a job has them.
    sample : int
        Environments of the set, evenly chosen, whose LPR is looked at.
    """
    loss = decomposition.settings["loss"]
    n = FeatureSource.of_rows(validation["rows"]).structures.n_environments
    settings: Json = {
        "features": validation["rows"].settings["features"],
        "map": validation["rows"].settings["map"],
        "kinds": kinds_of(loss),
        "off_diagonals": off_diagonals_of(loss),
        "name": name,
        "regularizers": list(regularizers),
        "sample": min(n, sample),
        "run_rows": RUN_ROWS,
        "numerics": {name: numerics[name] for name in ("threads", "kernel")},
    }
    inputs = {"decomposition": decomposition, **validation}
    n_tasks = len(_runs(validation, settings)) + -(-settings["sample"] // TASK_SAMPLE) + 1
    settings["waves"] = [list(range(n_tasks - 1)), [n_tasks - 1]]
    return StageFolder.create(work, "scan", settings, inputs, n_tasks)


def _runs(inputs: dict[str, StageFolder], settings: Json) -> list[tuple[str, Run]]:
    """All runs of rows, and the kind of their targets: a task each."""
    sources = sources_of(inputs, settings["kinds"], settings["off_diagonals"])
    return [(k, run) for k, source in sources.items() for run in source.runs(settings["run_rows"])]


def run(folder: StageFolder, task: int) -> tuple[dict[str, Any], Json]:
    """Errors of one run of rows, or rigidities of some environments; or, last, all of them."""
    runs = _runs(folder.inputs(), folder.settings)
    if task == folder.n_tasks - 1:
        return _curve(folder, runs)
    fits = _Fits(folder)
    if task < len(runs):
        kind, one = runs[task]
        square, count = fits.errors(kind, one)
        return folder.write_part(task, {"square": square, "n": np.array(count)}), {}
    first = (task - len(runs)) * TASK_SAMPLE
    return folder.write_part(task, {"lpr": fits.rigidities(first, first + TASK_SAMPLE)}), {}


def _curve(folder: StageFolder, runs: list[tuple[str, Run]]) -> tuple[dict[str, Any], Json]:
    """Errors of kinds, and as the loss weighs kinds and groups; quantiles of the LPR."""
    settings, fits = folder.settings, _Fits(folder)
    squares = {kind: np.zeros(len(fits.mu)) for kind in settings["kinds"]}
    counts = dict.fromkeys(settings["kinds"], 0)
    weight = weights_of(folder.input("decomposition").settings["loss"])
    total, n = np.zeros(len(fits.mu)), 0.0
    for number, (kind, one) in enumerate(runs):
        part = folder.read_part(number)
        squares[kind] += part["square"]
        counts[kind] += int(part["n"])
        total += weight(kind, one.group) * part["square"]
        n += weight(kind, one.group) * int(part["n"])
    if n == 0.0:
        raise InputError(
            f"every group of {settings['name']} has the weight 0 in loss.groups: no error of it "
            f"counts. Take another set, or raise one of them."
        )
    sampled = range(len(runs), folder.n_tasks - 1)
    lpr = np.concatenate([folder.read_part(number)["lpr"] for number in sampled])
    lpr = lpr[np.isfinite(lpr).all(axis=1)]
    if not len(lpr):
        name = settings["name"]
        raise InputError(f"no environment of {name} that was looked at has any features")
    found = fits.scan().validated(total, n)
    assert found.validation_rmse is not None
    arrays = {
        "mu": found.mu,
        "weights": found.weights,
        "train_rmse": found.train_rmse,
        "validation_rmse": found.validation_rmse,
        "lpr": np.quantile(lpr, QUANTILES, axis=0, method="inverted_cdf").T,
    }
    arrays |= {f"rmse_{kind}": np.sqrt(squares[kind] / counts[kind]) for kind in squares}
    facts: Json = {"n_environments": len(lpr), "n_rows": counts}
    return folder.write_part(folder.n_tasks - 1, arrays), facts


class _Fits:
    """The fits with all regularizers, and what each makes of the rows of a set."""

    def __init__(self, folder: StageFolder) -> None:
        self._folder, self._settings = folder, folder.settings
        of = folder.input("decomposition")
        self._facts = of.receipts()[0].facts
        self._decomposition: Decomposition
        self._baseline: Baseline
        self._decomposition, self._baseline = open_decomposition(of)
        self._model: Model = open_model(of.input("rows"), of.settings["model"])
        regularizers = np.array(self._settings["regularizers"], np.float64)
        self.mu: FloatArray = regularizers * self._facts["scale_square"]

    def scan(self) -> Scan:
        """Weights and training errors: what the penalty of fitted energies adds is no error."""
        weights, rmse = self._decomposition.weights(self.mu), self._decomposition.rmse(self.mu)
        missed = np.square(rmse) - self._baseline.penalty(weights) / self._facts["n_rows"]
        return Scan(self.mu, weights, np.sqrt(np.maximum(missed, 0.0)))

    def errors(self, kind: str, one: Run) -> tuple[FloatArray, int]:
        """Sum of squared errors (n_mu,) of a run of rows, and how many there are."""
        weights = self._decomposition.weights(self.mu)
        off_diagonals = self._settings["off_diagonals"]
        source = sources_of(self._folder.inputs(), [kind], off_diagonals)[kind]
        square, count = np.zeros(len(self.mu)), 0
        for targets in source.targets(one, self._model.rows):
            for start in range(0, len(targets.y), BATCH):
                rows, y, _ = self._reduced(targets, slice(start, start + BATCH))
                square += square_error(rows, y, weights)
                count += len(y)
        return square, count

    def _reduced(
        self, targets: Targets, some: slice
    ) -> tuple[FloatArray, FloatArray, NDArray[np.float64]]:
        """Rows and targets without energies per atom, and what these add to the variance."""
        names = ("rows", "count", "y", "factor", "weight")
        targets = Targets(*(getattr(targets, name)[some] for name in names))
        sides = np.hstack(self._model.sides(targets)) * targets.scale[:, None]
        count = sides[:, self._model.constants]
        rows = self._baseline.rows(sides[:, self._model.columns], count)
        return rows, self._baseline.target(sides[:, -1], count), self._baseline.variance(count)

    def rigidities(self, first: int, last: int) -> FloatArray:
        """LPR (n, n_mu) of some environments of the sample."""
        found = []
        for targets in self._environments(first, last):
            rows, _, added = self._reduced(targets, slice(None))
            rigidity = self._decomposition.rigidity(rows, self.mu)
            with np.errstate(divide="ignore"):
                variance = 1.0 / rigidity + added[:, None]
            if self._model.map.is_sparse:  # unlike all references: nothing is known of it
                variance[~targets.rows.any(axis=1)] = np.inf
            found.append(reciprocal(variance))
        return np.concatenate(found)

    def _environments(self, first: int, last: int) -> Iterator[Targets]:
        """Rows of environments, evenly chosen, without labels."""
        source, model = FeatureSource.of_rows(self._folder.input("rows")), self._model
        n, n_chosen = source.structures.n_environments, self._settings["sample"]
        chosen = np.linspace(0, n - 1, n_chosen).round().astype(np.int64)[first:last]
        for start in range(0, len(chosen), BATCH):
            batch = chosen[start : start + BATCH]
            features, species = source.some(batch)
            sums = np.zeros((len(batch), model.stored.n_columns))
            model.add_sums(sums, model.mapped(features, species), np.arange(len(batch)))
            count = np.eye(model.stored.n_blocks)[species]
            ones = np.ones(len(batch))
            yield Targets(sums, count, np.full(len(batch), np.nan), ones, ones)


def open_scan(folder: StageFolder) -> Scan:
    """What a finished stage found; its last part has the errors by kind and the LPR too."""
    part = folder.read_part(folder.n_tasks - 1)
    return Scan(*(part[name] for name in ("mu", "weights", "train_rmse", "validation_rmse")))
