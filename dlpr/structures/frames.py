"""Structures as plain arrays: what ingest writes, what a descriptor reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Frames:
    """A run of structures, ragged over environments: the content of one part of a structure store.

    Environments of structure ``s`` are rows ``structure_offset[s]:structure_offset[s + 1]``.
    Lengths in Å, energies in eV, forces in eV/Å, stress in eV/Å³ (tension positive, as in ASE).
    """

    position: NDArray[np.float64]
    """(n_environments, 3)"""
    species: NDArray[np.uint8]
    """(n_environments,) atomic numbers"""
    source_atom: NDArray[np.int64]
    """(n_environments,) index of the atom in its source frame (frames sorted by space differ)"""
    force: NDArray[np.float64]
    """(n_environments, 3), NaN where absent"""
    structure_offset: NDArray[np.int64]
    """(n_structures + 1,)"""
    cell: NDArray[np.float64]
    """(n_structures, 3, 3), rows are the cell vectors as read"""
    pbc: NDArray[np.bool_]
    """(n_structures, 3)"""
    energy: NDArray[np.float64]
    """(n_structures,) total, NaN where absent"""
    stress: NDArray[np.float64]
    """(n_structures, 3, 3), NaN where absent"""
    weight: NDArray[np.float64] | None
    """(n_structures,) of all their rows in a loss, NaN where absent; None: not asked for"""
    group: NDArray[np.int32]
    """(n_structures,) index into group_names"""
    group_names: tuple[str, ...]
    source_file: NDArray[np.int32]
    """(n_structures,) index into source_files"""
    source_files: tuple[str, ...]
    source_frame: NDArray[np.int64]
    """(n_structures,) index of the frame in its source file"""
    bin_shape: NDArray[np.int32]
    """(n_structures, 3) bins along each axis of bin_box; zeros for a frame kept in source order"""
    bin_box: NDArray[np.float64]
    """(n_structures, 3, 3) rows span the box cut into bins (periodic axes: the cell vector)"""
    bin_origin: NDArray[np.float64]
    """(n_structures, 3) corner of that box"""
    bin_offset: NDArray[np.int64]
    """(n_structures + 1,) rows of bin_range that belong to each structure"""
    bin_range: NDArray[np.int64]
    """(n_bins, 2) start and stop of each bin's atoms within its structure, bins in C order"""


@dataclass(frozen=True)
class Piece:
    """Atoms handed to a descriptor at once, and those among them whose environments are wanted."""

    position: NDArray[np.float64]
    """(n_atoms, 3) Å"""
    species: NDArray[np.uint8]
    """(n_atoms,) atomic numbers"""
    cell: NDArray[np.float64]
    """(3, 3)"""
    pbc: NDArray[np.bool_]
    """(3,)"""
    centre: NDArray[np.int64] | None = None
    """(n_centres,) rows of position, in the order the features are wanted; None: all atoms"""
    row: NDArray[np.int64] | None = None
    """(n_centres,) numbers of the centres among all environments of the set in source order; None:
    not asked for"""
    atom: NDArray[np.int64] | None = None
    """(n_atoms,) the atom of the source frame that each is or is an image of; None: all in order"""
