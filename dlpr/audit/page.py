"""The page of an audit: one file that opens anywhere, without a network."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from typing import Any

import ase.io
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from dlpr.audit.diagrams import HEIGHT, LEFT, WIDTH, number
from dlpr.audit.flagged import CHEMISCOPE, FLAGGED
from dlpr.audit.history import PAGE
from dlpr.audit.record import AuditRecord
from dlpr.audit.sticks import CIVIDIS, SIZE, Colors, Sticks, colors_of, sticks
from dlpr.audit.views import ORDER, compared, gain, history, set_view, symbol
from dlpr.store.files import atomic_file

MOST_PICTURES = 24
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
        loader=PackageLoader("dlpr", "audit/templates"),
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
    pictures, colors = _pictures(folder / FLAGGED)
    text = templates.get_template("page.html").render(
        record=record,
        sentence=sentence(record),
        words=WORDS,
        checks=sorted(record.checks, key=lambda check: ORDER.index(check.verdict)),
        compared=compared(record),
        sets=[set_view(record, one) for one in record.sets],
        pictures=pictures,
        colors=colors,
        cividis=CIVIDIS,
        history=history(record),
        gain=record.next and gain(record.next),
        files={name: what for name, what in FILES.items() if (folder / name).exists()},
        sizes={"width": WIDTH, "height": HEIGHT, "left": LEFT, "picture": SIZE},
    )
    path = folder / PAGE
    with atomic_file(path) as file:
        file.write(text.encode())
    return path


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


def _pictures(path: Path) -> tuple[list[Sticks], Colors]:
    """The first flagged environments, in the record's order, in one scale of colours."""
    frames = list(islice(ase.io.iread(path), MOST_PICTURES)) if path.exists() else []
    colors = colors_of(frames)
    return [sticks(atoms, colors) for atoms in frames], colors
