"""The one module that imports featomic: it judges hyperparameters and gives radial functions."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlpr.descriptors.columns import Channels
from dlpr.errors import JobError

# Both are only partly typed.
featomic: Any = import_module("featomic")
metatensor: Any = import_module("metatensor")

_log = logging.getLogger(__name__)

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


@lru_cache(maxsize=64)
def channels(parameters: str) -> Channels:
    """Have featomic judge hyperparameters, and return its angular channels.

    Parameters
    ----------
    parameters
        JSON of the hyperparameters.

    Raises
    ------
    JobError
        With featomic's words where it refuses.
    """
    hypers = json.loads(parameters)
    box = np.full(3, 4.0 * hypers["cutoff"]["radius"])
    featomic.set_logging_callback(_forward_log)
    try:
        with _stderr_closed():
            alone = featomic.SphericalExpansion(**hypers).compute(_System(np.zeros((1, 3)), box))
    except (featomic.FeatomicError, ValueError) as error:
        raise JobError(
            f"featomic refuses the hyperparameters in descriptor.soap: {error}."
            " Change them in the job file."
        ) from None
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
