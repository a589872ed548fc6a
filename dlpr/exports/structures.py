"""The structures of one set of a result, with their rigidities, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import zarr
from ase import Atoms
from numpy.typing import NDArray

from dlpr.descriptors import Descriptor, members
from dlpr.descriptors.neighbours import Surroundings
from dlpr.errors import CorruptPartError, InputError, StoreError
from dlpr.handles import Result
from dlpr.stages.features import open_descriptor
from dlpr.stages.rigidity import COMMITTEE, STRUCTURE_COMMITTEE
from dlpr.stages.structures import StructureStore, open_structures
from dlpr.store.folder import StageFolder
from dlpr.structures.frames import Piece

PICTURE_CUTOFF = 3.5
"""Å of the environments that are drawn where no descriptor says how large they are."""
FORCES = {"environment_pr_forces": "pr_forces", "environment_forces": "predicted_forces"}
"""Names of what a result has of forces, where it has any."""
CHEMISCOPE_ATOMS = 100_000
"""Atoms that chemiscope shows at most: it holds all of them, and their text, in memory."""
WHOLE_ATOMS = 500
"""A structure of more atoms is cut around an environment that is to be looked at."""


def _picture_cutoff(calculator: Descriptor) -> float:
    """Radius of the smallest environment that a descriptor looks at."""
    found = [member.cutoff for member in members(calculator) if 0 < member.cutoff < np.inf]
    return min(found, default=PICTURE_CUTOFF)


def neighbours(
    piece: Piece, atom: int, cutoff: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """What is within a cutoff of an atom, periodic images included.

    Returns
    -------
    atom : (n,) int64
        Rows of the piece's atoms that the neighbours are, or are images of.
    vector : (n, 3)
        Å, from the atom to each.
    """
    species = np.unique(piece.species).tolist()
    around = Surroundings([piece], [np.array([atom])], cutoff, species).neighbours(0, 1)
    return around.atom, np.nan_to_num(around.direction * around.distance).T


class SetStructures:
    """The structures of one set of a result, with their rigidities, one at a time."""

    def __init__(self, result: Result, name: str) -> None:
        path = result.path.resolve().parent
        if not (path / "plan.json").exists():
            raise StoreError(
                f"{result.path} lies apart from the structures that it was computed from (there is "
                f"no {path / 'plan.json'}). Export from the run's own output folder; csv and "
                f"parquet need the result alone."
            )
        self.name = name
        self._folder = StageFolder(path)
        rigidity = self._folder.input(name)
        self._task = self._folder.settings["sets"].index(name)
        self._store: StructureStore = open_structures(rigidity.input("structures"))
        group = result.open(name)
        self._lpr = self._column(group, "environment_lpr")
        self._ratio = self._column(group, "environment_prior_ratio")
        self._pr = self._column(group, "structure_pr")
        self._committee = [
            self._column(group, array)
            for array in (COMMITTEE, STRUCTURE_COMMITTEE)
            if array in group
        ]
        names = [key for key in FORCES if key in group]
        self._forces = {FORCES[key]: self._column(group, key) for key in names}
        self._source_file, self._source_files = self._store.sources()
        self._source_frame = self._store.over_structures("source_frame")
        # a part without any force has no array of forces
        receipts = self._store.folder.receipts()
        counts = [receipt.facts["n_structures"] for receipt in receipts]
        self._has_forces = np.repeat([r.facts["labels"]["forces"] > 0 for r in receipts], counts)
        self.cutoff = _picture_cutoff(open_descriptor(rigidity.settings["features"]["descriptor"]))

    def _column(self, group: zarr.Group, name: str) -> _Rows:
        array = group[name]
        assert isinstance(array, zarr.Array)

        def damaged(error: object) -> CorruptPartError:
            return self._folder.corrupt(self._task, f"{self.name}/{name}", error)

        return _Rows(array, damaged)

    @property
    def n_structures(self) -> int:
        return self._store.n_structures

    def group(self, index: int) -> str:
        return str(self._store.group_names[self._store.group[index]])

    def structure_pr(self, index: int) -> float:
        return float(self._pr.read(index, index + 1)[0])

    def n_atoms(self, chosen: range) -> int:
        return int(np.diff(self._store.structure_offset)[np.asarray(chosen)].sum())

    def check_chemiscope(self, chosen: range) -> None:
        """Refuse more atoms than chemiscope can show.

        Raises
        ------
        InputError
        """
        n_atoms = self.n_atoms(chosen)
        if n_atoms > CHEMISCOPE_ATOMS:
            raise InputError(
                f"{self.name}: the {len(chosen)} structures have {n_atoms} atoms; chemiscope shows "
                f"up to {CHEMISCOPE_ATOMS}. Choose some with --structures (such as 0:10 or ::5), "
                f"or write extxyz for OVITO."
            )

    def find(self, file: str, frame: int) -> int:
        """The structure that a frame of a source file has become.

        Raises
        ------
        InputError
            If there is none.
        """
        is_file = np.array(self._source_files) == file
        found = np.flatnonzero(is_file[self._source_file] & (self._source_frame == frame))
        if len(found) == 0:
            raise InputError(f"{self.name} has no structure of frame {frame} of {file}.")
        return int(found[0])

    def environment(self, index: int, atom: int) -> Any:
        """One environment as a structure that people can look at.

        Parameters
        ----------
        index : int
            Of the structure.
        atom : int
            In the source's order.

        Returns
        -------
        Atoms
            The whole structure where it has `WHOLE_ATOMS` or fewer, else all atoms and periodic
            images within two cutoffs, without a cell. Arrays ``lpr``, ``prior_ratio``,
            ``source_atom`` and ``is_flagged``, 1 for the environment's own atom, 0 elsewhere.
        """
        start, stop = (int(edge) for edge in self._store.structure_offset[index : index + 2])
        if stop - start <= WHOLE_ATOMS:
            piece = replace(self._store.whole(index), centre=np.array([atom]))
        else:
            piece = self._cut(index, start, stop, atom)
        source = np.arange(stop - start) if piece.atom is None else piece.atom
        atoms: Any = Atoms(piece.species, piece.position, cell=piece.cell, pbc=piece.pbc)
        atoms.set_array("lpr", self._lpr.take(start + source))
        atoms.set_array("prior_ratio", self._ratio.take(start + source))
        atoms.set_array("source_atom", source)
        flagged = np.zeros(len(atoms), np.int64)
        flagged[piece.centre] = 1
        atoms.set_array("is_flagged", flagged)
        atoms.info["group"] = self.group(index)
        return atoms

    def _cut(self, index: int, start: int, stop: int, atom: int) -> Piece:
        """Atoms and images within two cutoffs of one atom."""
        store, radius = self._store, 2.0 * self.cutoff
        if store.is_sorted_by_space(index):
            stored = start + int(np.argmax(store.read("source_atom", start, stop) == atom))
            return store.pieces(stored, stored + 1, radius)[0]
        whole = store.whole(index)
        near, vector = neighbours(whole, atom, radius)
        near = np.concatenate([[atom], near])
        position = whole.position[atom] + np.vstack([np.zeros(3), vector])
        species = whole.species[near]
        return Piece(
            position, species, np.zeros((3, 3)), np.zeros(3, bool), np.zeros(1, int), atom=near
        )

    def frame(self, index: int) -> Any:
        """One structure in its source's order of atoms, rigidities among its arrays."""
        store = self._store
        start, stop = (int(edge) for edge in store.structure_offset[index : index + 2])
        # ``stored[atom]`` is the stored row of an atom of the source frame
        stored = np.argsort(store.read("source_atom", start, stop), kind="stable")
        atoms: Any = Atoms(
            numbers=store.read("species", start, stop)[stored],
            positions=store.read("position", start, stop)[stored],
            cell=store.structure("cell", index),
            pbc=store.structure("pbc", index),
        )
        # rigidity.zarr has the source's order already
        atoms.set_array("lpr", self._lpr.read(start, stop))
        atoms.set_array("prior_ratio", self._ratio.read(start, stop))
        if self._committee:
            of_atoms, of_structure = self._committee
            atoms.set_array("committee_variance", of_atoms.read(start, stop))
            variance = float(of_structure.read(index, index + 1)[0])
            atoms.info["structure_committee_variance"] = variance
        for name, rows in self._forces.items():
            atoms.set_array(name, rows.read(start, stop))
        if self._has_forces[index]:
            forces = store.read("force", start, stop)[stored]
            if np.isfinite(forces).all():
                atoms.set_array("forces", forces)
        for label in ("energy", "stress"):
            value = store.structure(label, index)
            if np.isfinite(value).all():
                atoms.info[label] = float(value) if value.ndim == 0 else value
        atoms.info["structure_pr"] = self.structure_pr(index)
        atoms.info["group"] = self.group(index)
        atoms.info["source_file"] = self._source_files[self._source_file[index]]
        atoms.info["source_frame"] = int(self._source_frame[index])
        return atoms


class _Rows:
    """Rows of a Zarr array, of which one chunk is held."""

    def __init__(
        self, array: zarr.Array[Any], damaged: Callable[[object], CorruptPartError]
    ) -> None:
        self._array, self._damaged = array, damaged
        self._size = array.chunks[0]
        self._chunk, self._held = -1, np.empty((0, *array.shape[1:]))

    def read(self, start: int, stop: int) -> NDArray[np.float64]:
        found = [np.empty((0, *self._array.shape[1:]))]
        while start < stop:
            chunk, row = divmod(start, self._size)
            if chunk != self._chunk:
                self._held, self._chunk = self._read_chunk(chunk), chunk
            found.append(self._held[row : row + stop - start])
            start += len(found[-1])
        return np.concatenate(found)

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Rows in any order, each chunk read once."""
        found = np.empty((len(rows), *self._held.shape[1:]))
        chunks = rows // self._size
        for chunk in np.unique(chunks).tolist():
            own = np.flatnonzero(chunks == chunk)
            first, last = int(rows[own].min()), int(rows[own].max()) + 1
            found[own] = self.read(first, last)[rows[own] - first]
        return found

    def _read_chunk(self, chunk: int) -> NDArray[np.float64]:
        try:
            rows = self._array[chunk * self._size : (chunk + 1) * self._size]
        except (OSError, ValueError) as error:
            raise self._damaged(error) from error
        return np.asarray(rows, np.float64)
