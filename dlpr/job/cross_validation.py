"""The cross-validation of a job: which structures are left out together."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
from pydantic import BeforeValidator, Field

from dlpr.job.committee import Seed
from dlpr.job.sections import Section, refuse_boolean

Folds = Annotated[
    int,
    BeforeValidator(refuse_boolean),
    Field(ge=2, description="a whole number >= 2"),
]


class CrossValidation(Section):
    """Every structure of the training set predicted by a fit that has not seen it."""

    by: Literal["structure", "stratified", "group"] = "structure"
    folds: Folds = 5
    seed: Seed = 0

    @pydantic.model_validator(mode="after")
    def _groups_are_folds(self) -> CrossValidation:
        given = [name for name in ("folds", "seed") if name in self.model_fields_set]
        if self.by == "group" and given:
            raise ValueError(
                f"by: group leaves out every group in turn, and has no {' and no '.join(given)}; "
                f"remove {' and '.join(given)}, or take by: structure or stratified"
            )
        return self

    @pydantic.model_serializer(mode="wrap")
    def _what_counts(self, handler: pydantic.SerializerFunctionWrapHandler) -> dict[str, object]:
        """Groups left out in turn have neither number nor seed."""
        found: dict[str, object] = handler(self)
        return {"by": "group"} if self.by == "group" else found

    def spec(self, n_groups: int) -> dict[str, object]:
        """As `dlpr.stages.sources.folds_of` takes it, for a training set of so many groups."""
        n_folds = n_groups if self.by == "group" else self.folds
        return {"by": self.by, "members": n_folds, "seed": self.seed}
