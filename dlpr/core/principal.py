"""Maps: rows of environments in the few directions in which they differ most."""

from __future__ import annotations

import numpy as np
from scipy.linalg import eigh

from dlpr.core.rows import FloatArray


def principal_coordinates(rows: FloatArray, n: int) -> tuple[FloatArray, FloatArray]:
    """Coordinates of rows along their first principal axes (PCA; of a kernel's rows, kernel PCA).

    From the eigenvectors of the centred rows' products, which are few where rows are.

    Parameters
    ----------
    rows : (m, n_columns) float64
    n : int
        Axes; those that there are not are 0.

    Returns
    -------
    coordinates : (m, n) float64
        Of the largest absolute value of each axis, the sign is positive.
    explained : (n,) float64
        Parts of the variance.
    """
    centred = rows - rows.mean(axis=0)
    values, vectors = eigh(centred @ centred.T)
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    k = min(n, len(rows))
    coordinates, explained = np.zeros((len(rows), n)), np.zeros(n)
    coordinates[:, :k] = vectors[:, :k] * np.sqrt(values[:k])
    largest = np.abs(coordinates).argmax(axis=0)
    coordinates *= np.where(coordinates[largest, np.arange(n)] < 0.0, -1.0, 1.0)
    total = values.sum()
    if total > 0.0:
        explained[:k] = values[:k] / total
    return coordinates, explained
