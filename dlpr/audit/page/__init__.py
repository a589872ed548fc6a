"""The page of an audit: one file that opens anywhere, without a network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from dlpr.audit.flagged import CHEMISCOPE, FLAGGED
from dlpr.audit.history import PAGE
from dlpr.audit.page import cross_validation, environments, history, map, next, sets, validation
from dlpr.audit.page.diagrams import HEIGHT, LEFT, WIDTH, number
from dlpr.audit.page.section import ORDER, Section, symbol
from dlpr.audit.record import AuditRecord, CheckRecord
from dlpr.audit.sample import SAMPLE
from dlpr.store.files import atomic_file

MOST_LINES = 150
"""Of one part of the conventions; the rest is in the record."""
WORDS = {"pass": "holds", "warn": "warning", "fail": "failed"}
FLAGS = {
    "central_species": "its species is not in the training set",
    "neighbour_species": "a neighbour's species is not in the training set",
    "unlike_references": "unlike every reference environment",
}
FILES = {
    "audit.json": "all of this page as data",
    FLAGGED: "the flagged environments, for OVITO and ASE",
    CHEMISCOPE: "the same for chemiscope",
    SAMPLE: "the environments of the map, for chemiscope",
    "next.extxyz": "what to label next",
    "audit.yaml": "what was asked for",
}
"""What may lie beside the page."""


def write_page(record: AuditRecord, folder: Path) -> Path:
    """Write ``index.html``: verdict, checks, sets, environments, history, and how it was computed.

    Parameters
    ----------
    record : AuditRecord
    folder : Path
        Where the page goes; environments are drawn from the ``flagged.extxyz`` that is there.

    Returns
    -------
    Path
    """
    templates = Environment(
        loader=PackageLoader("dlpr", "audit/page/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        "number": number,
        "symbol": symbol,
        "prose": prose,
        "flag": lambda name: FLAGS.get(name, name.replace("_", " ")),
        "yaml": _yaml,
    }
    text = templates.get_template("page.html").render(
        record=record,
        sentence=sentence(record),
        words=WORDS,
        open_checks=open_checks(record),
        sections=sections(record, folder),
        sizes={"width": WIDTH, "height": HEIGHT, "left": LEFT},
    )
    path = folder / PAGE
    with atomic_file(path) as file:
        file.write(text.encode())
    return path


def open_checks(record: AuditRecord) -> list[CheckRecord]:
    """What does not hold, failures first."""
    found = [check for check in record.checks if check.verdict != "pass"]
    return sorted(found, key=lambda check: ORDER.index(check.verdict))


def sections(record: AuditRecord, folder: Path) -> list[Section]:
    """What there is to show, in the order of the page."""
    holding = [check for check in record.checks if check.verdict == "pass"]
    files = {name: what for name, what in FILES.items() if (folder / name).exists()}
    return [
        Section("checks", "Checks", {"open": open_checks(record), "holding": holding}),
        sets.section(record),
        *validation.section(record),
        *cross_validation.section(record),
        environments.section(folder),
        *map.section(record),
        *next.section(record),
        history.section(record),
        Section("how", "How it was computed", {"files": files}),
    ]


def sentence(record: AuditRecord) -> str:
    """The verdict for people who know nothing of rigidities."""
    n = len(record.checks)
    if n == 0:
        return "Nothing was judged: this audit declares no check, it only shows what there is."
    failed, warned = (
        [check for check in record.checks if check.verdict == verdict] for verdict in ORDER[:2]
    )
    places = list(dict.fromkeys(check.set for check in failed or warned if check.set))
    where = f" ({', '.join(places)})" if places else ""
    if failed:
        more = f", and {len(warned)} more gave a warning" if warned else ""
        return (
            f"{len(failed)} of {n} checks failed{where}{more}: read below what that means before "
            f"you rely on the model there."
        )
    if warned:
        return f"Nothing failed, but {len(warned)} of {n} checks ask you to have a look{where}."
    return f"The training data support the model as firmly as you asked: {n} of {n} checks hold."


def prose(text: str) -> Markup:
    """Text for people: what is between backticks is code, and signs are those of print."""
    text = text.replace(">=", "≥").replace("<=", "≤")
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _yaml(value: Any) -> str:
    """What people read of a part of the conventions."""
    lines = yaml.safe_dump(value, sort_keys=False, allow_unicode=True).splitlines()
    more = len(lines) - MOST_LINES
    return "\n".join([*lines[:MOST_LINES], *([f"... and {more} lines in audit.json"] * (more > 0))])
