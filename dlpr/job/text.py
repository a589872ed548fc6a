"""From the text of a settings file to a mapping, and from what is wrong with it to plain words.

Knows no particular file: the models describe themselves (a field's description completes the
sentence "needs ..."; without one its type does).
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from dlpr.errors import JobError

_MARKS = frozenset({"<set>", "<word>", "<scan>", "<number>", "[key]"})
"""Parts of pydantic's places that no file has."""


class _Loader(yaml.SafeLoader):
    """YAML with the scalars of version 1.2: ``1e-8`` is a number; ``on``, ``No`` and dates, text.

    A key given twice in one mapping is refused.
    """

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            name = (key.tag, key.value)
            if name in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key `{key.value}` is given twice, first in line {seen[name]}",
                    problem_mark=key.start_mark,
                )
            seen[name] = key.start_mark.line + 1
        return node


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first
    )


def read_mapping(path: str | os.PathLike[str]) -> dict[Any, Any]:
    """The mapping in a YAML file, read safely.

    Raises
    ------
    JobError
        If the file is absent, unreadable, not YAML, empty, not a mapping, or gives a key twice.
    """
    try:
        text = Path(path).read_bytes()
    except FileNotFoundError:
        raise JobError(f"{path}: no such file; give the path of a job file") from None
    except OSError as error:
        raise JobError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        data = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" line {mark.line + 1}, column {mark.column + 1}:" if mark else ""
        what = " ".join(part for part in (error.context, error.problem) if part)
        raise JobError(f"{path}:{where} not valid YAML: {what}") from None
    except (yaml.YAMLError, ValueError, AttributeError, RecursionError) as error:
        raise JobError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if data is None:
        raise JobError(f"{path}: the file is empty; needs a mapping of keys")
    if not isinstance(data, dict):
        raise JobError(f"{path}: needs a mapping of keys at the top; found {show(data)}")
    return data


def show(value: object) -> str:
    """A value as a message shows it: short, on one line, in the words of YAML."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return f"a mapping with {_shorten(', '.join(map(str, value))) or 'nothing in it'}"
    return _shorten(repr(value))


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 60 else text[:57] + "..."


def explain(root: type[BaseModel], error: ValidationError) -> list[str]:
    """One line per problem: the key as in the file, what was found, what is needed."""
    lines: list[str] = []
    guesses: set[str] = set()
    details = error.errors(include_url=False)
    for item in sorted(details, key=lambda item: item["type"] != "extra_forbidden"):
        place = [part for part in item["loc"] if part not in _MARKS]
        key = ".".join(map(str, place))
        model, need = _locate(root, place)
        if item["type"] == "extra_forbidden":
            text, guess = _explain_unknown(root, model, place)
            guesses.add(guess)
        elif key in guesses and item["type"] == "missing":
            continue  # already named as the nearest key of a misspelt one
        elif item["type"] == "missing":
            text = f"missing; needs {need}"
        elif item["type"] == "value_error":
            text = str(item["ctx"]["error"])
        elif item["type"] == "invalid_key":
            text = "a key here is text; quote it if it is meant"
        else:
            text = f"found {show(item['input'])}; needs {need}"
        lines.append(f"{key}: {text}" if key else text)
    return lines


def _explain_unknown(
    root: type[BaseModel], model: type[BaseModel], place: list[str | int]
) -> tuple[str, str]:
    """What to say of an unknown key, and the path of the key that was probably meant."""
    name, known = str(place[-1]), list(model.model_fields)
    folded = {key.lower(): key for key in known}
    near = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.5)
    elsewhere = [path for path in _paths(root) if path.rpartition(".")[2] == name]
    hint = guess = ""
    if elsewhere and not (near and len(elsewhere) > 1):
        hint = f"`{name}` belongs at {' or '.join(f'`{path}`' for path in elsewhere)}; "
    elif near:
        hint = f"did you mean `{folded[near[0]]}`? "
        guess = ".".join([*map(str, place[:-1]), folded[near[0]]])
    return f"unknown key; {hint}known here: {', '.join(known)}", guess


def _locate(root: type[BaseModel], place: list[str | int]) -> tuple[type[BaseModel], str]:
    """The innermost model on the way to a place, and what the last field on it needs."""
    model: type[BaseModel] | None = root
    inner, need, named = root, "a mapping", False
    for part in place:
        if isinstance(part, int):  # a member of a list
            continue
        if named:  # a name that the user chose
            named = False
            continue
        if model is None or str(part) not in model.model_fields:
            break
        field = model.model_fields[str(part)]
        need = field.description or _describe(field.annotation)
        model = _find_model(field.annotation)
        inner = model or inner
        named = get_origin(field.annotation) is dict
    return inner, need


def _describe(annotation: Any) -> str:
    model = _find_model(annotation)
    if model is not None:
        return f"a mapping with {', '.join(model.model_fields)}"
    if get_origin(annotation) is Literal:
        *most, last = map(str, get_args(annotation))
        return f"{', '.join(most)} or {last}" if most else last
    return "true or false" if annotation is bool else "text"


def _find_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_find_model(part) for part in get_args(annotation))
    return next((model for model in found if model is not None), None)


def _paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key that a file may have, dotted, with NAME where the user chooses."""
    for name, field in model.model_fields.items():
        yield prefix + name
        inner = _find_model(field.annotation)
        if inner is not None:
            middle = "NAME." if get_origin(field.annotation) is dict else ""
            yield from _paths(inner, f"{prefix}{name}.{middle}")
