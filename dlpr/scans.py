"""What a scan over the regularizer found."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlpr.core.scan import Scan
from dlpr.store.files import Json
from dlpr.store.folder import FORMAT_VERSION
from dlpr.tables import TextTable
from dlpr.uncertainty import UNITS

QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)
"""Of the LPR."""
SHOWN = (1, 2, 3)
"""Places of those that tables and pictures show."""


@dataclass(frozen=True)
class RegularizerScan:
    """What each of many regularizers makes of a test set.

    Errors are those of rows in the model's convention; training errors have the weights of the loss
    in them.
    """

    name: str
    convention: str
    kind: str
    """of the model, as the job names it"""
    regularizer: NDArray[np.float64]
    """(n,) ascending, as a job has it"""
    job_regularizer: float
    """the job's own"""
    scan: Scan
    """Regularizers mu, weights, errors"""
    errors: dict[str, NDArray[np.float64]]
    """(n,) root mean squared errors of the test set, by kind of target"""
    lpr: NDArray[np.float64]
    """(n, len(QUANTILES)) over `n_environments`"""
    n_environments: int
    """Environments that these are of: those of the sample that have features"""
    resolved: float
    """Least regularizer that the decomposition resolves to some 1e-9; 0: all"""
    record: Json
    """What it was computed from"""

    @property
    def best(self) -> int:
        """Place of the least error of the test set."""
        return self.scan.best()

    @property
    def rmse(self) -> NDArray[np.float64]:
        """(n,) errors of the test set by which the best is chosen."""
        assert self.scan.validation_rmse is not None
        return self.scan.validation_rmse

    @property
    def train_rmse(self) -> NDArray[np.float64]:
        """(n,) errors of the rows of the loss, with its weights."""
        return self.scan.train_rmse

    @property
    def shown(self) -> NDArray[np.float64]:
        """(n, 3) quantiles 5 %, 50 % and 95 % of the LPR."""
        return self.lpr[:, SHOWN]

    @property
    def unit(self) -> str:
        """Of the errors by which the best is chosen."""
        return UNITS[self.convention] if list(self.errors) == ["energy"] else "root of the loss"

    def table(self) -> TextTable:
        """A row for each regularizer, the best one marked."""
        kinds = list(self.errors)
        several = kinds if len(kinds) > 1 else []
        columns = [self.train_rmse, *(self.errors[kind] for kind in several), self.rmse]
        rows = [
            [
                f"{one:.3g}" + (" *" if k == self.best else ""),
                *(f"{column[k]:.5g}" for column in columns),
                *(f"{value:.3g}" for value in self.shown[k]),
            ]
            for k, one in enumerate(self.regularizer)
        ]
        of_kinds = tuple(f"{kind} of {self.name}" for kind in several)
        errors = ("RMSE of training", *of_kinds, f"RMSE of {self.name}")
        energies = f", those of energies in {UNITS[self.convention]}" if several else ""
        quantiles = (f"LPR {100 * QUANTILES[SHOWN[0]]:.0f} %", "50 %", "95 %")
        return TextTable(
            f"Regularizers, by their errors of {self.name}",
            ("regularizer", *errors, *quantiles),
            1,
            rows,
            f"*: best; errors in {self.unit}{energies}; LPR of "
            f"{self.n_environments} environments of {self.name}",
        )

    def notes(self) -> list[str]:
        """The best regularizer, whether to trust it, and what to write into the job."""
        best = self.regularizer[self.best]
        notes = [
            f"best regularizer {best:.3g}: RMSE of {self.name} {self.rmse[self.best]:.4g} "
            f"{self.unit}; the job has {self.job_regularizer:.3g}"
        ]
        if self.scan.at_edge():
            low = self.best == 0
            notes.append(
                f"it lies at the {'lower' if low else 'upper'} edge of the scan: a "
                f"{'smaller' if low else 'larger'} one may be better; scan "
                f"--{'from' if low else 'up-to'} {best * (1e-4 if low else 1e4):.0e}"
            )
        if self.resolved > self.regularizer[0]:
            notes.append(
                f"below {self.resolved:.1e} the figures have fewer than 9 digits, as the Hessian "
                f"itself was folded; solver: qr in the job file gives them all"
            )
        notes.append(f"in the job file:  model: {{{self.kind}: {{regularizer: {best:.2e}}}}}")
        return notes

    def to_json(self) -> Json:
        """Everything but the weights, with what it was computed from."""
        return {
            "format_version": FORMAT_VERSION,
            "set": self.name,
            "conventions": {
                "rows": self.convention,
                "unit": self.unit,
                "regularizer": "as in a job file; mu = regularizer scale_square",
                "train_rmse": "of the rows of the loss, its weights in them",
                "validation_rmse": "root of sum(lambda error^2)/sum(lambda) over kinds of targets",
            },
            "best": float(self.regularizer[self.best]),
            "at_edge": self.scan.at_edge(),
            "job_regularizer": self.job_regularizer,
            "resolved_from": self.resolved,
            "regularizer": self.regularizer.tolist(),
            "mu": self.scan.mu.tolist(),
            "train_rmse": self.train_rmse.tolist(),
            "validation_rmse": self.rmse.tolist(),
            "errors": {kind: values.tolist() for kind, values in self.errors.items()},
            "n_environments": self.n_environments,
            "quantiles": list(QUANTILES),
            "lpr": self.lpr.tolist(),
            **self.record,
        }
