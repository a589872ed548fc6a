"""The factored Hessian of a job, by the form and the solver that suit it, and its committee."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING

from dlpr.descriptors.kind import DERIVED
from dlpr.engine import memory, regularizer_choice
from dlpr.engine.check import check_committee, check_cross_validation
from dlpr.engine.cross_validation import check_folds
from dlpr.engine.events import Event
from dlpr.engine.factor_size import FactorSize, takes_basis
from dlpr.errors import NumericsError, ResourceError
from dlpr.stages import cholesky as cholesky_stage
from dlpr.stages import committee as committee_stage
from dlpr.stages import factor as factor_stage
from dlpr.stages.features import open_descriptor
from dlpr.stages.model import open_map
from dlpr.store.files import Json
from dlpr.store.folder import StageFolder

if TYPE_CHECKING:
    from dlpr.engine.pipeline import Pipeline


def chosen_factor(steps: Pipeline) -> StageFolder:
    """The factored Hessian, by the job's solver or by the one that is accurate enough."""
    solver, least = steps.job.solver, steps.job.model.spec.least_regularizer
    work, loss = steps.workspace.work, steps.loss().model_dump(mode="json")

    def settings(solver: str) -> Json:
        model = {**steps.model(), "regularizer": regularizer_choice.regularizer(steps)}
        return {"model": model, "loss": loss, "solver": solver, "numerics": steps.numerics()}

    def by(of: StageFolder | None, solver: str) -> StageFolder:
        plan = factor_stage.plan(work, of, {**steps.targets(), **steps.fit()}, settings(solver))
        return steps.workspace.finish(f"factor of the {of.stage if of else 'rows'}", plan)

    def by_tiles() -> StageFolder:
        fold = steps.fold("hessian")
        plan = cholesky_stage.plan(work, fold, steps.targets(), settings(solver))
        return steps.workspace.finish("factor of the tiles", plan)

    if steps.job.model.spec.scan:
        regularizer_choice.check_labels(steps, steps.job.model.spec.scan.on)
    form = steps.form()
    check_committee(steps.job, form, steps.n_columns())
    check_cross_validation(steps.job, form, steps.n_columns())
    check_folds(steps, form)
    require_memory(steps, form)
    if form == "rows":
        return by(None, "dual")
    if solver != "qr" and (solver != "auto" or least > 0.0):
        found, refused = None, None
        with suppress(NumericsError) if solver == "auto" else nullcontext():
            found = by_tiles() if form == "tiles" else by(steps.fold("hessian"), solver)
            if not (refused := factor_stage.factor_facts(found)["refused"]):
                return found
        try:
            require_memory(steps, "whole")
        except ResourceError as error:
            if found is None:
                raise
            text = f"{refused}. It is kept all the same: for QR, {error}"
            steps.workspace.tell(Event("note", "factor of the tiles", text=text))
            return found
    return by(steps.fold("triangle"), "auto" if solver == "auto" else "qr")


def members(steps: Pipeline) -> StageFolder:
    """The weights of the members of the job's committee."""
    assert steps.job.committee is not None
    committee, factor = steps.job.committee.model_dump(mode="json"), steps.factor()
    fold = None
    if steps.job.committee.subsample is not None and "fold" in factor.plan["inputs"]:
        fold = steps.fold(factor.input("fold").stage, committee["subsample"], "committee")
    work, numerics = steps.workspace.work, steps.numerics()
    plan = committee_stage.plan(work, factor, committee, fold, numerics)
    return steps.workspace.finish("committee", plan)


def require_memory(steps: Pipeline, form: str) -> None:
    """Refuse, before anything is computed, what no worker could hold at the end."""
    features, numerics = steps.feature_settings("train"), steps.job.numerics
    calculator = open_descriptor(features["descriptor"])
    layout = steps.layout()
    feature_map = open_map(steps.planned_rows())
    n_rows, n_components = steps.n_rows(), len(feature_map.components)
    basis = takes_basis(steps.job.solver, steps.job.model.spec.least_regularizer)
    n_members = steps.job.committee.spec.members if steps.job.committee else 0
    size = FactorSize(form, layout, n_rows, numerics.tile_columns, n_components, basis, n_members)
    mapping = memory.MapSize.of(feature_map)
    needs, raw, part_nbytes = [size.factorize_nbytes], feature_map.raw_widths, 0
    if steps.derivatives():
        crowd = memory.crowd_of(steps.ingest("train"))
        kinds = {kind: kind in steps.derivatives() for kind in DERIVED}
        needs.append(memory.derivatives_nbytes(calculator, mapping, raw, crowd, **kinds))
        part_nbytes = memory.derivative_part_nbytes(mapping.n_columns, crowd, **kinds)
    if steps.job.model.spec.scan:
        few = n_rows if form == "rows" else None
        needs.append(memory.decomposition_nbytes(layout.n_columns, few))
    if steps.job.cross_validation:
        n_structures = memory.crowd_of(steps.ingest("train")).n_structures
        needs.append(memory.cross_validation_nbytes(size, part_nbytes, n_structures))
    if form != "rows":
        width = numerics.tile_columns if form == "tiles" else layout.n_columns
        block = numerics.fold_block_rows
        needs.append(memory.fold_nbytes(layout.n_columns, width, block, part_nbytes))
    for name in steps.set_names():
        crowd = memory.crowd_of(steps.ingest(name))
        block, task = features["block_environments"], features["task_environments"]
        needs.append(memory.rigidity_nbytes(calculator, size, mapping, block, task, crowd))
        needs.append(memory.result_nbytes(size, crowd.n_structures))
        if steps.job.test_forces:
            needs.append(memory.forces_nbytes(calculator, size, mapping, raw, crowd))
    steps.workspace.executor.require(max(needs))
