"""Real spherical harmonics of many directions."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def spherical_harmonics(direction: Floats, max_angular: int) -> Floats:
    """Evaluate the orthonormal real spherical harmonics.

    Y_lm = Q_lm(z) (x + i y)^m with the associated Legendre functions over sin^m, normalized,

        Q_lm = a_lm (z Q_{l-1,m} - Q_{l-2,m} / a_{l-1,m}),  a_lm^2 = (4 l^2 - 1) / (l^2 - m^2)

    (Holmes and Featherstone, J. Geodesy 76, 279 (2002), eq. 11, in Cartesian form). All is
    elementwise: a direction's bits do not depend on the others.

    Parameters
    ----------
    direction : (3, n)
        Unit vectors.
    max_angular
        Largest degree.

    Returns
    -------
    ndarray
        ((max_angular + 1)^2, n), row l^2 + l + m; negative m are the sines.
    """
    x, y, z = direction
    harmonics = np.empty(((max_angular + 1) ** 2, len(z)))
    cosine, sine = np.full(len(z), math.sqrt(2.0)), np.zeros(len(z))
    diagonal = math.sqrt(1.0 / (4.0 * math.pi))
    part = np.empty(len(z))
    for m in range(max_angular + 1):
        before, last = np.zeros(len(z)), np.full(len(z), diagonal)
        previous = math.inf
        for l_ in range(m, max_angular + 1):
            if l_ > m:
                a = math.sqrt((4 * l_ * l_ - 1) / (l_ * l_ - m * m))
                np.multiply(before, -1.0 / previous, out=before)
                np.multiply(last, z, out=part)
                before += part
                before *= a
                before, last, previous = last, before, a
            row = l_ * l_ + l_
            if m == 0:
                harmonics[row] = last
            else:
                np.multiply(last, cosine, out=harmonics[row + m])
                np.multiply(last, sine, out=harmonics[row - m])
        cosine, sine = x * cosine - y * sine, x * sine + y * cosine
        diagonal *= math.sqrt((2 * m + 3) / (2 * m + 2))
    return harmonics
