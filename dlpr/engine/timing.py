"""How long a descriptor takes for an environment: it is tried on a few."""

from __future__ import annotations

import time

import numpy as np

from dlpr.core.models import Identity
from dlpr.descriptors import Descriptor, Soap
from dlpr.descriptors.gradients import derivative_rows, has_stress
from dlpr.structures.frames import Piece
from dlpr.structures.parse import Record

SAMPLED_ATOMS = 512


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
    calculator: Soap, sample: list[Record], *, forces: bool, stress: bool
) -> float:
    """Time gradients on the smallest frame; per environment."""
    record = min(sample, key=lambda record: len(record.number))
    species = record.number.astype(np.uint8)
    piece = Piece(record.position, species, record.cell, record.pbc)
    identity = Identity(calculator.n_features, len(calculator.species))
    usable = {"forces": forces, "stress": stress and has_stress(piece)}
    start = time.process_time()
    if any(usable.values()):
        derivative_rows(calculator, piece, identity, **usable)
    return (time.process_time() - start) / len(species)
