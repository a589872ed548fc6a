"""Radial functions of neighbours: featomic's own splines, evaluated for many distances at once."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from dlpr.descriptors.native import RadialFunctions
from dlpr.errors import JobError

Floats = NDArray[np.float64]

_INTERVALS = 10
"""featomic's splines begin with these, and halve all until they are accurate."""
_MOST_INTERVALS = 10_000
"""featomic's own limit"""
_AGREEMENT = 1e-13
"""Largest deviation from featomic, as a part of the largest value; 1e-15 is measured."""


class RadialTable:
    """featomic's radial functions as the cubics that they are between its knots.

    featomic tabulates R_nl(r) and interpolates by polynomials of degree 3. Four of its values in
    each interval therefore give the same functions up to rounding, whatever basis and density they
    come from. Intervals are halved until featomic's values in between are met.

    Parameters
    ----------
    parameters
        JSON of hyperparameters that featomic has accepted.

    Raises
    ------
    JobError
        If featomic's values are not met.
    """

    def __init__(self, parameters: str) -> None:
        hypers = json.loads(parameters)
        self._cutoff = float(hypers["cutoff"]["radius"])
        self._smoothing = hypers["cutoff"]["smoothing"]
        self._scaling = hypers["density"].get("scaling")
        evaluate = RadialFunctions(parameters)
        self._nodes = _first_nodes(hypers["basis"], self._cutoff)
        self._values = evaluate(self._nodes)
        while True:
            middle = (self._nodes[:-1] + self._nodes[1:]) / 2.0
            exact = evaluate(middle)
            found = self.functions(*self._cubics(middle))
            if all(
                np.abs(f - e).max() <= _AGREEMENT * np.abs(e).max()
                for f, e in zip(found, exact, strict=True)
            ):
                break
            if len(middle) > 3 * _MOST_INTERVALS:
                raise JobError(
                    f"the radial functions of descriptor.soap.basis are not met to {_AGREEMENT:g}"
                    f" with {len(self._nodes)} values. Set spline_accuracy to 1.0e-8 or more."
                )
            self._nodes = _between(self._nodes, middle)
            self._values = [_between(v, e) for v, e in zip(self._values, exact, strict=True)]

    def _cubics(self, distance: Floats) -> tuple[Floats, NDArray[np.int32]]:
        """Nodes around each distance and their weights, both (n, 4): Lagrange's polynomials."""
        knots = self._nodes[::3]
        interval = np.searchsorted(knots[1:-1], distance, side="right")
        low = knots[interval]
        t = 3.0 * (distance - low) / (knots[interval + 1] - low)
        a, b, c = t - 1.0, t - 2.0, t - 3.0
        weight = np.stack([a * b * c / -6.0, t * b * c / 2.0, t * a * c / -2.0, t * a * b / 6.0], 1)
        return weight, np.asarray(3 * interval[:, None] + np.arange(4), np.int32)

    def cubics(self, distance: Floats) -> tuple[Floats, NDArray[np.int32]]:
        """Where to find the radial functions, times cutoff function and scaling of the density.

        Parameters
        ----------
        distance : (n,)
            Å, below the cutoff.

        Returns
        -------
        weight, node : (n, 4)
            For `functions`.
        """
        weight, node = self._cubics(distance)
        weight *= self._envelope(distance)[:, None]
        return weight, node

    def functions(self, weight: Floats, node: NDArray[np.int32]) -> Iterator[Floats]:
        """Evaluate one angular channel after the other, (n, n_radial), from some `cubics`."""
        start = np.arange(0, weight.size + 1, 4, dtype=np.int32)
        shape = (len(weight), len(self._values[0]))
        matrix = csr_array((weight.ravel(), node.ravel(), start), shape=shape)
        for table in self._values:
            yield np.asarray(matrix @ table)

    def _envelope(self, distance: Floats) -> Floats:
        """Cutoff function and scaling, with the C library's functions: NumPy's differ by CPU."""
        envelope = np.ones_like(distance)
        if self._smoothing["type"] == "ShiftedCosine":
            width = self._smoothing["width"]
            outer = np.flatnonzero(distance > self._cutoff - width)
            phase = math.pi * (distance[outer] - (self._cutoff - width)) / width
            envelope[outer] = 0.5 * (1.0 + np.array([math.cos(x) for x in phase.tolist()]))
        if self._scaling is not None:
            rate, exponent = self._scaling["rate"], self._scaling["exponent"]
            part = (distance / self._scaling["scale"]).tolist()
            envelope *= rate / (rate + np.array([math.pow(x, exponent) for x in part]))
        return envelope


def _first_nodes(basis: dict[str, Any], cutoff: float) -> Floats:
    """Knots featomic starts with, those of tabulated functions, and two nodes in each interval."""
    radial = list(basis["by_angular"].values()) if "by_angular" in basis else [basis["radial"]]
    points = [p["position"] for r in radial for p in r.get("points", ()) if p["position"] < cutoff]
    knots = np.unique([*np.linspace(0.0, cutoff, _INTERVALS + 1), *points])
    third = np.diff(knots)[:, None] / 3.0 * np.arange(3)
    return np.append((knots[:-1, None] + third).ravel(), cutoff * (1.0 - 2.0**-51))


def _between(values: Floats, middle: Floats) -> Floats:
    """Values with new ones between each two of them."""
    merged = np.empty((len(values) + len(middle), *values.shape[1:]))
    merged[::2], merged[1::2] = values, middle
    return merged


@lru_cache(maxsize=16)
def radial_table(parameters: str) -> RadialTable:
    """The table of some hyperparameters, made once per process: it takes up to 0.4 s."""
    return RadialTable(parameters)
