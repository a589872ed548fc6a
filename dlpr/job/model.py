"""The model of a job: the feature map behind the descriptor, its regularizer, its loss."""

from __future__ import annotations

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
)


class Nothing(Section):
    """No keys."""


def _none_as_choice(value: object) -> object:
    return {"none": {}} if value in (None, "none") else value


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

    regularizer: Number = Field(description="a number >= 0, such as 1.0e-8")
    rows: Literal["mean", "sum", "sqrt"] = "mean"
    baseline: BaselineOrWord = Field(
        default_factory=lambda: Baseline(none=Nothing()),
        description="none, or a mapping with one of: isolated, composition",
    )

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
