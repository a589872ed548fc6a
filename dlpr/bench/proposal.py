"""What to label next beside a refit for every candidate: the same pick, and how quickly."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from dlpr.bench.measure import OURS, Bench, Row, timed
from dlpr.core.candidates import Candidates
from dlpr.core.factor import TriangularFactor
from dlpr.core.proposal import propose
from dlpr.core.rows import FloatArray

N_PICKS = 20
"""Behind the first, whose pass over all rows is timed apart."""
PICK_SECONDS = 0.1
SPEED = 500.0


def measure(bench: Bench) -> Iterator[Row]:
    """Seconds per pick, and how much quicker that is than to fit with every candidate anew."""
    n_columns, n_candidates, n_targets = bench.sizes.proposal
    rng = np.random.default_rng(6)
    decay = np.logspace(0, -4, n_columns)
    rows, pool, targets = (
        rng.standard_normal((n, n_columns)) * decay
        for n in (2 * n_columns, n_candidates, n_targets)
    )
    hessian = rows.T @ rows + 1e-6 * np.eye(n_columns)
    triangle = np.asfortranarray(np.linalg.cholesky(hessian).T)
    factor = TriangularFactor(triangle)
    whitened = factor.whiten(targets)
    chunks = [Candidates(factor.whiten(pool), np.arange(n_candidates + 1))]
    picks = propose(whitened, chunks, 1).picks
    size = {"columns": n_columns, "candidates": n_candidates, "targets": n_targets}
    ours = []
    for _ in range(bench.sizes.repeats):
        first = timed(lambda: propose(whitened, chunks, 1))
        ours.append((timed(lambda: propose(whitened, chunks, 1 + N_PICKS)) - first) / N_PICKS)
    seconds = float(np.median(ours))
    yield Row("next label", seconds, "s", size, "", PICK_SECONDS, True, {OURS: ours})
    found: list[int] = []
    theirs = timed(lambda: found.append(_refitted(hessian, pool, targets)))
    samples = {OURS: ours, "refits": [theirs]}
    name, against = "next label, speed", "a Cholesky factorization for every candidate"
    if found != picks.tolist():
        yield Row(name, None, "", size, against, note=f"{picks} was picked, not {found}")
        return
    note = "the same pick"
    yield Row(name, theirs / seconds, "", size, against, SPEED, samples=samples, note=note)


def _refitted(hessian: FloatArray, pool: FloatArray, targets: FloatArray) -> int:
    """The candidate with which the mean variance of the targets is least."""
    means = []
    for row in pool:
        factor = cho_factor(hessian + np.outer(row, row), overwrite_a=True, check_finite=False)
        solved = cho_solve(factor, targets.T, check_finite=False)
        means.append(np.einsum("ij,ji->", targets, solved))
    return int(np.argmin(means))
