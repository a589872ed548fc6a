"""A part of an audit's page."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ase.data import chemical_symbols

ORDER = ("fail", "warn", "pass")
"""What is shown first."""


@dataclass(frozen=True)
class Section:
    """A heading, and what the template of its name shows below it."""

    name: str
    """Of the anchor, and of the template in ``templates/sections``."""
    title: str
    shows: dict[str, Any] = field(default_factory=dict)
    """The template's ``shown``."""


def symbol(species: int | None) -> str:
    """What chemists call an atomic number; None: of all."""
    return "all" if species is None else chemical_symbols[species]
