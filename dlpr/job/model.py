"""The model of a job: the feature map behind the descriptor, its regularizer, its loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BeforeValidator, Field

from dlpr.job.sections import (
    Choice,
    Count,
    CountOrNone,
    Files,
    Natural,
    Number,
    Positive,
    Section,
    Symbol,
    Text,
)


class Nothing(Section):
    """No keys."""


def _none_as_choice(value: object) -> object:
    return {"none": {}} if value in (None, "none") else value


class RegularizerScan(Section):
    """A regularizer that the run picks: the one with the least error of a test set."""

    scan: tuple[Positive, Positive] = Field(
        description="two numbers > 0, the smaller one first, such as [1.0e-10, 1.0e-2]"
    )
    on: Text = Field(description="the name of a test set that has labels and is not trained on")
    points: Annotated[Count | None, Field(ge=2)] = Field(
        default=None, description="a whole number >= 2, or nothing: three for a factor of 10"
    )

    @pydantic.field_validator("scan")
    @classmethod
    def _ascend(cls, ends: tuple[float, float]) -> tuple[float, float]:
        if not ends[0] < ends[1]:
            raise ValueError(f"found {list(ends)}; needs two numbers > 0, the smaller one first")
        return ends

    @property
    def regularizers(self) -> list[float]:
        """Evenly in the logarithm, of six digits each, so that a job can name the one picked."""
        low, high = map(math.log10, self.scan)
        n = self.points or max(2, round(3 * (high - low)) + 1)
        inner = (10 ** (low + (high - low) * k / (n - 1)) for k in range(1, n - 1))
        return [self.scan[0], *(float(f"{one:.6g}") for one in inner), self.scan[1]]


def _tag_regularizer(value: object) -> str:
    return "<scan>" if isinstance(value, Mapping | RegularizerScan) else "<number>"


Regularizer = Annotated[
    Annotated[Number, pydantic.Tag("<number>")]
    | Annotated[RegularizerScan, pydantic.Tag("<scan>")],
    pydantic.Discriminator(_tag_regularizer),
]


class Composition(Section):
    """An energy per atom of each species, fitted with all other weights."""

    regularizer: Positive = Field(description="a number > 0, such as 1.0e-6")


class Baseline(Choice):
    """What is taken off the energies, or fitted beside the descriptor's weights."""

    none: Nothing | None = None
    isolated: Annotated[dict[Symbol, float], Field(min_length=1)] | None = Field(
        default=None, description="energies of isolated atoms in eV: {C: -148.3}"
    )
    composition: Composition | None = None


BaselineOrWord = Annotated[Baseline, BeforeValidator(_none_as_choice)]


class _Weights(Section):
    """What every feature map leaves to the job."""

    regularizer: Regularizer = Field(
        description="a number >= 0, such as 1.0e-8, or {scan: [1.0e-10, 1.0e-2], on: a test set}"
    )
    rows: Literal["mean", "sum", "sqrt"] = "mean"
    baseline: BaselineOrWord = Field(
        default_factory=lambda: Baseline(none=Nothing()),
        description="none, or a mapping with one of: isolated, composition",
    )

    @property
    def scan(self) -> RegularizerScan | None:
        """How the run is to pick the regularizer; None: the job gives it."""
        return self.regularizer if isinstance(self.regularizer, RegularizerScan) else None

    @property
    def least_regularizer(self) -> float:
        """The job's own, or the smallest that the run may pick."""
        given = self.regularizer
        return given.scan[0] if isinstance(given, RegularizerScan) else given

    def mapping(self) -> dict[str, Any]:
        """What decides the feature map, as JSON."""
        return {}


class Linear(_Weights):
    """Ridge regression on the descriptor: rigidity.md sec. 2."""

    scale: Literal["rms", "none"] = "rms"
    centre_species: Literal["separate", "shared"] = "separate"


class References(Section):
    """Which environments a kernel refers to: so many, or those with given numbers, or a file's."""

    count: Count | Annotated[dict[Symbol, Count], Field(min_length=1)] | None = Field(
        default=None,
        description="a whole number >= 1 for every central species, or a mapping {C: 500, H: 200}",
    )
    method: Literal["fps", "random", "cur"] = "fps"
    preselect: CountOrNone = None
    seed: Natural = 0
    indices: Annotated[tuple[Natural, ...], Field(min_length=1)] | None = Field(
        default=None, description="numbers >= 0 of training environments, in their order"
    )
    file: Files | None = Field(
        default=None, description="a file of structures all of whose environments are taken"
    )

    @pydantic.model_validator(mode="after")
    def _one_way(self) -> References:
        ways = ("count", "indices", "file")
        given = [name for name in ways if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"found {', '.join(given) or 'nothing'}; needs exactly one of: {', '.join(ways)}"
            )
        if self.preselect is not None and (self.count is None or self.method != "fps"):
            raise ValueError("preselect serves method: fps with a count alone")
        return self


class Kernel(_Weights):
    """Sparse kernel model (JCTC23 eq. 15-16): a block of weights for each central species."""

    zeta: Count = 2
    normalize: bool = True
    references: References = Field(description="a mapping with one of: count, indices, file")
    scale: Literal["none"] = "none"
    centre_species: Literal["separate"] = "separate"

    def mapping(self) -> dict[str, Any]:
        """What decides the feature map, as JSON, beside its references."""
        return {"zeta": self.zeta, "normalize": self.normalize}


class Model(Choice):
    """The feature map behind the descriptor."""

    linear: Linear | None = None
    kernel: Kernel | None = None
