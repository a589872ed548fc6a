"""What to label next: from the rows of a pool to the picks."""

from __future__ import annotations

from collections.abc import Sequence

from dlpr.engine.pipeline import Pipeline
from dlpr.stages import proposal as proposal_stage
from dlpr.stages import targets as targets_stage
from dlpr.stages import whitened as whitened_stage
from dlpr.store.folder import StageFolder


def proposed(
    steps: Pipeline,
    pool: str,
    sets: Sequence[str],
    *,
    count: int,
    objective: str,
    n_targets: int,
    of: str,
) -> StageFolder:
    """Structures of one test set whose labels help the least rigid of others most.

    Parameters
    ----------
    pool : str
        The test set that has the candidates.
    sets : sequence of str
        Test sets that are to become more rigid.
    count : int
        Picks at most.
    objective : str
        See `dlpr.core.proposal.OBJECTIVES`.
    n_targets : int
        Of the environments or structures of all ``sets`` together, those that count: the least
        rigid ones.
    of : {"environments", "structures"}

    Returns
    -------
    StageFolder
        A finished "proposal".
    """
    candidates = _whitened(steps, pool)
    targets = {
        name: _whitened(steps, name) if of == "structures" else _worst(steps, name, n_targets)
        for name in sets
    }
    spec = {"count": count, "objective": objective, "n_targets": n_targets}
    work = steps.workspace.work
    plan = proposal_stage.plan(work, candidates, targets, spec, steps.numerics())
    return steps.workspace.finish("picks to label", plan)


def _whitened(steps: Pipeline, name: str) -> StageFolder:
    """The rows of a set's structures, whitened."""
    factor, rows = steps.factor(), steps.rows(name)
    plan = whitened_stage.plan(steps.workspace.work, factor, rows, steps.numerics())
    return steps.workspace.finish(f"whitened rows of {name}", plan)


def _worst(steps: Pipeline, name: str, count: int) -> StageFolder:
    """The rows of a set's least rigid environments, whitened."""
    rigidity = steps.rigidity(name)
    plan = targets_stage.plan(steps.workspace.work, rigidity, count, steps.numerics())
    return steps.workspace.finish(f"least rigid of {name}", plan)
