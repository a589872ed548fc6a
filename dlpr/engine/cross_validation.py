"""The cross-validation of a job: what cannot be had is refused first, the rest is planned."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dlpr.engine.verify import check_whole
from dlpr.errors import InputError
from dlpr.stages import cross_validation as cross_validation_stage
from dlpr.stages import result as result_stage
from dlpr.stages.fold import run_rows
from dlpr.stages.sources import folds_of
from dlpr.stages.structures import open_structures
from dlpr.store.files import Json
from dlpr.store.folder import StageFolder

if TYPE_CHECKING:
    from dlpr.engine.pipeline import Pipeline


def spec_of(steps: Pipeline) -> Json:
    """The job's section as stages take it, once there are structures."""
    assert steps.job.cross_validation is not None
    n_groups = len(open_structures(steps.ingest("train")).group_names)
    return steps.job.cross_validation.spec(n_groups)


def check_folds(steps: Pipeline, form: str) -> None:
    """Refuse, before there are features, folds that are empty or whose partials are too many.

    Raises
    ------
    InputError
        If a fold is empty, or there is only one group to be left out.
    ResourceError
        If the partials of all folds are more than ``numerics.partials_budget``.
    """
    if steps.job.cross_validation is None:
        return
    structures, spec = steps.ingest("train"), spec_of(steps)
    store = open_structures(structures)
    if spec["by"] == "group" and spec["members"] < 2:
        raise InputError(
            f"cross_validation.by: group leaves out every group in turn, and the training set has "
            f"{spec['members']} ({', '.join(store.group_names)}); it needs 2. Name the key of the "
            f"groups in train.group_by, or take by: structure."
        )
    folds_of(structures, spec)
    if form != "rows" and spec["by"] != "group":
        n_groups, width = len(steps.kinds()) * len(store.group_names), steps.layout().n_columns + 1
        run_rows(steps.n_rows(), n_groups, width, steps.numerics()["partials_nbytes"], spec)


def validated(steps: Pipeline) -> StageFolder:
    """The finished cross-validation of a job that has one."""
    spec, factor = spec_of(steps), steps.factor()
    fold = None
    if "fold" in factor.plan["inputs"]:
        fold = factor.input("fold")
        if spec["by"] != "group":  # of groups the Hessian has partials already
            fold = steps.fold(fold.stage, spec, "cross-validation")
    work, numerics = steps.workspace.work, steps.numerics()
    plan = cross_validation_stage.plan(work, factor, spec, fold, numerics)
    return steps.workspace.finish("cross-validation", plan)


def publish(validation: StageFolder | None, output: Path) -> None:
    """Let the output folder name it; one of an earlier job is taken away."""
    store = output / cross_validation_stage.STORE
    if validation is not None:
        check_whole(validation)
        result_stage.publish_store(validation, output, store.name)
    elif store.is_symlink():
        store.unlink()
