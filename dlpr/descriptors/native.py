"""The one module that imports featomic and metatensor: calculators, systems, one compute call."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlpr.errors import InputError, JobError
from dlpr.structures.frames import Piece

# Both are only partly typed.
featomic: Any = import_module("featomic")
metatensor: Any = import_module("metatensor")

_log = logging.getLogger(__name__)
_own = threading.local()


def _forward_log(level: int, message: str) -> None:
    """Take featomic's messages from the root logger, where by default they reach the terminal.

    Its one warning of interest, overlapping atoms, is an error of ingest already.
    """
    _log.debug("featomic, level %d: %s", level, message)


class _System(featomic.systems.SystemBase):  # type: ignore[misc]
    """A periodic piece as featomic reads it; featomic finds the neighbours itself."""

    def __init__(self, piece: Piece) -> None:
        super().__init__()
        self._piece = piece

    def release(self) -> None:
        """Break the cycle of references that else keeps the piece until the garbage collector."""
        self._keepalive.clear()

    def size(self) -> int:
        return len(self._piece.species)

    def types(self) -> NDArray[np.int32]:
        return self._piece.species.astype(np.int32)

    def positions(self) -> NDArray[np.float64]:
        return self._piece.position

    def cell(self) -> NDArray[np.float64]:
        return self._piece.cell


@contextmanager
def _stderr_closed() -> Iterator[None]:
    """Keep backtraces of Rust panics off the terminal; featomic reports them as errors too."""
    saved = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


def _calculator(parameters: str) -> Any:
    """Return this thread's calculator: building takes 0.1 s, and a calculator is not shareable."""
    calculators = _own.__dict__.setdefault("calculators", {})
    if parameters not in calculators:
        featomic.set_logging_callback(_forward_log)
        calculators[parameters] = featomic.SoapPowerSpectrum(**json.loads(parameters))
    return calculators[parameters]


def radial_sizes(parameters: str) -> list[tuple[int, int]]:
    """Have featomic judge hyperparameters, and return its angular channels.

    Parameters
    ----------
    parameters
        JSON of the hyperparameters.

    Returns
    -------
    list
        Angular degree l and number of radial functions of each channel, ascending.

    Raises
    ------
    JobError
        With featomic's words where it refuses.
    """
    atom = Piece(np.zeros((1, 3)), np.ones(1, np.uint8), np.zeros((3, 3)), np.zeros(3, bool))
    try:
        with _stderr_closed():
            block = _calculator(parameters).compute(_System(atom)).block(0)
    except (featomic.FeatomicError, ValueError) as error:
        raise JobError(
            f"featomic refuses the hyperparameters in descriptor.soap: {error}."
            " Change them in the job file."
        ) from None
    values = np.asarray(block.properties.values)
    return [
        (int(l_), int(values[values[:, 0] == l_, 1].max()) + 1) for l_ in np.unique(values[:, 0])
    ]


def _rows(labels: Any) -> NDArray[np.int32]:
    """Copy the entries of labels and free them.

    metatensor-core 0.2.6 frees labels only if they have an attribute ``_labels``, which it has
    renamed: every Labels object, one per block and call here, would stay for ever.
    """
    rows: NDArray[np.int32] = np.array(labels.values, dtype=np.int32)
    if not hasattr(labels, "_labels"):
        labels._lib.mts_labels_free(labels.release())
    return rows


def _selection(parameters: str, properties: Mapping[tuple[int, int], NDArray[np.int32]]) -> Any:
    """Return this thread's selection of columns, made once."""
    selections = _own.__dict__.setdefault("selections", {})
    key = (parameters, tuple(properties))
    if key not in selections:
        none = metatensor.Labels(["_"], np.zeros((0, 1), np.int32))
        keys, blocks = [], []
        for (a, b), rows in properties.items():
            columns = metatensor.Labels(["l", "n_1", "n_2"], rows)
            for centre in sorted({species for species, _ in properties}):
                keys.append((centre, a, b))
                blocks.append(metatensor.TensorBlock(np.zeros((0, len(rows))), none, [], columns))
        names = ["center_type", "neighbor_1_type", "neighbor_2_type"]
        labels = metatensor.Labels(names, np.array(keys, np.int32))
        selections[key] = metatensor.TensorMap(labels, blocks)
    return selections[key]


def _samples(pieces: Sequence[Piece]) -> Any:
    """Return the centres as featomic selects them; None: all atoms of all pieces."""
    if all(piece.centre is None for piece in pieces):
        return None
    samples = [
        np.stack([np.full_like(centre, index), centre], axis=1)
        for index, piece in enumerate(pieces)
        for centre in [np.arange(len(piece.species)) if piece.centre is None else piece.centre]
    ]
    return metatensor.Labels(["system", "atom"], np.concatenate(samples).astype(np.int32))


def compute_blocks(
    parameters: str,
    pieces: Sequence[Piece],
    properties: Mapping[tuple[int, int], NDArray[np.int32]],
) -> Iterator[tuple[tuple[int, int, int], NDArray[np.int32], NDArray[np.float64]]]:
    """Compute the power spectrum of periodic pieces in one call of featomic.

    Parameters
    ----------
    parameters
        JSON of the hyperparameters.
    pieces
        Periodic in all directions, each with at least one centre.
    properties
        For each pair of neighbour species a <= b the columns (l, n1, n2) wanted; all pairs of one
        set of species, whether they occur in these pieces or not.

    Yields
    ------
    key
        Species of the centre and of the two neighbours.
    samples
        (n_rows, 2) index of the piece and of the atom.
    values
        (n_rows, n_properties); a view that lives as long as the generator's step.
    """
    systems = [_System(piece) for piece in pieces]
    wanted = _samples(pieces)
    try:
        result = _calculator(parameters).compute(
            systems,
            selected_samples=wanted,
            selected_properties=_selection(parameters, properties),
        )
    except featomic.FeatomicError as error:
        raise InputError(
            f"featomic cannot describe {len(pieces)} structure(s) with"
            f" {sum(len(p.species) for p in pieces)} atoms: {error}."
            " Check their cells and positions."
        ) from None
    finally:
        for system in systems:
            system.release()
        if wanted is not None:
            _rows(wanted)
    for index, (centre, first, second) in enumerate(_rows(result.keys).tolist()):
        block = result.block_by_id(index)
        yield (centre, first, second), _rows(block.samples), np.asarray(block.values)
