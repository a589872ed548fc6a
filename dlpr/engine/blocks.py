"""How many environments go together, where the job does not say: part of the numerical plan."""

from __future__ import annotations

from dlpr.job import Numerics

BLOCK_NBYTES = 1 << 24
"""Bytes of features in one block, where the job does not say."""
TASK_BLOCKS = 2
"""Blocks in one task, where the job does not say."""
TASK_ENVIRONMENTS, TASK_COLUMNS = 16384, 2000
"""Environments in one task of few columns, and the columns at which it has half as many."""


def default_block(n_features: int) -> int:
    """Environments in a block of about `BLOCK_NBYTES`: a power of two from 64 to 8192."""
    rows = max(64, min(8192, BLOCK_NBYTES // (8 * n_features)))
    return 1 << (rows.bit_length() - 1)


def default_task(block: int, n_features: int) -> int:
    """Environments in a task of some seconds: fewer where a rigidity, of D^2 operations, is slow.

    Not a function of the set, which may grow.
    """
    n = int(TASK_ENVIRONMENTS / (1.0 + (n_features / TASK_COLUMNS) ** 2))
    return max(TASK_BLOCKS * block, n)


def planned_blocks(numerics: Numerics, n_features: int) -> tuple[int, int]:
    """Environments in a block, and in a task of whole blocks."""
    block = numerics.block_environments or default_block(n_features)
    task = numerics.task_environments or default_task(block, n_features)
    return block, -(-task // block) * block
