"""Uncertainties of a published result: ``var = a^2 / PR``, with a from errors of a test set."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from dlpr.core import calibration
from dlpr.core.calibration import EXPECTED_COVERAGE, METHODS, Calibration, Reliability
from dlpr.core.rows import row_factor
from dlpr.errors import InputError, JobError, StoreError
from dlpr.handles import Result
from dlpr.stages.rigidity import STRUCTURE_COMMITTEE
from dlpr.stages.structures import UNREADABLE
from dlpr.store.files import Json
from dlpr.store.folder import FORMAT_VERSION
from dlpr.tables import TextTable

FEWEST_ROWS = 4
"""Structures that a calibration needs at least: two bins of two."""
BIN_ROWS = 10
"""Structures of a bin, where there are many."""
MOST_BINS = 20
SAME_RTOL = 1e-9
"""Rigidities that differ by less, relative to the largest, are equal."""
UNITS = {"mean": "eV/atom", "sum": "eV", "sqrt": "eV/√atom"}
"""Of errors, by the convention of the model's rows."""


@dataclass(frozen=True)
class CommitteeCheck:
    """How the standard deviation over a committee's members holds, for the same errors."""

    about: Json
    """what the committee is"""
    fit: Calibration
    """by the first method; the scale is what the committee's sigma has to be multiplied by"""
    rank_correlation: float
    """Spearman's, of absolute errors with the committee's sigma"""
    with_rigidity: float
    """Spearman's, of the committee's variances with PR: -1 where they tell the same"""

    def note(self, rigidity: Calibration, rank_correlation: float) -> str:
        """A line on it, beside what the rigidity's sigma gives."""
        return (
            f"committee of {self.about['members']} ({self.about['kind']}): its σ holds times "
            f"{self.fit.scale:.4g} by {self.fit.method}, with NLL {self.fit.nll:.4g} and CRPS "
            f"{self.fit.crps:.4g} (a / √PR: {rigidity.nll:.4g} and {rigidity.crps:.4g}); Spearman "
            f"of |error| with it {self.rank_correlation:.3f} (a / √PR: {rank_correlation:.3f}), "
            f"of its variance with PR {self.with_rigidity:.3f}"
        )


@dataclass(frozen=True)
class SetCalibration:
    """The errors of one test set, their rigidities, and the scales that fit them.

    Errors are predicted minus labelled energies in the convention of the model's rows: per atom
    ("mean"), total ("sum"), or total over the root of the number of atoms ("sqrt").
    """

    name: str
    convention: str
    errors: NDArray[np.float64]
    """(n,) of structures that have an energy, in `unit`"""
    unit_variance: NDArray[np.float64]
    """(n,) ``1 / PR``: the variance for a scale of 1"""
    fits: tuple[Calibration, ...]
    """One for each method"""
    coverage: tuple[tuple[float, ...], ...]
    """(n_methods, 3) parts of the structures with an error up to 1, 2 and 3 sigma"""
    rank_correlation: float
    """Spearman's, of absolute errors with estimates: the same for every scale"""
    reliability: Reliability
    """Of ``1 / PR``: variances times ``a^2`` are those of a scale a"""
    n_unlabelled: int
    """Structures left out: they have no energy"""
    trained: bool
    """Whether the model was fitted to these structures"""
    record: Json
    """What the result was made of"""
    committee: CommitteeCheck | None = None
    """Of a result that has one whose members differ"""

    @property
    def unit(self) -> str:
        """Of errors and of their standard deviations."""
        return UNITS[self.convention]

    @property
    def rmse(self) -> float:
        """Root of the mean squared error, in `unit`."""
        return float(np.sqrt(np.mean(np.square(self.errors))))

    def table(self) -> TextTable:
        """A row for each method."""
        rows = [
            [
                fit.method,
                f"{fit.scale:.4g}",
                str(fit.n),
                *(f"{value:.4g}" for value in (fit.rmse_z, fit.nll, fit.crps)),
                *(f"{100 * part:.1f} %" for part in coverage),
                f"{self.rank_correlation:.3f}",
            ]
            for fit, coverage in zip(self.fits, self.coverage, strict=True)
        ]
        numbers = ("scale a", "n", "RMSE of z", "NLL", "CRPS", "in 1 σ", "2 σ", "3 σ", "Spearman")
        expected = ", ".join(f"{100 * part:.1f}" for part in EXPECTED_COVERAGE)
        return TextTable(
            f"Uncertainties of {self.name}: σ = a / √PR, in {self.unit}",
            ("method", *numbers),
            1,
            rows,
            f"z: error over σ, its RMSE 1 where σ holds; of Gaussian errors {expected} % lie "
            f"within 1, 2, 3 σ; Spearman: ranks of |error| with those of σ",
        )

    def notes(self) -> list[str]:
        """What a reader of the table should know, and how to use it."""
        fit = self.fits[0]
        notes = [f"RMSE of {len(self.errors)} structures: {self.rmse:.4g} {self.unit}"]
        if self.trained:
            notes.append(
                f"{self.name} is the training set: errors of a fit are too small to calibrate by; "
                f"give a test set that took no part in it"
            )
        for n, what in (
            (self.n_unlabelled, "have no energy and are left out"),
            (fit.n_unknown, "have PR 0: nothing is known of them, and they are left out"),
            (fit.n_rigid, "have PR inf (no features) and are left out"),
        ):
            if n:
                notes.append(f"{n} structures {what}")
        notes.append(
            f"by {fit.method}: σ of an environment's energy is {fit.scale:.4g} √({self._of_one})"
        )
        if self.committee is not None:
            notes.append(self.committee.note(fit, self.rank_correlation))
        return notes

    @property
    def _of_one(self) -> str:
        """Variance of an environment's energy, for a scale of 1."""
        is_kernel = self.record["map"]["kind"] == "kernel"
        return "1/LPR + environment_residual/mu" if is_kernel else "1/LPR"

    def to_json(self) -> Json:
        """Everything but the structures' own numbers, with what it was computed from."""
        mu = float(self.record["factor"]["mu"])
        bins = self.reliability
        return {
            "format_version": FORMAT_VERSION,
            "set": self.name,
            "is_training_set": self.trained,
            "conventions": {
                "rows": self.convention,
                "unit": self.unit,
                "error": "predicted minus labelled energy of a structure, as the rows have it",
                "variance": f"a^2 / PR of a structure, a^2 ({self._of_one}) of an environment",
                "sigma_w": "a / sqrt(mu): a^2 = sigma_w^2 mu (JCTC23 eq. 17)",
            },
            "n_structures": len(self.errors),
            "n_unlabelled": self.n_unlabelled,
            "rmse": self.rmse,
            "rank_correlation": self.rank_correlation,
            "expected_coverage": list(EXPECTED_COVERAGE),
            "methods": {
                fit.method: {
                    **{name: value for name, value in asdict(fit).items() if name != "method"},
                    "sigma_w": fit.scale / np.sqrt(mu) if mu > 0.0 else None,
                    "coverage": list(coverage),
                }
                for fit, coverage in zip(self.fits, self.coverage, strict=True)
            },
            "reliability": {
                "count": bins.count.tolist(),
                "unit_variance": bins.variance.tolist(),
                "squared_error": bins.squared_error.tolist(),
                "standard_error": bins.standard_error.tolist(),
            },
            **({} if self.committee is None else {"committee": asdict(self.committee)}),
            **self.record,
        }


def calibrate(
    results: str | os.PathLike[str] | Result, name: str, method: str | Sequence[str] = "all"
) -> SetCalibration:
    """Fit the scale a of uncertainties ``a / sqrt(PR)`` to the errors of a test set.

    Nothing is computed but from the published result.

    Parameters
    ----------
    results : path or Result
        The output folder of a finished run.
    name : str
        A test set that has energies and took no part in the fit.
    method : str or sequence of str
        "likelihood", "squared", "absolute", "crps" (see `dlpr.core.calibration.calibrate`), several
        of them, or "all".

    Returns
    -------
    SetCalibration

    Raises
    ------
    JobError
        If there is no such method.
    StoreError
        If there is no result, or no such set in it, or it is damaged.
    InputError
        If structures have no energies, the model was not fitted to any, they are too few, or all
        are equally rigid.
    """
    methods = _methods(method)
    result = results if isinstance(results, Result) else Result(Path(results))
    group = result.open(name)
    attributes: Json = dict(group.attrs)
    convention = attributes["model"]["rows"]
    energy, label = _energies(result, group, name)
    n_atoms = np.diff(_read(result, group, "structure_offset"))
    known = np.isfinite(label)
    factor = row_factor(n_atoms, convention)
    errors = (factor * (energy - label))[known]
    with np.errstate(divide="ignore"):
        unit_variance = 1.0 / _read(result, group, "structure_pr")[known]
    told = (unit_variance > 0.0) & (unit_variance < np.inf)
    _check(result, name, unit_variance[told])
    fits = tuple(calibration.calibrate(errors, unit_variance, one) for one in methods)
    n_bins = min(MOST_BINS, max(2, int(told.sum()) // BIN_ROWS))
    bins = calibration.reliability(errors, np.sqrt(unit_variance), n_bins)
    size, spread = np.abs(errors[told]), np.sqrt(unit_variance[told])
    committee = None
    if STRUCTURE_COMMITTEE in group:
        variance = (np.square(factor) * _read(result, group, STRUCTURE_COMMITTEE))[known]
        about = cast("Json", attributes["committee"])
        committee = _check_committee(about, errors[told], variance[told], spread, methods[0])
    root: Json = dict(zarr.open_group(str(result.path), mode="r").attrs)
    return SetCalibration(
        name=name,
        convention=convention,
        errors=errors,
        unit_variance=unit_variance,
        fits=fits,
        coverage=tuple(
            tuple(float(np.mean(size <= k * fit.scale * spread)) for k in (1, 2, 3)) for fit in fits
        ),
        rank_correlation=_rank_correlation(size, spread),
        reliability=bins,
        n_unlabelled=int(np.count_nonzero(~known)),
        trained=root["job"]["test"][name] == "train",
        record={
            "store": str(result.path.resolve()),
            "versions": root["versions"],
            **{key: attributes[key] for key in _RECORD},
        },
        committee=committee,
    )


def _check_committee(
    about: Json,
    errors: NDArray[np.float64],
    variance: NDArray[np.float64],
    spread: NDArray[np.float64],
    method: str,
) -> CommitteeCheck | None:
    """Hold a committee's variances against errors and against ``1 / sqrt(PR)``, both (n,)."""
    if np.ptp(variance) == 0.0:
        return None
    return CommitteeCheck(
        about,
        calibration.calibrate(errors, variance, method),
        _rank_correlation(np.abs(errors), variance),
        -_rank_correlation(spread, variance),
    )


def _rank_correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Spearman's."""
    from scipy.stats import spearmanr  # slow to load

    return float(spearmanr(x, y).statistic)


_RECORD = ("model", "map", "loss", "factor", "stages", "inputs", "sources")
"""Attributes of a set's group that say what its errors and rigidities are."""


def _methods(method: str | Sequence[str]) -> list[str]:
    names = [method] if isinstance(method, str) else list(method)
    if names == ["all"]:
        # maximum likelihood first: it is what pictures and notes are about
        return ["likelihood", *(one for one in METHODS if one != "likelihood")]
    unknown = [one for one in names if one not in METHODS]
    if unknown or not names:
        raise JobError(
            f"unknown calibration {', '.join(map(repr, unknown)) or 'of no name'}; choose from "
            f"{', '.join(METHODS)}, or all."
        )
    return names


def _read(result: Result, group: zarr.Group, name: str) -> NDArray[Any]:
    try:
        return np.asarray(cast("Any", group[name])[:])
    except UNREADABLE as error:
        raise StoreError(
            f"{result.path}{group.name}/{name} cannot be read: {error}. "
            f"`dlpr work {result.output}` looks at the whole result and does anew what is damaged."
        ) from error


def _energies(
    result: Result, group: zarr.Group, name: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Predicted and labelled total energies (n_structures,)."""
    if "structure_energy" not in group:
        raise InputError(
            f"{result.path} has rigidities of {name} but no energies: the training set had not all "
            f"labels of the loss, so there was nothing to fit. Name them in train.keys of the job "
            f"file (energy: ...), or remove what is not there from loss, and run it again."
        )
    label = _read(result, group, "structure_energy_label")
    if not np.isfinite(label).any():
        raise InputError(
            f"0 of {len(label)} structures of {name} have an energy; {FEWEST_ROWS} are needed. "
            f"Where their files have one under another name, give it as test.{name}.keys (energy: "
            f"...) of the job file and run it again; else take another set: "
            f"{', '.join(other for other in result.sets if other != name) or 'there is none'}."
        )
    return _read(result, group, "structure_energy"), label


def _check(result: Result, name: str, unit_variance: NDArray[np.float64]) -> None:
    """Refuse rigidities that no uncertainty can be read from."""
    if len(unit_variance) < FEWEST_ROWS:
        raise InputError(
            f"{len(unit_variance)} structures of {name} have an energy and a finite rigidity; "
            f"{FEWEST_ROWS} are needed, and some 100 for a scale to 7 %. Put more structures into "
            f"test.{name} of the job file, or take another set."
        )
    if np.ptp(unit_variance) <= SAME_RTOL * unit_variance.max():
        raise InputError(
            f"all {len(unit_variance)} structures of {name} have the same rigidity "
            f"{1.0 / unit_variance[0]:.6g} ({result.path}): one estimate for all says nothing of "
            f"which errors are large. Take a set of structures that differ."
        )
