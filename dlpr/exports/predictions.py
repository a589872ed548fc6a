"""Predictions of a fitted model for files of structures, frame by frame."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from dlpr.errors import InputError, JobError
from dlpr.exports import PathLike, extxyz, format_of, opened
from dlpr.fitted import FittedModel, Prediction, load_model
from dlpr.structures.checks import check_record
from dlpr.structures.files import expand
from dlpr.structures.index import index_file
from dlpr.structures.labels import reading
from dlpr.structures.parse import Record, read_frames

_FULL = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])
"""Places of xx, yy, zz, yz, xz, xy in the full matrix."""


@dataclass
class Errors:
    """Sum of squared differences from labels, streamed."""

    n: int = 0
    """numbers that were compared"""
    square: float = 0.0

    def add(self, predicted: Any, label: Any) -> None:
        """Compare some numbers with their labels."""
        difference = np.asarray(predicted, np.float64) - label
        self.n += difference.size
        self.square += float(np.square(difference).sum())

    @property
    def rmse(self) -> float:
        """NaN where nothing was compared."""
        return float(np.sqrt(self.square / self.n)) if self.n else float("nan")


@dataclass
class Summary:
    """What a file of predictions holds."""

    path: Path
    n_structures: int = 0
    n_atoms: int = 0
    n_unseen: int = 0
    """atoms with any bit of ``Prediction.unseen``"""
    errors: dict[str, Errors] = field(
        default_factory=lambda: {kind: Errors() for kind in ("energy", "forces", "stress")}
    )
    """``energy``: per atom, eV; ``forces``, ``stress``: components, eV/Å, eV/Å³"""


def predict(
    model: FittedModel | PathLike,
    files: str | Sequence[str],
    to: PathLike,
    *,
    forces: bool = False,
    stress: bool = False,
    uncertainty: bool = False,
    keys: Mapping[str, str] | None = None,
    listener: Callable[[int, int], None] | None = None,
) -> Summary:
    """Predict all frames of some files, and write them as extended xyz.

    Parameters
    ----------
    model : FittedModel or path
        A folder that ``dlpr save`` wrote.
    files : str or sequence of str
        Paths or globs of any format that ASE reads, each with an optional index: ``md.traj@::10``.
    to : path
        Ends in ``.extxyz`` or ``.xyz``, ``.gz`` may follow. Appears when it is whole.
    forces, stress : bool
        Whether to predict these too; a stress of frames that are periodic in three directions.
    uncertainty : bool
        Whether forces and stresses are to have uncertainties, see `FittedModel.predict`.
    keys : mapping, optional
        Names of the labels in the files, as ``train.keys`` of a job.
    listener : callable, optional
        Told the number of frames done, and of all frames.

    Returns
    -------
    Summary
        With errors where the files have labels.

    Notes
    -----
    Columns: ``energies``, ``lpr``, ``prior_ratio``, ``uncertainty`` (eV, of the atomic energy),
    ``unseen``, ``forces``, ``forces_uncertainty``, ``label_forces``; of a model with a committee
    ``committee_variance`` (eV², of the atomic energy), of one of several parts ``lpr_NAME``. The
    comment has ``energy``, ``energy_uncertainty``, ``structure_pr``, ``stress``,
    ``stress_uncertainty``, ``structure_committee_variance``, ``structure_pr_NAME``, and the labels
    ``label_energy`` and ``label_stress``. Every number has all its digits.

    Raises
    ------
    DlprError
        If the model, a file or a frame cannot be used.
    """
    target = Path(to).absolute()
    if format_of(target, None) != "extxyz" or target.is_dir():
        raise JobError(f"{target.name}: predictions are extended xyz; end it in .extxyz or .xyz.")
    own = model if isinstance(model, FittedModel) else load_model(model)
    own.check_derivatives(forces=forces, stress=stress)
    names = [files] if isinstance(files, str) else list(files)
    summary = Summary(target)
    options = {"forces": forces, "stress": stress, "uncertainty": uncertainty}
    with tempfile.TemporaryDirectory() as scratch, opened(target) as file:
        for record, n_frames in _frames(names, dict(keys or {}), Path(scratch)):
            check_record(record)
            for text in extxyz(_frame(own, record, summary, options)):
                file.write(text.encode())
            if listener is not None:
                listener(summary.n_structures, n_frames)
    return summary


def _frames(
    names: list[str], keys: Mapping[str, str], scratch: Path
) -> Iterator[tuple[Record, int]]:
    """Frames of all files, and their number."""
    sources = expand(names, Path.cwd())
    found = [index_file(source, scratch / str(k)) for k, source in enumerate(sources)]
    n_frames = sum(len(index.selected) for index in found)
    for index in found:
        for record in read_frames(index, index.selected.tolist(), reading(keys)):
            yield record, n_frames


def _frame(model: FittedModel, record: Record, summary: Summary, options: dict[str, bool]) -> Any:
    """One structure with what is predicted of it; its errors go to the summary."""
    atoms: Any = Atoms(record.number, record.position, cell=record.cell, pbc=record.pbc)
    try:
        own = {**options, "stress": options["stress"] and bool(record.pbc.all())}
        found = model.predict(atoms, **own)
    except InputError as error:
        raise InputError(f"{record.place}: {error}") from error
    atoms.info["energy"] = found.energy
    atoms.set_array("energies", found.energies)
    for name, values in found.of_atoms.items():
        atoms.set_array(name, values)
    atoms.set_array("unseen", found.unseen.astype(np.int64))
    atoms.info.update(found.of_structure)
    if found.forces is not None:
        atoms.set_array("forces", found.forces)
    if found.stress is not None:
        atoms.info["stress"] = found.stress[_FULL]
    if found.forces_uncertainty is not None:
        atoms.set_array("forces_uncertainty", found.forces_uncertainty)
    if found.stress_uncertainty is not None:
        atoms.info["stress_uncertainty"] = found.stress_uncertainty[_FULL]
    atoms.info["source_file"], atoms.info["source_frame"] = record.file, record.frame
    summary.n_structures += 1
    summary.n_atoms += len(atoms)
    summary.n_unseen += int(np.count_nonzero(found.unseen))
    _compare(atoms, found, record, summary.errors)
    return atoms


def _compare(atoms: Any, found: Prediction, record: Record, errors: Mapping[str, Errors]) -> None:
    """Store the labels beside what was predicted, and take the errors."""
    if np.isfinite(record.energy):
        atoms.info["label_energy"] = record.energy
        errors["energy"].add(found.energy / len(atoms), record.energy / len(atoms))
    if _is_known(record.force) and found.forces is not None:
        atoms.set_array("label_forces", record.force)
        errors["forces"].add(found.forces, record.force)
    if record.stress is not None and _is_known(record.stress) and found.stress is not None:
        atoms.info["label_stress"] = record.stress
        errors["stress"].add(found.stress[_FULL], record.stress)


def _is_known(label: NDArray[np.float64] | None) -> bool:
    return label is not None and bool(np.isfinite(label).all())
