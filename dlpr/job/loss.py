"""The loss of a job: what residuals of each kind of target cost, and how much each counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BeforeValidator, Field

from dlpr.job.presets import PRESETS, Gap, Mace, Pacemaker, Preset
from dlpr.job.sections import Choice, Count, Label, Number, Plain, Positive, Section, Text

KINDS = ("energy", "forces", "stress", "virial")
"""Kinds of targets."""


class Squared(Section):
    """r^2/2; no keys."""


class Delta(Section):
    """A loss that is r^2/2 for small residuals and grows as delta |r| for large ones."""

    delta: Positive = Field(
        description="a number > 0 in the units of the rows, such as 0.01: where the loss turns "
        "from quadratic to linear"
    )


class PythonShape(Section):
    """A function of the user that gives a loss's derivatives: code that is run as it is."""

    call: str = Field(pattern=r"^[\w.]+:\w+$", description="text such as module:function")
    options: Plain = Field(default={}, description="a mapping of the function's keywords")


class Shape(Choice):
    """What a residual costs."""

    squared: Squared | None = None
    huber: Delta | None = None
    log_cosh: Delta | None = None
    python: PythonShape | None = None


def _word_as_choice(value: object) -> object:
    return {"squared": {}} if value in (None, "squared") else value


class Term(Section):
    """One kind of target: its lambda, and the shape of its loss."""

    weight: Number = Field(default=1.0, description="a number >= 0")
    shape: Annotated[Shape, BeforeValidator(_word_as_choice)] = Field(
        default_factory=lambda: Shape(squared=Squared()),
        description="squared, or a mapping with one of: huber, log_cosh, python",
    )

    @pydantic.model_serializer(mode="wrap")
    def _short(self, handler: pydantic.SerializerFunctionWrapHandler) -> Any:
        return self.weight if self.shape.kind == "squared" else handler(self)


def _number_as_term(value: object) -> object:
    return value if isinstance(value, Mapping | Term) else {"weight": value}


TermOrNumber = Annotated[Term, BeforeValidator(_number_as_term)]
_TERM = "a number >= 0, or a mapping with weight and shape"


class Loss(Section):
    """Weights of the targets: lambda of each kind, times those of each group and structure."""

    energy: TermOrNumber = Field(default=Term(weight=1.0), description=_TERM)
    forces: TermOrNumber = Field(default=Term(weight=0.0), description=_TERM)
    stress: TermOrNumber = Field(default=Term(weight=0.0), description=_TERM)
    virial: TermOrNumber = Field(default=Term(weight=0.0), description=_TERM)
    groups: dict[Text, Number] = Field(
        default={}, description="a factor >= 0 for each group that differs: {surface: 10}"
    )
    structure_weight: Label = None
    off_diagonals: Literal["twice", "once"] = "twice"
    tolerance: Positive = Field(default=1e-6, description="a number > 0, such as 1.0e-6")
    iterations: Count = 100
    gap: Gap | None = Field(default=None, description="a mapping with sigmas of gap_fit")
    pacemaker: Pacemaker | None = Field(default=None, description="a mapping with kappa")
    mace: Mace | None = Field(default=None, description="a mapping with MACE's weights")

    @pydantic.model_validator(mode="after")
    def _one_way(self) -> Loss:
        presets = [name for name in PRESETS if getattr(self, name) is not None]
        given = [name for name in (*KINDS, "off_diagonals") if name in self.model_fields_set]
        if len(presets) > 1 or (presets and given):
            raise ValueError(
                f"found {', '.join([*presets, *given])}; a preset says all weights: needs one "
                f"preset, or none of them"
            )
        if not presets and not self.kinds:
            raise ValueError(f"{', '.join(KINDS)} are all 0; needs one above 0")
        return self

    @pydantic.model_serializer(mode="wrap")
    def _what_counts(self, handler: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        """All that plays a part: of a sum of squares the weights alone."""
        found: dict[str, Any] = handler(self)
        idle = {"structure_weight": None, "virial": 0.0, "off_diagonals": "twice"}
        idle |= dict.fromkeys(PRESETS)
        dropped = {name for name, value in idle.items() if found[name] == value}
        if not self.is_reweighted:
            dropped |= {"tolerance", "iterations"}
        if self.preset is not None:
            dropped |= {*KINDS, "off_diagonals"}
        return {name: value for name, value in found.items() if name not in dropped}

    @property
    def preset(self) -> Preset | None:
        """Another program's weights, if they are meant."""
        return self.gap or self.pacemaker or self.mace

    @property
    def kinds(self) -> list[str]:
        """Kinds of targets that have a weight."""
        if self.preset is not None:
            found = self.preset.lambdas(1, 1)
            return [kind for kind in KINDS if found.get(kind, 0.0) > 0.0]
        return [kind for kind in KINDS if getattr(self, kind).weight > 0.0]

    @property
    def reweighted(self) -> list[str]:
        """Kinds whose loss is not squared."""
        if self.preset is not None:
            return self.kinds if self.preset.delta is not None else []
        return [kind for kind in self.kinds if getattr(self, kind).shape.kind != "squared"]

    @property
    def is_reweighted(self) -> bool:
        """Whether any kind's loss is not squared, so that the fit has to be iterated."""
        return bool(self.reweighted)

    @property
    def lambdas(self) -> str:
        """The weights as a job file would say them, without a preset."""
        found = [f"{kind}: {getattr(self, kind).weight:.6g}" for kind in self.kinds]
        if self.is_reweighted:
            shapes = {kind: getattr(self, kind).shape for kind in self.reweighted}
            found += [f"shape of {kind}: {x.model_dump(mode='json')}" for kind, x in shapes.items()]
        once = self.off_diagonals == "once" and {"stress", "virial"} & set(self.kinds)
        return ", ".join([*found, *(["off_diagonals: once"] if once else [])])

    def translated(self, n_structures: int, n_atoms: int) -> Loss:
        """The loss without a preset: lambdas for a training set of so many structures and atoms.

        One constant is free, as it would multiply all lambdas and the regularizer: it is such that
        the first kind that has rows, of energies, forces, stresses, virials, has lambda 1. The
        regularizer stays the job's.
        """
        preset = self.preset
        if preset is None:
            return self
        found = preset.lambdas(n_structures, n_atoms)
        one = next(found[kind] for kind in KINDS if found.get(kind, 0.0) > 0.0)
        shape = "squared" if preset.delta is None else {"huber": {"delta": preset.delta}}
        terms = {
            kind: {"weight": found.get(kind, 0.0) / one, "shape": shape}
            for kind in KINDS
            if kind == "energy" or found.get(kind, 0.0) > 0.0
        }
        kept = ("groups", "structure_weight", "tolerance", "iterations")
        return Loss.model_validate(
            {
                **{name: getattr(self, name) for name in kept},
                **terms,
                "off_diagonals": preset.off_diagonals,
            }
        )
