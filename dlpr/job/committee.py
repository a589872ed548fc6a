"""The committee of a job: whether there is one, and how its members come about."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from dlpr.job.sections import Choice, Positive, Section, refuse_boolean

Members = Annotated[
    int,
    BeforeValidator(refuse_boolean),
    Field(ge=2, description="a whole number >= 2"),
]
Seed = Annotated[
    int,
    BeforeValidator(refuse_boolean),
    Field(ge=0, lt=2**64, description="a whole number from 0 to 2^64 - 1"),
]
Fraction = Annotated[
    float,
    BeforeValidator(refuse_boolean),
    Field(gt=0, lt=1, description="a number between 0 and 1: each structure's chance to be in"),
]


class Subsample(Section):
    """Members fitted to parts of the training set, no structure twice in one."""

    members: Members = 10
    fraction: Fraction = 0.8
    seed: Seed = 0


class Posterior(Section):
    """Members drawn about the fit: ``w + scale H^-1/2 z``."""

    members: Members = 10
    scale: Positive = Field(
        default=1.0, description="a number > 0: a of the uncertainties a / sqrt(LPR)"
    )
    seed: Seed = 0


class Committee(Choice):
    """Where the weights of a committee's members come from."""

    subsample: Subsample | None = None
    posterior: Posterior | None = None
