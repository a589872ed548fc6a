"""A first AUDIT.yaml, from the user's own files."""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from ase.data import chemical_symbols

from dlpr.errors import JobError
from dlpr.structures.files import Source, expand
from dlpr.structures.index import index_file
from dlpr.structures.labels import reading
from dlpr.structures.parse import Record, read_frames

SAMPLE = 200
"""Frames of a file that are read, at most."""
_MOST_GROUPS = 30
_USUAL_GROUPS = ("config_type", "group", "type", "label")


@dataclass
class Found:
    """What is in some files."""

    n_files: int = 0
    n_structures: int = 0
    n_atoms: int = 0
    species: set[int] = field(default_factory=set)
    texts: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """by key of info: its texts"""
    numbers: set[str] = field(default_factory=set)
    """keys of info that are one number"""
    n_energies: int = 0
    """sampled frames with an energy that is recognized"""

    def add(self, record: Record) -> None:
        """Look at a frame."""
        self.species |= set(record.number.tolist())
        self.n_energies += bool(np.isfinite(record.energy))
        for key, value in record.info.items():
            if isinstance(value, str):
                self.texts[key].add(value)
            elif np.ndim(value) == 0:
                self.numbers.add(key)

    @property
    def group_by(self) -> str | None:
        """The key that names groups, as far as one can guess."""
        usable = [key for key, texts in self.texts.items() if len(texts) <= _MOST_GROUPS]
        usual = [key for key in _USUAL_GROUPS if key in usable]
        return next(iter([*usual, *sorted(usable)]), None)

    @property
    def energy_key(self) -> str | None:
        """The key that has energies where none is recognized."""
        named = sorted(key for key in self.numbers if "energy" in key.lower())
        return named[0] if named and not self.n_energies else None

    @property
    def text(self) -> str:
        """Counts, species and groups."""
        symbols = " ".join(chemical_symbols[z] for z in sorted(self.species))
        files = f"{self.n_files} file{'s' * (self.n_files > 1)}"
        told = f"{files}, {self.n_structures} structures, {self.n_atoms} atoms"
        groups = sorted(self.texts[self.group_by]) if self.group_by else []
        shown = ", ".join(groups[:8]) + (f" and {len(groups) - 8} more" * (len(groups) > 8))
        return f"{told}; species {symbols}" + (f"; groups {shown}" if groups else "")


def survey(sources: Sequence[Source]) -> Found:
    """Count the frames of some files, and read a sample of each."""
    found = Found(n_files=len(sources))
    with tempfile.TemporaryDirectory() as scratch:
        for number, source in enumerate(sources):
            index = index_file(source, Path(scratch) / str(number))
            n_frames = len(index.selected)
            found.n_structures += n_frames
            found.n_atoms += int(index.n_atoms[index.selected].sum())
            step = max(1, -(-n_frames // SAMPLE))
            for record in read_frames(index, index.selected[::step].tolist(), reading({})):
                found.add(record)
    return found


def draft(files: Sequence[str], folder: Path) -> str:
    """The text of an audit's file.

    Parameters
    ----------
    files : sequence of str
        The training set first; test sets behind it, of which those whose names differ in a number
        alone are one.
    folder : Path
        Where the file will be; paths in it start from there.

    Raises
    ------
    DlprError
        If a file cannot be read.
    """
    train, *others = [source for pattern in files for source in expand([pattern], Path.cwd())]
    sets = _sets(others)
    base = survey([train])
    known = {name: survey(sources) for name, sources in sets.items()}
    test = [
        f"  # {known[name].text}\n"
        f"  {name}:\n"
        f"    files: [{', '.join(_patterns(sources, folder))}]\n{_reading(known[name], 4)}"
        for name, sources in sets.items()
    ] or ["  train: train                       # the training set is a test set, too\n"]
    labelled = [name for name, one in known.items() if one.n_energies or one.energy_key]
    uncertainty = (
        f"uncertainty: {{set: {labelled[0]}}}" if labelled else "# uncertainty: {set: NAME}"
    )
    return _TEXT.format(
        about=base.text,
        train=_quoted(_relative(train.path, folder)),
        reading=_reading(base, 2),
        test="".join(test),
        uncertainty=uncertainty,
        checks=_ERRORS.format(name=labelled[0]) if labelled else "",
    )


def _sets(sources: Sequence[Source]) -> dict[str, list[Source]]:
    found: defaultdict[str, list[Source]] = defaultdict(list)
    for source in sources:
        stem = source.path.name.partition(".")[0]
        name = re.sub(r"[^A-Za-z0-9_-]", "_", re.sub(r"[-_.]?\d+$", "", stem) or stem)
        found["test" if name in ("train", "pool") else name].append(source)
    return dict(found)


def _patterns(sources: Sequence[Source], folder: Path) -> list[str]:
    """Paths; a glob for files of a folder whose names differ in a number alone."""
    found: dict[str, None] = {}
    for source in sources:
        stem, dot, suffix = source.path.name.partition(".")
        cut = re.sub(r"\d+$", "", stem)
        name = f"{cut}*{dot}{suffix}" if len(sources) > 1 and cut != stem else source.path.name
        found[_quoted(_relative(source.path.with_name(name), folder))] = None
    return list(found)


def _relative(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _reading(found: Found, indent: int) -> str:
    lines = ""
    if found.group_by:
        lines += f"{' ' * indent}group_by: {_quoted(found.group_by)}\n"
    if found.energy_key:
        lines += f"{' ' * indent}keys: {{energy: {_quoted(found.energy_key)}}}\n"
    return lines


def check_absent(path: Path) -> None:
    """Refuse to replace a file.

    Raises
    ------
    JobError
    """
    if path.exists():
        raise JobError(f"{path} is there already; give another name with --to, or remove it.")


_ERRORS = """\
  - {{of: rmse, set: {name}, at_most: {{times: 1.2}}, on_failure: warn}}
"""
_TEXT = """\
# Every night: dlpr audit run AUDIT.yaml    (0: all checks hold, 1: one failed, 2: not made)
# Paths start from the folder of this file. All keys of a job may stand here, but for output.
title: Nightly rigidity audit
history: audits                      # a folder for each audit, and work/, which makes nights short

# {about}
train:
  files: [{train}]
{reading}
test:                                # globs: new and grown files are picked up
{test}
# pool:                              # candidates for labelling
#   files: [candidates/*.extxyz]
# next: {{count: 20}}                  # of these, the ones to label

descriptor:                          # your model's: featomic's own hyperparameters
  soap:
    cutoff: {{radius: 5.0, smoothing: {{type: ShiftedCosine, width: 0.5}}}}
    density: {{type: Gaussian, width: 0.4}}
    basis: {{type: TensorProduct, max_angular: 6, radial: {{type: Gto, max_radial: 7}}}}
model:
  linear: {{regularizer: 1.0e-8}}
cluster:
  local: {{}}

{uncertainty}     # by whose errors rigidities become meV/atom

# validation:                        # what is drawn of a set, if not what its files suggest
#   plots: {{NAME: [trajectory, energy_volume]}}

baseline: last                       # the last one without a failure; or a name, {{last: 5}}
busy: refuse                         # or wait, while another audit writes into the history
flag: {{count: 50, per_check: 10}}     # environments in the report, and of one check, at most

checks:
  # raw LPR depends on the model's units; the prior ratio is 1 where the data say nothing
  - {{of: prior_ratio, quantile: 0.05, at_least: 10, on_failure: warn}}
  - {{of: lpr, quantile: 0.05, group: "*", at_least: {{times: 0.8}}}}
  - {{of: drift, at_most: 0.1, on_failure: warn}}
{checks}  - {{of: unseen, at_most: 0}}
  - {{of: duplicates, at_most: 0, on_failure: warn}}
  - {{of: leakage, at_most: 0, on_failure: warn}}
  - {{of: near_duplicates, at_most: 0, on_failure: warn}}
  - {{of: near_leakage, at_most: 0, on_failure: warn}}
  - {{of: outliers, at_most: 0, on_failure: warn}}
  - {{of: lost, at_most: 0, on_failure: warn}}
  - {{of: settings, at_most: 0, on_failure: warn}}
"""
