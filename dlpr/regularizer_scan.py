"""What a scan over the regularizer found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from dlpr.core.decomposition import Scan
from dlpr.engine.pipeline import Pipeline
from dlpr.plots import plot_scan
from dlpr.stages.scan import open_scan
from dlpr.stages.summary import QUANTILES
from dlpr.store.files import Json, canonical_json, read_json, write_json
from dlpr.store.folder import FORMAT_VERSION, StageFolder
from dlpr.tables import SHOWN, TextTable
from dlpr.uncertainty import UNITS

CURVE, PICTURE = "regularizers.json", "regularizers.svg"
"""What a run whose job leaves the regularizer to it writes into its output folder."""


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
    job_regularizer: float | None
    """the job's own; None: the job takes the best one"""
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

    @classmethod
    def of(cls, folder: StageFolder, job_regularizer: float | None) -> Self:
        """What a finished stage "scan" has found."""
        of = folder.input("decomposition")
        facts, told = of.receipts()[0].facts, folder.receipts()[-1].facts
        settings, part = folder.settings, folder.read_part(folder.n_tasks - 1)
        stages = {role: one for role, one in folder.inputs().items() if role != "decomposition"}
        index = folder.input("rows").input("structures").input("index")
        return cls(
            name=settings["name"],
            convention=of.settings["model"]["rows"],
            kind=of.settings["model"]["kind"],
            regularizer=np.array(settings["regularizers"]),
            job_regularizer=job_regularizer,
            scan=open_scan(folder),
            errors={kind: part[f"rmse_{kind}"] for kind in settings["kinds"]},
            lpr=part["lpr"],
            n_environments=told["n_environments"],
            resolved=facts["resolved_mu"] / facts["scale_square"],
            record={
                "model": of.settings["model"],
                "map": of.settings["map"],
                "loss": of.settings["loss"],
                "scale_square": facts["scale_square"],
                "n_rows": {"train": facts["n_rows"], **told["n_rows"]},
                "stages": {"scan": folder.name, **folder.plan["places"]},
                "inputs": of.plan["inputs"],
                "validation": {role: stage.output_digest() for role, stage in stages.items()},
                "sources": index.settings["sources"],
            },
        )

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
        best, own = self.regularizer[self.best], self.job_regularizer is None
        low, high = self.regularizer[0], self.regularizer[-1]
        said = f"RMSE of {self.name} {self.rmse[self.best]:.4g} {self.unit}"
        if own:
            tried = f"the best of {len(self.rmse)} from {low:.3g} to {high:.3g}"
            notes = [f"regularizer {best:.6g}: {tried}, {said}"]
        else:
            notes = [f"best regularizer {best:.3g}: {said}; the job has {self.job_regularizer:.3g}"]
        if self.scan.at_edge():
            notes.append(self._edge(own))
        lost = int(np.count_nonzero(~np.isfinite(self.rmse)))
        if lost:
            notes.append(f"{lost} of {len(self.rmse)} regularizers have no error that is a number")
        if self.resolved > low:
            notes.append(
                f"below {self.resolved:.1e} the figures have fewer than 9 digits, as the Hessian "
                f"itself was folded; solver: qr in the job file gives them all"
            )
        if not own:
            line = f"in the job file:  model: {{{self.kind}: {{regularizer: {best:.2e}}}}}"
            notes.append(line)
        return notes

    def _edge(self, own: bool) -> str:
        """What to do where the best regularizer is the smallest or the largest."""
        low, high, is_low = self.regularizer[0], self.regularizer[-1], self.best == 0
        side, other, option = (
            ("lower", "smaller", "from") if is_low else ("upper", "larger", "up-to")
        )
        wider = low * 1e-4 if is_low else high * 1e4
        cure = f"scan --{option} {wider:.0e}"
        if own:
            ends = (wider, high) if is_low else (low, wider)
            cure = f"the job file may have scan: [{ends[0]:.1e}, {ends[1]:.1e}]"
        return (
            f"{'warning: ' if own else ''}it lies at the {side} edge of the scan, which went from "
            f"{low:.3g} to {high:.3g}: a {other} one may be better; {cure}"
        )

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
                "validation_rmse": "root of sum(lambda error^2)/sum(lambda), by kind and group",
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


def write_curve(steps: Pipeline) -> RegularizerScan | None:
    """Write what a job's scan has found beside its result: regularizers.json and a picture.

    Returns
    -------
    RegularizerScan or None
        None: the job gives its regularizer.
    """
    if steps.job.model.spec.scan is None:
        return None
    found = RegularizerScan.of(steps.scan(), None)
    record, picture = steps.workspace.output / CURVE, steps.workspace.output / PICTURE
    if not picture.exists() or canonical_json(read_json(record)) != canonical_json(found.to_json()):
        plot_scan(picture, found)
        write_json(record, found.to_json())
    return found
