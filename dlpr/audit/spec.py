"""The file of an audit: what a job says, and what is expected of its result."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pydantic
from pydantic import Field

from dlpr.job import Job, SetSpec
from dlpr.job.job import Computation
from dlpr.job.sections import (
    Count,
    Line,
    Natural,
    Number,
    Positive,
    Section,
    SetName,
    Symbol,
    Text,
    refuse_boolean,
)

POOL = "pool"
"""Name of the set of candidates, among the sets of the job that an audit makes."""
WORK = "work"
"""The output folder of that job, in the history."""
EVERY = "*"
"""In a check: each set, group or species, one by one."""

DISTRIBUTED = ("lpr", "prior_ratio", "uncertainty", "structure_pr", "error")
"""Measures of which a check takes a quantile or a share."""
ERRORS = ("rmse", "mae")
HELD_OUT = ("cv_rmse", "cv_mae")
"""Errors of the training set, of fits that have not seen the structure."""
OF_QUANTITIES = (*ERRORS, "error", *HELD_OUT)
FINDINGS = ("rank_correlation", "enrichment")
"""Does low rigidity find large errors of energies?"""
NEAR = ("near_duplicates", "near_leakage")
REPEATS = ("duplicates", "leakage", *NEAR)
OF_DATA = (*REPEATS, "lost", "settings")
"""Measures of structures, which need no rigidity."""
_BY_SPECIES = ("lpr", "prior_ratio", "uncertainty", "drift", "unseen")
_BY_GROUP = (*_BY_SPECIES, "structure_pr", *OF_QUANTITIES, *FINDINGS, "outliers")
_TO_BASELINE = ("drift", "lost", "settings")
"""Measures that are differences from a baseline already."""

Measure = Literal[
    "lpr",
    "prior_ratio",
    "uncertainty",
    "structure_pr",
    "rmse",
    "mae",
    "error",
    "rank_correlation",
    "enrichment",
    "cv_rmse",
    "cv_mae",
    "unseen",
    "drift",
    "duplicates",
    "leakage",
    "near_duplicates",
    "near_leakage",
    "outliers",
    "lost",
    "settings",
]
Quantity = Literal[
    "energy", "energy_per_cell", "energy_per_root", "forces", "force_magnitude", "force_vector"
]
Plot = Literal["trajectory", "energy_volume"]
Fraction = Annotated[
    float,
    pydantic.BeforeValidator(refuse_boolean),
    Field(ge=0, le=1, description="a number from 0 to 1"),
]


class Relative(Section):
    """A bound that is a multiple of what an earlier audit found."""

    times: Positive = Field(description="a number > 0")
    of: Line | None = Field(
        default=None, description="last, or the name of an audit (dlpr audit list)"
    )


def _tag_bound(value: object) -> str:
    return "<set>" if isinstance(value, dict | Relative) else "<number>"


Bound = Annotated[
    Annotated[Number, pydantic.Tag("<number>")] | Annotated[Relative, pydantic.Tag("<set>")],
    pydantic.Discriminator(_tag_bound),
]
_BOUND = "a number >= 0, or {times: 0.8} of the baseline"


class Check(Section):
    """One thing that is expected."""

    of: Measure
    set: Line = Field(default=EVERY, description='the name of a set, or "*" for each')
    quantile: Fraction | None = Field(default=None, description="a number from 0 to 1")
    share_below: Positive | None = Field(default=None, description="a number > 0")
    group: Line | None = Field(default=None, description='the name of a group, or "*" for each')
    species: Symbol | Literal["*"] | None = Field(
        default=None, description='a symbol such as Si, or "*" for each'
    )
    quantity: Quantity = "energy"
    within: Positive | None = Field(
        default=None, description="a number > 0: relative change of an environment's features"
    )
    beyond: Positive | None = Field(
        default=None, description="a number > 0: multiples of the usual spread of errors"
    )
    at_least: Bound | None = Field(default=None, description=_BOUND)
    at_most: Bound | None = Field(default=None, description=_BOUND)
    on_failure: Literal["warn", "fail"] = "fail"
    name: Line | None = None

    @pydantic.model_validator(mode="after")
    def _is_whole(self) -> Check:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("needs exactly one of: at_least, at_most")
        given = [one for one in ("quantile", "share_below") if getattr(self, one) is not None]
        if self.of in DISTRIBUTED and len(given) != 1:
            raise ValueError(f"of: {self.of} needs exactly one of: quantile, share_below")
        if self.of not in DISTRIBUTED and given:
            raise ValueError(f"{given[0]} belongs to {', '.join(DISTRIBUTED)}, not to {self.of}")
        if self.species is not None and self.of not in _BY_SPECIES:
            raise ValueError(f"species belongs to {', '.join(_BY_SPECIES)}, not to {self.of}")
        if self.group is not None and self.of not in _BY_GROUP:
            raise ValueError(f"group belongs to {', '.join(_BY_GROUP)}, not to {self.of}")
        if self.quantity != "energy" and self.of not in OF_QUANTITIES:
            raise ValueError(f"quantity belongs to {', '.join(OF_QUANTITIES)}, not to {self.of}")
        if self.within is not None and self.of not in NEAR:
            raise ValueError(f"within belongs to {', '.join(NEAR)}, not to {self.of}")
        if self.beyond is not None and self.of != "outliers":
            raise ValueError(f"beyond belongs to outliers, not to {self.of}")
        if self.of in (*OF_DATA, "drift", "outliers") and isinstance(self.bound, Relative):
            raise ValueError(f"of: {self.of} needs a number; it has no multiple of a baseline's")
        return self

    @property
    def bound(self) -> float | Relative:
        """What it is held against."""
        found = self.at_least if self.at_least is not None else self.at_most
        assert found is not None
        return found

    @property
    def needs_baseline(self) -> bool:
        """Whether there is nothing to judge before a second audit."""
        return self.of in _TO_BASELINE or isinstance(self.bound, Relative)


STANDARD = (
    Check(of="prior_ratio", quantile=0.05, at_least=Relative(times=0.8)),
    Check(of="drift", at_most=0.1, on_failure="warn"),
    Check(of="unseen", at_most=0.0, on_failure="warn"),
    Check(of="duplicates", at_most=0.0, on_failure="warn"),
    Check(of="leakage", at_most=0.0, on_failure="warn"),
    Check(of="near_duplicates", at_most=0.0, on_failure="warn"),
    Check(of="near_leakage", at_most=0.0, on_failure="warn"),
    Check(of="outliers", at_most=0.0, on_failure="warn"),
    Check(of="lost", at_most=0.0, on_failure="warn"),
    Check(of="settings", at_most=0.0, on_failure="warn"),
)
"""What an audit without ``checks`` looks at."""


class Flag(Section):
    """How many environments are shown, at most."""

    count: Natural = Field(default=50, description="a whole number >= 0")
    per_check: Natural = Field(default=10, description="a whole number >= 0")


class Sample(Section):
    """Environments on the map."""

    count: Natural = Field(default=200, description="a whole number >= 0; 0: no map")


class Validation(Section):
    """What is drawn of a set beside its errors, where its files do not say so themselves."""

    plots: dict[SetName, tuple[Plot, ...]] = Field(
        default={}, description="a list for a set: {md: [trajectory], search: [energy_volume]}"
    )


class Uncertainty(Section):
    """By which errors rigidities become uncertainties."""

    set: SetName
    method: Literal["likelihood", "squared", "absolute", "crps"] = "likelihood"


class Targets(Section):
    """What is to become more rigid: the least rigid of some test sets."""

    sets: Annotated[tuple[SetName, ...], Field(min_length=1)] | None = Field(
        default=None, description="a list of test sets"
    )
    count: Count = 1000
    of: Literal["environments", "structures"] = "environments"


class Next(Section):
    """Structures of the pool to label next."""

    count: Natural = Field(default=20, description="a whole number >= 0")
    objective: Literal["mean_variance", "mean_log_rigidity", "mean_rigidity", "min_rigidity"] = (
        "mean_variance"
    )
    targets: Targets = Targets()


class LastOnes(Section):
    """Several audits, of whose figures the median counts."""

    last: Count


def _tag_baseline(value: object) -> str:
    return "<word>" if isinstance(value, str) else "<set>"


Baseline = Annotated[
    Annotated[Line, pydantic.Tag("<word>")] | Annotated[LastOnes, pydantic.Tag("<set>")],
    pydantic.Discriminator(_tag_baseline),
]


class AuditSpec(Computation):
    """A whole audit. Make one with `AuditSpec.load`, whose errors are for users."""

    title: Line = "Rigidity audit"
    history: Text = "audits"
    pool: SetSpec | None = None
    next: Next | None = None
    checks: tuple[Check, ...] = Field(default=STANDARD, description="a list of mappings")
    uncertainty: Uncertainty | None = None
    validation: Validation = Validation()
    baseline: Baseline = Field(
        default="last", description="last, the name of an audit, or {last: 5}"
    )
    flag: Flag = Flag()
    sample: Sample = Sample()
    busy: Literal["wait", "refuse"] = "refuse"

    kind_of_file: ClassVar[str] = "audit"

    @pydantic.model_validator(mode="after")
    def _known_sets(self) -> AuditSpec:
        if POOL in self.test:
            raise ValueError("test.pool: pool is the set of candidates; give it another name")
        rated = self.rated()
        for number, check in enumerate(self.checks):
            place = f"checks.{number}"
            known = list(dict.fromkeys(["train", *rated])) if check.of in OF_DATA else rated
            if check.of in HELD_OUT:
                known = ["train"]
                self._check_held_out(place, check)
            if check.set != EVERY and check.set not in known:
                hint = "; rigidities of the training set need `train: train` among the test sets"
                raise ValueError(
                    f"{place}.set: there is no set {check.set!r} with {check.of}; known here: "
                    f"{', '.join(known)}{hint * (check.set == 'train')}"
                )
            if check.of == "uncertainty" and self.uncertainty is None:
                raise ValueError(
                    f"{place}.of: uncertainties are calibrated by the errors of a set with "
                    f"energies that takes no part in the fit; name it: uncertainty: {{set: NAME}}"
                )
            has_forces = self.test_forces or check.of in HELD_OUT
            if check.quantity.startswith("force") and not has_forces:
                raise ValueError(f"{place}.quantity: errors of forces need test_forces: true")
        for name in self.validation.plots:
            if name not in rated:
                raise ValueError(
                    f"validation.plots.{name}: there is no test set {name!r}; known here: "
                    f"{', '.join(rated)}"
                )
        if self.uncertainty and self.uncertainty.set not in rated:
            raise ValueError(
                f"uncertainty.set: there is no test set {self.uncertainty.set!r}; known here: "
                f"{', '.join(rated)}"
            )
        if self.next is not None and self.next.count:
            if refusal := self._no_picks():
                raise ValueError(f"next: {refusal}, or leave next out")
            for name in self.next.targets.sets or ():
                if name not in self.test:
                    raise ValueError(
                        f"next.targets.sets: there is no test set {name!r}; known here: "
                        f"{', '.join(self.test)}"
                    )
        return self

    def _no_picks(self) -> str | None:
        """Why nothing can be said of what to label next, and what to change."""
        if self.pool is None:
            return "picks need candidates; name their files in pool"
        if "energy" not in self.loss.kinds:
            return "a label counts by its energy, and loss.energy is 0; make it positive"
        if self.model.spec.least_regularizer == 0.0:
            return (
                f"with model.{self.model.kind}.regularizer 0 nothing bounds what the data leave "
                "open; make it positive"
            )
        return None

    @property
    def picks(self) -> Next | None:
        """What is wanted of the pool; by default wherever there can be picks."""
        found = self.next or (None if self._no_picks() else Next())
        return found if found and found.count else None

    def _check_held_out(self, place: str, check: Check) -> None:
        if self.cross_validation is None:
            raise ValueError(
                f"{place}.of: {check.of} needs held-out errors of the training set; add "
                f"cross_validation: {{folds: 5, by: structure}}"
            )
        kind = "energy" if check.quantity.startswith("energy") else check.quantity
        if kind not in self.loss.kinds:
            raise ValueError(
                f"{place}.quantity: fits of the cross-validation predict what the loss has, "
                f"{', '.join(self.loss.kinds)}, and no {check.quantity}"
            )

    def rated(self) -> list[str]:
        """Sets that have rigidities."""
        return [*self.test, *([POOL] if self.pool else [])]

    def baselines(self) -> list[str | LastOnes]:
        """What checks are held against: that of the audit, and those that checks name."""
        named = [one.bound.of for one in self.checks if isinstance(one.bound, Relative)]
        return list(dict.fromkeys([self.baseline, *(of for of in named if of is not None)]))

    @property
    def folder(self) -> Path:
        """The history, absolute."""
        return self.path(self.history)

    def job(self) -> Job:
        """The job whose result is audited."""
        data: dict[str, Any] = self.model_dump(mode="json", include=set(Computation.model_fields))
        if self.pool is not None:
            data["test"][POOL] = self.pool.model_dump(mode="json")
        return Job.from_dict({**data, "output": str(self.folder / WORK)}, base=self.base)
