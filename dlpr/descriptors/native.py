"""The one module that imports featomic: it judges hyperparameters, gives radial functions of
neighbours and gradients of spectra.
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
from dlpr.descriptors.gradient_batches import VOIGT, GradientBlock
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


class _Spectrum(NamedTuple):
    """A calculator of invariants, and how it names its blocks and columns."""

    calculator: Any
    neighbours: list[str]
    columns: list[str]


_SPECTRA = {
    "soap": _Spectrum(
        featomic.SoapPowerSpectrum, ["neighbor_1_type", "neighbor_2_type"], ["l", "n_1", "n_2"]
    ),
    "radial": _Spectrum(featomic.SoapRadialSpectrum, ["neighbor_type"], ["n"]),
}
"""By the kind of descriptor."""


class Place(NamedTuple):
    """Where the features have featomic's columns of some neighbour species."""

    columns: slice
    """Of the features."""
    labels: NDArray[np.int32]
    """(n_columns, n_names) as featomic numbers them: (l, n_1, n_2) or (n,)."""
    weight: Floats
    """(n_columns,) factor on featomic's values."""


def spectrum_gradients(
    kind: str,
    parameters: str,
    environments: Environments,
    places: Mapping[tuple[int, ...], Place],
    *,
    positions: bool,
    strain: bool,
) -> list[GradientBlock]:
    """Compute invariants and their gradients in one call of featomic.

    Parameters
    ----------
    kind
        Of the descriptor: "soap" or "radial".
    parameters
        JSON of its hyperparameters, which `channels` has accepted.
    environments
        Centres and their neighbours.
    places
        By the neighbour species of a block, a pair a <= b or one, the columns wanted; all blocks of
        one set of species, whether they occur here or not.
    positions, strain
        The gradients wanted.

    Returns
    -------
    list
        By species of the centres, then by those of the neighbours; what no centre sees is left
        out. Atoms that are moved are those of the environments.
    """
    centres = np.zeros((environments.n_centres, 2), np.int32)
    centres[:, 1] = np.arange(len(centres))
    wanted = metatensor.Labels(["system", "atom"], centres)
    try:
        result = _calculator(kind, parameters).compute(
            environments,
            gradients=["positions"] * positions + ["strain"] * strain,
            use_native_system=False,
            selected_samples=wanted,
            selected_properties=_selection(kind, parameters, places),
        )
    except featomic.FeatomicError as error:
        raise InputError(
            f"featomic cannot differentiate the features of {len(centres)} atom(s): {error}."
            " Check the distances between atoms."
        ) from None
    finally:
        environments.release()
        entries(wanted)
    blocks = []
    for (species, *neighbours), block in blocks_of(result):
        centre = entries(block.samples)[:, 1].astype(np.int64)
        columns, _, weight = places[tuple(neighbours)]
        moved, along, strained = np.zeros((0, 3), np.int64), np.zeros(0), np.zeros(0)
        if positions:
            gradient = block.gradient("positions")
            moved, along = entries(gradient.samples).astype(np.int64), np.asarray(gradient.values)
            along *= weight  # they take too much memory to be copied
        if strain:
            whole, (a, b) = np.asarray(block.gradient("strain").values), VOIGT
            strained = 0.5 * (whole[:, a, b] + whole[:, b, a])
            strained *= weight
        if len(centre):
            values = np.asarray(block.values) * weight
            row, atom = centre[moved[:, 0]], moved[:, 2]
            blocks.append(
                GradientBlock(species, columns, centre, values, row, atom, along, strained)
            )
    return blocks


def blocks_of(result: Any) -> Iterator[tuple[list[int], Any]]:
    """Keys of a TensorMap as plain numbers, and its blocks."""
    for index, key in enumerate(entries(result.keys).tolist()):
        yield key, result.block_by_id(index)


def _calculator(kind: str, parameters: str) -> Any:
    """Return this thread's calculator: building takes 0.1 s, and a calculator is not shareable."""
    calculators = _own.__dict__.setdefault("calculators", {})
    if (kind, parameters) not in calculators:
        made = _SPECTRA[kind].calculator(**json.loads(parameters))
        calculators[kind, parameters] = made
    return calculators[kind, parameters]


def _selection(kind: str, parameters: str, places: Mapping[tuple[int, ...], Place]) -> Any:
    """Return this thread's selection of columns, made once."""
    selections = _own.__dict__.setdefault("selections", {})
    at = (kind, parameters, tuple(places))
    if at not in selections:
        none = metatensor.Labels(["_"], np.zeros((0, 1), np.int32))
        keys, blocks = [], []
        for neighbours, place in places.items():
            properties = metatensor.Labels(_SPECTRA[kind].columns, place.labels)
            for centre in sorted({species for species, *_ in places}):
                keys.append((centre, *neighbours))
                values = np.zeros((0, len(place.labels)))
                blocks.append(metatensor.TensorBlock(values, none, [], properties))
        names = ["center_type", *_SPECTRA[kind].neighbours]
        labels = metatensor.Labels(names, np.array(keys, np.int32))
        selections[at] = metatensor.TensorMap(labels, blocks)
    return selections[at]


def entries(labels: Any) -> NDArray[np.int32]:
    """Copy the entries of labels and free them.

    metatensor-core 0.2.6 frees labels only if they have an attribute ``_labels``, which it has
    renamed: every Labels object, several per block and call here, would stay for ever.
    """
    entries: NDArray[np.int32] = np.array(labels.values, dtype=np.int32)
    if not hasattr(labels, "_labels"):
        labels._lib.mts_labels_free(labels.release())
    return entries
