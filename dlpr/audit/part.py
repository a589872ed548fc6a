"""What all parts of an audit's record have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """A part that never changes, and knows its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)
