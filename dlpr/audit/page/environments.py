"""What an audit's page shows of the worst environments: pictures, and where they are."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import ase.io

from dlpr.audit.flagged import FLAGGED
from dlpr.audit.page.section import Section
from dlpr.audit.page.sticks import CIVIDIS, SIZE, colors_of, sticks

MOST_PICTURES = 24


def section(folder: Path) -> Section:
    """The first flagged environments, in the record's order, in one scale of colours."""
    path = folder / FLAGGED
    frames = list(islice(ase.io.iread(path), MOST_PICTURES)) if path.exists() else []
    colors = colors_of(atoms.arrays["lpr"] for atoms in frames)
    shown = {
        "pictures": [sticks(atoms, colors) for atoms in frames],
        "size": SIZE,
        "colors": colors,
        "scale": CIVIDIS,
    }
    return Section("environments", "Worst environments", shown)
