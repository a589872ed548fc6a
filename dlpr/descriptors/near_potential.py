"""What one near atom adds to LODE coefficients: to take it off again.

An atom at the distance r along z has the coefficients ``f_nl(r) Y_lm``, by the theorem of Funk and
Hecke ``f_nl(r) = 2 pi int r'^2 R_n(r') int P_l(u) g(|r' - r|) du dr'``, where g is the smeared
power law and R_n featomic's orthonormal Gaussian type orbitals. Sums without BLAS and functions of
the C library: bits do not depend on the machine's kernels.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammainc

Floats = NDArray[np.float64]

_SPACING = 0.01
"""Å between the points of the tables, between which featomic takes cubics."""
_TAIL = 8.5
"""Widths of an orbital beyond its maximum at which it is 1e-15 of that."""

_NOTHING = 1e-30
"""Overlaps below it are taken for 0."""


def near_tables(
    density: dict[str, Any], orbitals: dict[int, tuple[int, float]], cutoff: float
) -> dict[str, dict[str, Any]]:
    """Tabulate f_nl(r) as featomic's ``Tabulated`` radial bases.

    Parameters
    ----------
    density
        ``smearing`` in Å and ``exponent`` of a ``SmearedPowerLaw``.
    orbitals
        By angular degree l: number of orbitals, and their radius in Å.
    cutoff
        Longest distance in Å.

    Returns
    -------
    dict
        A radial basis for each l, to be used with a ``DiracDelta`` density.
    """
    smearing, exponent = density["smearing"], density["exponent"]
    points = np.linspace(0.0, cutoff, 1 + math.ceil(cutoff / _SPACING))
    found = {}
    for shape in sorted(set(orbitals.values())):
        degrees = [l_ for l_, own in orbitals.items() if own == shape]
        values, slopes = _integrals(smearing, exponent, *shape, degrees, points)
        for l_, value, slope in zip(degrees, values, slopes, strict=True):
            table = zip(points.tolist(), value.tolist(), slope.tolist(), strict=True)
            entries = [{"position": r, "values": v, "derivatives": d} for r, v, d in table]
            found[str(l_)] = {"type": "Tabulated", "points": entries}
    return found


def _integrals(
    smearing: float, exponent: int, size: int, radius: float, degrees: list[int], points: Floats
) -> tuple[Floats, Floats]:
    """f_nl and its derivative at some distances, (n_degrees, n_points, size) each."""
    width = [radius * max(1.0, math.sqrt(n)) / size for n in range(size)]
    end = max(s * (math.sqrt(n) + _TAIL) for n, s in enumerate(width))
    finest = min(smearing, width[0])
    r, weight_r = _clenshaw_curtis(0.0, end, 40 + math.ceil(10.0 * end / finest))
    u, weight_u = _clenshaw_curtis(-1.0, 1.0, 40 + math.ceil(10.0 * float(points[-1]) / smearing))
    orbital = _orbitals(r, width) * (2.0 * np.pi * weight_r * r * r)
    angular = _legendre(u, degrees) * weight_u
    # Polynomials through Chebyshev's nodes, which also give the derivative.
    half, scale = float(points[-1]) / 2.0, math.hypot(smearing, width[0])
    n_nodes = 24 + math.ceil(10.0 * half / scale)
    angle = [math.pi * (k + 0.5) / n_nodes for k in range(n_nodes)]
    at_nodes = np.empty((n_nodes, len(degrees), size))
    for k, a in enumerate(angle):
        distance = half * (1.0 + math.cos(a))
        square = r[:, None] ** 2 + distance**2 - 2.0 * distance * r[:, None] * u
        potential = _potential(np.maximum(square, 0.0), smearing, exponent)
        over_u = np.einsum("ru,lu->lr", potential, angular)
        at_nodes[k] = np.einsum("lr,nr->ln", over_u, orbital)
    cosines = np.array([[math.cos(j * a) for a in angle] for j in range(n_nodes)])
    series = np.einsum("jk,kln->jln", cosines, at_nodes) * (2.0 / n_nodes)
    series[0] /= 2.0
    first, second = _chebyshev(points / half - 1.0, n_nodes)
    values = np.einsum("jp,jln->lpn", first, series)
    order = np.arange(1, n_nodes)[:, None, None]
    slopes = np.einsum("jp,jln->lpn", second[:-1], order * series[1:]) / half
    return values, slopes


def _potential(square: Floats, smearing: float, exponent: int) -> Floats:
    """featomic's smeared 1/r^p of squared distances; a Gaussian of norm 1 for p = 0."""
    x = square / (2.0 * smearing**2)
    if exponent == 0:
        decay = np.array([math.exp(-value) for value in x.ravel().tolist()]).reshape(x.shape)
        gaussian: Floats = decay / (math.pi * smearing**2) ** 0.75
        return gaussian
    half = exponent / 2.0
    small = x < 1e-10
    x = np.where(small, 1.0, x)
    ratio = gammainc(half, x) / _power(np.sqrt(x), exponent)
    at_zero = 1.0 / math.gamma(half + 1.0)
    found: Floats = np.where(small, at_zero, ratio) / (2.0 * smearing**2) ** half
    return found


def _power(x: Floats, n: int) -> Floats:
    """x^n by products: NumPy's power differs by CPU."""
    found = np.ones_like(x)
    for _ in range(n):
        found *= x
    return found


def _orbitals(r: Floats, width: list[float]) -> Floats:
    """Gaussian type orbitals, orthonormal by the inverse root of their overlaps, (n, n_points)."""
    size = len(width)
    overlap = np.empty((size, size))
    for n in range(size):
        for m in range(size):
            power = (3 + n + m) / 2.0
            decay = (1.0 / width[n] ** 2 + 1.0 / width[m] ** 2) / 2.0
            overlap[n, m] = math.gamma(power) / (2.0 * decay**power)
    norm = np.sqrt(np.diag(overlap))
    primitive = np.empty((size, len(r)))
    for n, s in enumerate(width):
        decay_r = [math.exp(-0.5 * (x / s) ** 2) for x in r.tolist()]
        primitive[n] = _power(r, n) * np.array(decay_r) / norm[n]
    found: Floats = np.einsum("nm,mr->nr", _inverse_root(overlap / np.outer(norm, norm)), primitive)
    return found


def _inverse_root(matrix: Floats) -> Floats:
    """Inverse square root of a small positive definite matrix by Jacobi's rotations."""
    a, vectors = matrix.copy(), np.eye(len(matrix))
    for _ in range(30):
        for p in range(len(a)):
            for q in range(p + 1, len(a)):
                if abs(a[p, q]) < _NOTHING:
                    continue
                theta = (a[q, q] - a[p, p]) / (2.0 * a[p, q])
                t = math.copysign(1.0, theta) / (abs(theta) + math.hypot(1.0, theta))
                c = 1.0 / math.hypot(1.0, t)
                s = t * c
                a[:, p], a[:, q] = c * a[:, p] - s * a[:, q], s * a[:, p] + c * a[:, q]
                a[p], a[q] = c * a[p] - s * a[q], s * a[p] + c * a[q]
                vectors[:, p], vectors[:, q] = (
                    c * vectors[:, p] - s * vectors[:, q],
                    s * vectors[:, p] + c * vectors[:, q],
                )
    root = np.sqrt(np.diag(a))
    found: Floats = np.einsum("ik,jk->ij", vectors / root, vectors)
    return found


def _legendre(u: Floats, degrees: list[int]) -> Floats:
    """Legendre polynomials, (n_degrees, n_points)."""
    found = [np.ones_like(u), u]
    for l_ in range(1, max(degrees)):
        found.append(((2 * l_ + 1) * u * found[l_] - l_ * found[l_ - 1]) / (l_ + 1))
    return np.array([found[l_] for l_ in degrees])


def _chebyshev(x: Floats, n: int) -> tuple[Floats, Floats]:
    """Chebyshev's polynomials of the first and second kind of degrees below n, (n, n_points)."""
    first, second = [np.ones_like(x), x], [np.ones_like(x), 2.0 * x]
    for _ in range(2, n):
        first.append(2.0 * x * first[-1] - first[-2])
        second.append(2.0 * x * second[-1] - second[-2])
    return np.array(first), np.array(second)


def _clenshaw_curtis(start: float, stop: float, n: int) -> tuple[Floats, Floats]:
    """Nodes and weights of an integral from start to stop, n + 1 of each with n made even."""
    n += n % 2
    cosine = [math.cos(math.pi * k / n) for k in range(2 * n)]
    node, weight = np.array(cosine[: n + 1]), np.empty(n + 1)
    for k in range(n + 1):
        sum_ = sum(
            (1.0 if 2 * j == n else 2.0) / (4 * j * j - 1) * cosine[2 * j * k % (2 * n)]
            for j in range(1, n // 2 + 1)
        )
        weight[k] = (1.0 - sum_) * (1.0 if k in (0, n) else 2.0) / n
    half = (stop - start) / 2.0
    return start + half * (1.0 + node), half * weight
