"""featomic's hyperparameters, checked key by key before featomic sees them.

featomic ignores unknown keys in some sections (``density``), reports others by their column in a
JSON text, and aborts with a Rust backtrace on some values. Here every key is named by its place in
the job file instead; what only featomic can judge is left to featomic.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple, TypeAlias

from dlpr.errors import JobError


class _Section(NamedTuple):
    """Keys of a section for each of its types; the empty type: the section has none."""

    variants: dict[str, dict[str, _Rule]]
    optional: bool = False


class _ByAngular(NamedTuple):
    """A section whose keys are angular degrees."""

    radial: _Section


_Rule: TypeAlias = "str | _Section | _ByAngular"


# Leaves: "number", "positive", "count" (a whole number from 0), "list"; "?" marks optional ones.
_SMOOTHING = _Section({"ShiftedCosine": {"width": "positive"}, "Step": {}})
_SCALING = _Section(
    {"Willatt2018": {"exponent": "number", "rate": "number", "scale": "positive"}}, optional=True
)
_ANY_DENSITY: dict[str, _Rule] = {"center_atom_weight": "number?", "scaling": _SCALING}
_DENSITY = _Section(
    {
        "Gaussian": {"width": "positive", **_ANY_DENSITY},
        "DiracDelta": _ANY_DENSITY,
        "SmearedPowerLaw": {"smearing": "positive", "exponent": "count", **_ANY_DENSITY},
    }
)
_RADIAL = _Section(
    {
        "Gto": {"max_radial": "count", "radius": "positive?"},
        "Tabulated": {"points": "list", "center_contribution": "list?"},
    }
)
_LODE_RADIAL = _Section(
    {
        "Gto": {"max_radial": "count", "radius": "positive"},
        "Tabulated": {"points": "list", "center_contribution": "list?"},
    }
)


def _basis(radial: _Section) -> _Section:
    return _Section(
        {
            "TensorProduct": {
                "max_angular": "count",
                "radial": radial,
                "spline_accuracy": "positive?",
            },
            "Explicit": {"by_angular": _ByAngular(radial), "spline_accuracy": "positive?"},
        }
    )


_CUTOFF_KEYS: dict[str, _Rule] = {"radius": "positive", "smoothing": _SMOOTHING}
_CUTOFF = _Section({"": _CUTOFF_KEYS})
_POWER_LAW = _Section(
    {
        "SmearedPowerLaw": {
            "smearing": "positive",
            "exponent": "count",
            "center_atom_weight": "number?",
        }
    }
)
_KINDS = {
    "soap": _Section({"": {"cutoff": _CUTOFF, "density": _DENSITY, "basis": _basis(_RADIAL)}}),
    "radial": _Section(
        {
            "": {
                "cutoff": _CUTOFF,
                "density": _DENSITY,
                "basis": _Section({"": {"radial": _RADIAL, "spline_accuracy": "positive?"}}),
            }
        }
    ),
    "lode": _Section(
        {
            "": {
                "density": _POWER_LAW,
                "basis": _basis(_LODE_RADIAL),
                "k_cutoff": "positive?",
                "exclude": _Section({"": _CUTOFF_KEYS}, optional=True),
            }
        }
    ),
}


def nearest(word: object, known: Iterable[str]) -> str:
    """Say which known word is nearest to an unknown one, and list all known words."""
    words = sorted(known)
    match = get_close_matches(str(word), words, n=1, cutoff=0.0)[0]
    return f"the nearest known one is {match!r} (known: {', '.join(words)})"


def check_hypers(hypers: object, kind: str) -> dict[str, Any]:
    """Check the hyperparameters of a descriptor that featomic knows.

    Parameters
    ----------
    hypers
        The job's section ``descriptor.KIND``. "soap": featomic's ``cutoff``, ``density`` and
        ``basis`` of ``SoapPowerSpectrum``; "radial": those of ``SoapRadialSpectrum``; "lode":
        ``density``, ``basis`` and ``k_cutoff`` of ``LodeSphericalExpansion``, and ``exclude``, the
        keys of a ``cutoff``.
    kind
        One of those.

    Returns
    -------
    dict
        The same in one canonical form: numbers as float or int, optional keys that are None left
        out, so that equal settings have equal JSON.

    Raises
    ------
    JobError
        Naming the key, what was found and what is needed.
    """
    return _check_section(hypers, _KINDS[kind], f"descriptor.{kind}")


def _check_section(value: object, section: _Section, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise JobError(f"{where} is {value!r}; it must be a section of keys. Correct the job file.")
    checked: dict[str, Any] = {}
    if "" in section.variants:
        rules = section.variants[""]
    else:
        kind = value.get("type")
        if kind is None:
            known = ", ".join(section.variants)
            raise JobError(
                f"{where} lacks the key 'type'. Add it to the job file, one of: {known}."
            )
        if kind not in section.variants:
            raise JobError(
                f"{where}.type {kind!r} is unknown; {nearest(kind, section.variants)}."
                " Correct the job file."
            )
        checked["type"] = kind
        rules = section.variants[kind]
    for key in value:
        if key not in rules and key not in checked:
            raise JobError(
                f"unknown key {key!r} in {where}; {nearest(key, [*checked, *rules])}."
                " Correct the job file."
            )
    for key, rule in rules.items():
        place = f"{where}.{key}"
        if value.get(key) is not None:
            checked[key] = _check_value(value[key], rule, place)
        elif not _is_optional(rule):
            raise JobError(f"{where} lacks the key {key!r}. Add {place} to the job file.")
    return checked


def _is_optional(rule: _Rule) -> bool:
    if isinstance(rule, _Section):
        return rule.optional
    return isinstance(rule, str) and rule.endswith("?")


def _check_value(value: Any, rule: _Rule, where: str) -> object:
    if isinstance(rule, _Section):
        return _check_section(value, rule, where)
    if isinstance(rule, _ByAngular):
        return _check_by_angular(value, rule.radial, where)
    rule = rule.removesuffix("?")
    if rule == "list":
        if isinstance(value, list):
            return value
        raise JobError(f"{where} is {value!r}; it must be a list. Correct the job file.")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and rule == "count" and value == int(value) >= 0:
        return int(value)
    if number and rule != "count" and math.isfinite(value) and (rule == "number" or value > 0):
        return float(value)
    needed = {
        "count": "a whole number, 0 or greater",
        "positive": "a finite number greater than 0",
        "number": "a finite number",
    }[rule]
    hint = " (YAML reads 1e-8 as text: write 1.0e-8)" if isinstance(value, str) else ""
    raise JobError(f"{where} is {value!r}; it must be {needed}{hint}. Correct the job file.")


def _check_by_angular(value: object, radial: _Section, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(str(angular).isdecimal() for angular in value):
        raise JobError(
            f"{where} is {value!r}; it must be a section whose keys are angular degrees (0, 1, ...)"
            " and whose values are radial bases. Correct the job file."
        )
    return {
        str(int(angular)): _check_section(value[angular], radial, f"{where}.{angular}")
        for angular in sorted(value, key=int)
    }
