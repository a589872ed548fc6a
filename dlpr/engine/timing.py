"""How long a descriptor takes for an environment: it is tried on a few."""

from __future__ import annotations

import time

import numpy as np

from dlpr.core.models import Identity
from dlpr.descriptors import Descriptor
from dlpr.descriptors.gradients import derivative_rows, has_stress
from dlpr.engine.memory import DENSITY, RAGGED
from dlpr.engine.sizes import SetSize
from dlpr.stages.force_tasks import TASK_ATOMS
from dlpr.structures.frames import Piece
from dlpr.structures.parse import Record
from dlpr.structures.spatial import SORTED_FRAME_ATOMS

SAMPLED_ATOMS = 512
SMALL_ATOMS = 64
"""Of a frame on which gradients are timed."""


def environment_seconds(calculator: Descriptor, sample: list[Record]) -> float:
    """Time the descriptor on a few environments."""
    pieces, count = [], 0
    for record in () if calculator.reads_rows else sample:
        if count < SAMPLED_ATOMS and len(record.number) <= SAMPLED_ATOMS:
            species = record.number.astype(np.uint8)
            pieces.append(Piece(record.position, species, record.cell, record.pbc))
            count += len(species)
    if not pieces:
        return 1e-3
    start = time.process_time()
    calculator.compute(pieces)
    return (time.process_time() - start) / count


def gradient_seconds(
    calculator: Descriptor, sample: list[Record], size: SetSize, *, forces: bool, stress: bool
) -> float:
    """Time gradients on a small frame; per environment of a set of some size.

    Runs of the atoms of large frames compute the centres around them too. Where the cutoff is
    infinite, every atom moves every environment, by sums over waves as many as there are atoms.
    """
    few = [record for record in sample if len(record.number) <= SMALL_ATOMS]
    if few:
        record = max(few, key=lambda record: len(record.number))
    else:
        record = min(sample, key=lambda record: len(record.number))
    species = record.number.astype(np.uint8)
    piece = Piece(record.position, species, record.cell, record.pbc)
    identity = Identity(calculator.n_features, len(calculator.species))
    usable = {"forces": forces, "stress": stress and has_stress(piece)}
    start = time.process_time()
    if any(usable.values()):
        derivative_rows(calculator, piece, identity, **usable)
    seconds = (time.process_time() - start) / len(species)
    if not np.isfinite(calculator.cutoff):
        return seconds * (size.n_environments / size.n_structures / len(species)) ** 2
    if size.largest_frame > SORTED_FRAME_ATOMS and forces:
        edge = (TASK_ATOMS / max(size.density, DENSITY)) ** (1 / 3)
        seconds *= RAGGED * (1 + 2 * calculator.cutoff / edge) ** 3
    return seconds
