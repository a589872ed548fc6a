"""The fit of a loss that is not squared: rows are weighed and fitted again until nothing moves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlpr.errors import NumericsError
from dlpr.stages import fit as fit_stage
from dlpr.store.files import Json
from dlpr.store.folder import StageFolder

if TYPE_CHECKING:
    from dlpr.engine.pipeline import Pipeline


def converged_fit(steps: Pipeline) -> StageFolder:
    """Reweight the rows until their fit stays where it is: see `dlpr.core.losses`.

    The first fit is that of squared losses. Each one after it folds the rows with the weights
    ``l'(r)/r`` at the one before, which its plan names by the digest of its output; so a run that
    was stopped goes on, and more iterations begin where fewer have ended.

    Raises
    ------
    NumericsError
        If the loss is not fitted to ``loss.tolerance`` within ``loss.iterations``.
    """
    loss, solver = steps.loss(), steps.job.solver
    if solver == "auto" and steps.model()["regularizer"] == 0.0:
        solver = "qr"
    stage = "triangle" if solver == "qr" else "hessian"
    fit = _fit(steps, stage, solver, None)
    if fit.receipts()[0].facts["refused"]:
        stage = "triangle"
        fit = _fit(steps, stage, "qr", None)
    facts: Json = {}
    for _ in range(loss.iterations):
        fit = _fit(steps, stage, "cholesky" if stage == "hessian" else "qr", fit)
        facts = fit.receipts()[0].facts
        if facts["left"] is not None and facts["left"] <= loss.tolerance:
            return fit
    raise NumericsError(
        f"the loss was not fitted to convergence: after {loss.iterations} iterations the last step "
        f"is {facts['change']:.1e} (in the norm of H, over the root of the loss), and the minimum "
        f"must be nearer than loss.tolerance, {loss.tolerance:.1e}. Raise loss.iterations, which "
        f"goes on from here, or loss.tolerance; a larger delta, or a convex loss, converges faster."
    )


def _fit(steps: Pipeline, stage: str, solver: str, before: StageFolder | None) -> StageFolder:
    """One fit: of squared losses, or of rows that are weighed at the one before."""
    number = 0 if before is None else before.receipts()[0].facts["iteration"] + 1
    fold = steps.planned_fold(stage, "weight", {} if before is None else {"fit": before})
    finish, targets = steps.workspace.finish, steps.targets()
    fold = finish(f"{stage} of fit {number}", fold)
    settings = {
        "model": steps.model(),
        "loss": steps.loss().model_dump(mode="json"),
        "solver": solver,
        "numerics": steps.numerics(),
    }
    plan = fit_stage.plan(steps.workspace.work, fold, targets, settings, before)
    return finish(f"fit {number}", plan)
