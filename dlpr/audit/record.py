"""What an audit says, as data: the schema of ``audit.json``, of which the page is drawn."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from dlpr.audit.part import Part as _Part
from dlpr.audit.record_validation import ValidationRecord

Json = dict[str, Any]
Verdict = Literal["pass", "warn", "fail"]
Key = tuple[str, str, str | None, int | None]
"""Measure, set, group and species of a figure."""
RECORD_VERSION = 1
NAME = "%Y-%m-%dT%H-%M-%SZ"
"""Of an audit: when it began, UTC; later ones of one second have a number behind."""


class OutlineRecord(_Part):
    """The density of a figure's logarithm, as a violin shows it."""

    low: float
    high: float
    height: list[float] = Field(
        description="at equal logarithmic steps from low to high; the largest is 1"
    )


class Quantiles(_Part):
    """Quantiles of a figure over environments or structures, without infinite values."""

    levels: list[float] = Field(description="in 0..1, ascending")
    values: list[float] = Field(description="of the same length; empty where nothing is finite")
    outline: OutlineRecord | None = Field(
        default=None, description="None where values do not spread"
    )


class GroupRecord(_Part):
    """Environments of one group and central species; species None: of all, group None: of all."""

    group: str | None
    species: int | None = Field(description="atomic number")
    n_environments: int
    n_inf: int = Field(description="environments without any feature, in no quantile")
    n_unseen: int = Field(description="of a species or neighbour that the training set lacks")
    lpr: Quantiles
    prior_ratio: Quantiles = Field(description="LPR over that of the regularizer alone")
    uncertainty: Quantiles | None = Field(default=None, description="calibrated, meV/atom")


class ErrorRecord(_Part):
    """Errors of one labelled quantity over one group; group None: of all."""

    quantity: str = Field(description="such as 'energy per atom', 'force component'")
    unit: str
    group: str | None
    n: int
    mae: float
    rmse: float
    bias: float | None = Field(default=None, description="mean error, with its sign")
    percentiles: Quantiles = Field(description="of absolute errors")


class SetRecord(_Part):
    """One set of structures as it is tonight."""

    name: str
    role: Literal["train", "test", "pool"]
    n_files: int
    n_new_files: int
    n_changed_files: int
    n_structures: int
    n_environments: int
    groups: list[GroupRecord] = Field(
        description="that of all groups and species first; counts alone of a training set that is "
        "no test set, too"
    )
    errors: list[ErrorRecord] = Field(default=[])
    validation: ValidationRecord | None = None


class FoldRecord(_Part):
    """Structures that were held out together, and their errors."""

    name: str = Field(description="a number, or the group that was left out")
    n_structures: int
    errors: list[ErrorRecord]


class SpreadRecord(_Part):
    """How the errors of one quantity differ from fold to fold."""

    quantity: str
    unit: str
    n_folds: int = Field(description="those that have such errors")
    mae_mean: float
    mae_std: float = Field(description="divisor n_folds - 1, as of rmse_std")
    rmse_mean: float
    rmse_std: float


class CrossValidationRecord(_Part):
    """The training set, each of its folds predicted by a fit of all others."""

    by: Literal["structure", "stratified", "group"]
    seed: int
    folds: list[FoldRecord]
    errors: list[ErrorRecord] = Field(description="of all, and of each group")
    spread: list[SpreadRecord] = Field(description="empty of quantities that one fold has alone")


class FlaggedEnvironment(_Part):
    """An environment behind a check, by where its user finds it."""

    set: str
    file: str
    frame: int
    atom: int
    species: int
    group: str
    lpr: float
    prior_ratio: float | None = Field(description="None: without a regularizer it has no bound")
    uncertainty: float | None = Field(default=None, description="calibrated, meV/atom")
    flags: list[str] = Field(default=[], description="such as 'central_species'")
    lpr_ratio: float | None = Field(
        default=None, description="LPR over that of the same environment in the baseline"
    )


class CheckRecord(_Part):
    """One thing that was declared, and what was found."""

    name: str = Field(description="a sentence in the user's terms")
    set: str
    group: str | None = None
    species: int | None = None
    measure: str = Field(description="the figure's key in the history, such as 'lpr.q0.05'")
    unit: str = ""
    expected: str = Field(description="such as '>= 10' or 'at least 0.8 of the last audit'")
    found: float | None = Field(description="None: there is nothing to measure")
    bound: float | None = Field(
        default=None, description="what `found` is held against, as a number; drawn as a line"
    )
    baseline: float | None = None
    verdict: Verdict
    meaning: str = Field(description="one sentence: what it says, and what to do")
    flagged: list[int] = Field(default=[], description="indices into the audit's `flagged`")

    @property
    def key(self) -> Key:
        """What is measured, and of what."""
        return self.measure, self.set, self.group, self.species


class WorkRecord(_Part):
    """One stage: what was computed, and why."""

    stage: str
    n_tasks: int
    n_computed: int
    reason: str = Field(description="a sentence")
    seconds: float


class SeriesRecord(_Part):
    """One figure over audits, oldest first, this one last."""

    measure: str
    set: str
    group: str | None = None
    species: int | None = None
    unit: str = ""
    audits: list[str]
    values: list[float | None]
    is_logarithmic: bool = False

    @property
    def key(self) -> Key:
        """That of the check of the same figure."""
        return self.measure, self.set, self.group, self.species


class PickRecord(_Part):
    """A structure to label next."""

    file: str
    frame: int
    group: str
    objective: float = Field(description="with this label and all before it")


class NextRecord(_Part):
    """What to label next, and what it is expected to bring."""

    objective: str
    before: float
    picks: list[PickRecord]
    baselines: dict[str, list[float]] = Field(description="the same curve of other strategies")
    of: Literal["environments", "structures"] = "environments"
    sets: list[str] = Field(default=[], description="whose least rigid ones the objective is of")
    n_targets: int | None = Field(default=None, description="how many of them")
    n_candidates: int | None = Field(
        default=None, description="structures of the pool, without those that repeat others"
    )


class SampleRecord(_Part):
    """A map of environments that stand for all test sets, and of some of the training set."""

    environments: list[FlaggedEnvironment] = Field(
        description="the farthest points among some that were drawn, each far from all before"
    )
    coordinates: list[list[float]] = Field(description="of each, along the principal axes")
    training: list[list[float]] = Field(description="of environments of the training set")
    explained: list[float] = Field(description="the axes' parts of the variance")
    is_kernel: bool = Field(description="whether the axes are those of a kernel's rows")


class AuditRecord(_Part):
    """One audit."""

    record_version: int = RECORD_VERSION
    name: str = Field(description="its folder in the history, see `NAME`")
    title: str
    begun: str
    ended: str
    verdict: Verdict
    baseline: str | None = Field(description="the audit that it was held against")
    held_against: list[str] = Field(default=[], description="this one, and others that checks name")
    checks: list[CheckRecord]
    sets: list[SetRecord]
    flagged: list[FlaggedEnvironment]
    series: list[SeriesRecord]
    work: list[WorkRecord]
    next: NextRecord | None = None
    sample: SampleRecord | None = None
    ratios: str | None = Field(
        default=None, description="what `lpr_ratio` is, or why there is none"
    )
    cross_validation: CrossValidationRecord | None = None
    conventions: Json = Field(description="job, model, factor, versions, fingerprints of inputs")
