"""The one module that imports featomic: it judges hyperparameters, gives radial functions of
neighbours and gradients of the power spectrum.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dlpr.descriptors.columns import Channels
from dlpr.errors import InputError, JobError

# Both are only partly typed.
featomic: Any = import_module("featomic")
metatensor: Any = import_module("metatensor")

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

PAIR = np.dtype(import_module("featomic._c_api").featomic_pair_t)
"""A neighbour of a centre: first, second, distance, vector, cell_shift_indices (not used)."""

_log = logging.getLogger(__name__)
_own = threading.local()

_DIMERS = 250
"""Distances per call of featomic."""


def _forward_log(level: int, message: str) -> None:
    """Take featomic's messages from the root logger, where by default they reach the terminal."""
    _log.debug("featomic, level %d: %s", level, message)


class _System(featomic.systems.SystemBase):  # type: ignore[misc]
    """Carbon atoms in a periodic box, as featomic reads them."""

    def __init__(self, position: NDArray[np.float64], box: NDArray[np.float64]) -> None:
        super().__init__()
        self._position, self._box = position, box

    def size(self) -> int:
        return len(self._position)

    def types(self) -> NDArray[np.int32]:
        return np.full(len(self._position), 6, np.int32)

    def positions(self) -> NDArray[np.float64]:
        return self._position

    def cell(self) -> NDArray[np.float64]:
        return np.diag(self._box)


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


@contextmanager
def judging(kind: str) -> Iterator[None]:
    """Turn featomic's refusals into messages about a section of the job."""
    featomic.set_logging_callback(_forward_log)
    try:
        with _stderr_closed():
            yield
    except (featomic.FeatomicError, ValueError) as error:
        raise JobError(
            f"featomic refuses the hyperparameters in descriptor.{kind}: {error}."
            " Change them in the job file."
        ) from None


@lru_cache(maxsize=64)
def channels(parameters: str, kind: str) -> Channels:
    """Have featomic judge hyperparameters, and return its angular channels.

    Parameters
    ----------
    parameters
        JSON of the hyperparameters of a spherical expansion.
    kind
        Section of the job that has them, below ``descriptor``.

    Raises
    ------
    JobError
        With featomic's words where it refuses.
    """
    hypers = json.loads(parameters)
    box = np.full(3, 4.0 * hypers["cutoff"]["radius"])
    with judging(kind):
        alone = featomic.SphericalExpansion(**hypers).compute(_System(np.zeros((1, 3)), box))
    found = {int(key["o3_lambda"]): np.array(block.values)[0] for key, block in alone.items()}
    radial = tuple((l_, found[l_].shape[1]) for l_ in sorted(found))
    return Channels(radial, found[0][0] if 0 in found else np.zeros(0))


class RadialFunctions:
    """featomic's splined radial functions R_nl(r), without cutoff function and scaling.

    Parameters
    ----------
    parameters
        JSON of hyperparameters that `channels` has accepted.
    """

    def __init__(self, parameters: str) -> None:
        hypers = json.loads(parameters)
        self._reach = 4.0 * hypers["cutoff"]["radius"]
        hypers["cutoff"]["smoothing"] = {"type": "Step"}
        hypers["density"] |= {"center_atom_weight": 0.0, "scaling": None}
        self._calculator = featomic.SphericalExpansion(**hypers)

    def __call__(self, distance: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        """Evaluate at distances (n,) in Å, below the cutoff: (n, n_radial) of each channel."""
        parts = [
            self._evaluate(distance[start : start + _DIMERS])
            for start in range(0, len(distance), _DIMERS)
        ]
        return [np.concatenate(channel) for channel in zip(*parts, strict=True)]

    def _evaluate(self, distance: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        """One neighbour on the z axis has R_nl(r) Y_l0, Y_l0^2 = (2 l + 1) / 4 pi."""
        n = len(distance)
        position = np.zeros((n, 2, 3))
        position[:, :, 0] = self._reach * np.arange(n)[:, None]
        position[:, 1, 2] = distance
        box = self._reach * np.array([n, 1.0, 1.0])
        centres = np.arange(0, 2 * n, 2, dtype=np.int32)[:, None]
        dimers = self._calculator.compute(
            _System(position.reshape(-1, 3), box),
            selected_samples=metatensor.Labels(["atom"], centres),
        )
        found = {int(key["o3_lambda"]): np.asarray(block.values) for key, block in dimers.items()}
        return [found[l_][:, l_] / np.sqrt((2 * l_ + 1) / (4.0 * np.pi)) for l_ in sorted(found)]


class Environments(featomic.systems.SystemBase):  # type: ignore[misc]
    """Centres and the atoms they see, with the neighbours found already.

    The atoms seen are further atoms, also where they are centres: no pair has two centres, and
    none an atom and its own image.

    Parameters
    ----------
    species : (n_centres + n_seen,)
        Atomic numbers.
    count : (n_centres,)
        Neighbours of each centre. None are given of the atoms seen: nobody asks for theirs.
    pairs : (n_neighbours,)
        Of dtype `PAIR`, by centre.
    """

    def __init__(self, species: NDArray[np.int32], count: Integers, pairs: NDArray[Any]) -> None:
        super().__init__()
        self._species, self._pairs = species, pairs
        self.n_centres = len(count)
        self._count = np.zeros(len(species), np.int64)
        self._count[: self.n_centres] = count

    def _as_featomic_system_t(self) -> Any:
        """Answer from memory: featomic asks some 200 times for each centre.

        The answers of the base class, which convert arrays each time, take a quarter of the time.
        """
        struct = super()._as_featomic_system_t()
        size, n_pairs = len(self._species), len(self._pairs)
        species, pairs = self._species.ctypes.data, self._pairs.ctypes.data
        count = self._count.tolist()
        start = (pairs + PAIR.itemsize * (np.cumsum(self._count) - self._count)).tolist()

        def set_size(_: int, found: Any) -> int:
            found[0] = size
            return 0

        def set_types(_: int, data: Any) -> int:
            data[0] = species
            return 0

        def set_pairs(_: int, data: Any, found: Any) -> int:
            data[0], found[0] = pairs, n_pairs
            return 0

        def set_pairs_containing(_: int, atom: int, data: Any, found: Any) -> int:
            data[0], found[0] = start[atom], count[atom]
            return 0

        struct.size = type(struct.size)(set_size)
        struct.types = type(struct.types)(set_types)
        struct.compute_neighbors = type(struct.compute_neighbors)(lambda _, cutoff: 0)
        struct.pairs = type(struct.pairs)(set_pairs)
        struct.pairs_containing = type(struct.pairs_containing)(set_pairs_containing)
        return struct

    def release(self) -> None:
        """Break the cycle of references that else keeps the pairs until the garbage collector."""
        self._keepalive.clear()


class GradientBlock(NamedTuple):
    """What centres of one species see of one pair of neighbour species, in featomic's norm."""

    species: int
    """Atomic number of the centres."""
    neighbours: tuple[int, int]
    """Atomic numbers of the pair."""
    centre: NDArray[np.int32]
    """(n_centres,) ascending"""
    values: Floats
    """(n_centres, n_columns)"""
    gradient_centre: NDArray[np.int32]
    """(n_gradients,) the centre whose features are differentiated, ascending"""
    gradient_atom: NDArray[np.int32]
    """(n_gradients,) the atom that is moved, ascending for each centre"""
    positions: Floats
    """(n_gradients, 3, n_columns) 1/Å; empty if not asked for"""
    strain: Floats
    """(n_centres, 3, 3, n_columns); empty if not asked for"""


def power_spectrum_gradients(
    parameters: str,
    environments: Environments,
    columns: Mapping[tuple[int, int], NDArray[np.int32]],
    *,
    positions: bool,
    strain: bool,
) -> list[GradientBlock]:
    """Compute the power spectrum and its gradients in one call of featomic.

    Parameters
    ----------
    parameters
        JSON of hyperparameters that `channels` has accepted.
    environments
        Centres and their neighbours.
    columns
        For each pair of neighbour species a <= b the columns (l, n_1, n_2) wanted; all pairs of one
        set of species, whether they occur here or not.
    positions, strain
        The gradients wanted.

    Returns
    -------
    list
        By species of the centres, then by those of the neighbours; pairs that no centre sees are
        left out.
    """
    centres = np.zeros((environments.n_centres, 2), np.int32)
    centres[:, 1] = np.arange(len(centres))
    wanted = metatensor.Labels(["system", "atom"], centres)
    try:
        result = _calculator(parameters).compute(
            environments,
            gradients=["positions"] * positions + ["strain"] * strain,
            use_native_system=False,
            selected_samples=wanted,
            selected_properties=_selection(parameters, columns),
        )
    except featomic.FeatomicError as error:
        raise InputError(
            f"featomic cannot differentiate the features of {len(centres)} atom(s): {error}."
            " Check the distances between atoms."
        ) from None
    finally:
        environments.release()
        _entries(wanted)
    blocks = []
    for index, (species, first, second) in enumerate(_entries(result.keys).tolist()):
        block = result.block_by_id(index)
        centre = _entries(block.samples)[:, 1]
        moved, along, strained = np.zeros((0, 3), np.int32), np.zeros(0), np.zeros(0)
        if positions:
            gradient = block.gradient("positions")
            moved, along = _entries(gradient.samples), np.asarray(gradient.values)
        if strain:
            strained = np.asarray(block.gradient("strain").values)
        if len(centre):
            blocks.append(
                GradientBlock(
                    species,
                    (first, second),
                    centre,
                    np.asarray(block.values),
                    centre[moved[:, 0]],
                    moved[:, 2],
                    along,
                    strained,
                )
            )
    return blocks


def _calculator(parameters: str) -> Any:
    """Return this thread's calculator: building takes 0.1 s, and a calculator is not shareable."""
    calculators = _own.__dict__.setdefault("calculators", {})
    if parameters not in calculators:
        calculators[parameters] = featomic.SoapPowerSpectrum(**json.loads(parameters))
    return calculators[parameters]


def _selection(parameters: str, columns: Mapping[tuple[int, int], NDArray[np.int32]]) -> Any:
    """Return this thread's selection of columns, made once."""
    selections = _own.__dict__.setdefault("selections", {})
    key = (parameters, tuple(columns))
    if key not in selections:
        none = metatensor.Labels(["_"], np.zeros((0, 1), np.int32))
        keys, blocks = [], []
        for (a, b), rows in columns.items():
            properties = metatensor.Labels(["l", "n_1", "n_2"], rows)
            for centre in sorted({species for species, _ in columns}):
                keys.append((centre, a, b))
                blocks.append(
                    metatensor.TensorBlock(np.zeros((0, len(rows))), none, [], properties)
                )
        names = ["center_type", "neighbor_1_type", "neighbor_2_type"]
        labels = metatensor.Labels(names, np.array(keys, np.int32))
        selections[key] = metatensor.TensorMap(labels, blocks)
    return selections[key]


def _entries(labels: Any) -> NDArray[np.int32]:
    """Copy the entries of labels and free them.

    metatensor-core 0.2.6 frees labels only if they have an attribute ``_labels``, which it has
    renamed: every Labels object, several per block and call here, would stay for ever.
    """
    entries: NDArray[np.int32] = np.array(labels.values, dtype=np.int32)
    if not hasattr(labels, "_labels"):
        labels._lib.mts_labels_free(labels.release())
    return entries
