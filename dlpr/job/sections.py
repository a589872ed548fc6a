"""What sections of a job file are made of.

A field's description completes the sentence "needs ..."; without one its type does. `dlpr.job.text`
makes the messages, so that a new section or member of a choice is explained without further code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any

import pydantic
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from dlpr.job.text import show
from dlpr.units import parse_bytes, parse_seconds


class Section(BaseModel):
    """A mapping; a key that it does not know is refused."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _blank_is_default(cls, data: object) -> object:
        return {} if data is None else data


class Choice(Section):
    """A mapping with exactly one key, the kind; members are fields that default to None."""

    @model_validator(mode="before")
    @classmethod
    def _name_one(cls, data: object) -> object:
        data = {} if data is None else data
        if not isinstance(data, Mapping):
            return data
        if len(data) != 1 and not data.keys() - cls.model_fields.keys():
            raise ValueError(
                f"found {', '.join(map(str, data)) or 'nothing'}; "
                f"needs exactly one of: {', '.join(cls.model_fields)}"
            )
        return {kind: {} if spec is None else spec for kind, spec in data.items()}

    @pydantic.model_serializer(mode="wrap")
    def _dump_one(self, handler: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {self.kind: handler(self)[self.kind]}

    @property
    def kind(self) -> str:
        """Name of the member that is given."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def spec(self) -> Any:
        """The member that is given."""
        return getattr(self, self.kind)


def refuse_boolean(value: object) -> object:
    """True and false, which Python takes for numbers, are none here."""
    if isinstance(value, bool):
        raise ValueError(f"found {show(value)}; needs a number")
    return value


def list_one(value: object) -> object:
    """One line of text, where a list of them is meant."""
    return [value] if isinstance(value, str) else value


def _check_distinct(value: object) -> object:
    if isinstance(value, Mapping):
        names = [str(key) for key in value]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"type {min(twice)} is given twice")
    return value


def _copy_plain(value: object) -> object:
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"needs finite numbers, text, lists and mappings: {error}") from None


def _check_set_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name) or not name.strip("."):
        raise ValueError("a set's name needs letters, digits and _ . - only (a group of a store)")
    if name.startswith("__") or name == "zarr.json":
        raise ValueError("this name is reserved by Zarr; rename the set")
    return name


Text = Annotated[str, Field(min_length=1, description="text")]
Line = Annotated[
    str, Field(min_length=1, pattern=r"^[^\n\r\x00]*$", description="text on one line")
]
Number = Annotated[float, BeforeValidator(refuse_boolean), Field(ge=0)]
Positive = Annotated[float, BeforeValidator(refuse_boolean), Field(gt=0)]
Count = Annotated[
    int, BeforeValidator(refuse_boolean), Field(ge=1, description="a whole number >= 1")
]
Natural = Annotated[
    int, BeforeValidator(refuse_boolean), Field(ge=0, description="a whole number >= 0")
]
CountOrNone = Annotated[Count | None, Field(description="a whole number >= 1, or nothing")]
Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(description="a size such as 4GiB")]
Seconds = Annotated[
    int,
    BeforeValidator(parse_seconds),
    Field(ge=0, description="a time such as 90, 30min, 2h; 0: never"),
]
Files = Annotated[tuple[Text, ...], BeforeValidator(list_one), Field(min_length=1)]
Symbol = Annotated[str, Field(pattern="^[A-Z][a-z]?$")]
TypeMap = Annotated[dict[Count, Symbol], BeforeValidator(_check_distinct)]
Plain = Annotated[dict[str, Any], BeforeValidator(_copy_plain)]
Label = Annotated[Text | None, Field(description="a name in the files, as text")]
SetName = Annotated[str, AfterValidator(_check_set_name)]
