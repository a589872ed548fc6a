"""Regularizers tried on a test set, from what a job folds; and the one that a job leaves to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dlpr.errors import InputError, NumericsError
from dlpr.stages import decomposition as decomposition_stage
from dlpr.stages import derivatives as derivatives_stage
from dlpr.stages import scan as scan_stage
from dlpr.store.files import Json
from dlpr.store.folder import StageFolder

if TYPE_CHECKING:
    from dlpr.engine.pipeline import Pipeline

SAMPLE = 2000
"""Environments whose LPR is looked at."""


def chosen_scan(steps: Pipeline) -> StageFolder:
    """The scan by which a job has its regularizer picked."""
    spec = steps.job.model.spec.scan
    return scan(steps, spec.on, spec.regularizers)


def regularizer(steps: Pipeline) -> float:
    """The regularizer of a job: its own, or that of the least error of a test set.

    Raises
    ------
    NumericsError
        If none has an error that is a number.
    """
    spec = steps.job.model.spec.scan
    if spec is None:
        return float(steps.job.model.spec.regularizer)
    folder = steps.scan()
    try:
        best = scan_stage.open_scan(folder).best()
    except NumericsError as error:
        low, high = spec.scan
        raise NumericsError(
            f"no regularizer from {low:g} to {high:g} could be picked on {spec.on}: {error}"
        ) from error
    return float(folder.settings["regularizers"][best])


def record(steps: Pipeline) -> Json:
    """What a result is to say of a regularizer that was picked; nothing of one that was given."""
    if steps.job.model.spec.scan is None:
        return {}
    return {"regularizer": {"picked": regularizer(steps), "stage": steps.scan().name}}


def check_labels(steps: Pipeline, name: str) -> None:
    """Look for the labels of the loss, before anything is computed.

    Raises
    ------
    InputError
        If the training set, or the one that is to judge, has not all kinds of them.
    """
    for of in ("train", name):
        receipts = steps.ingest(of).receipts()
        kinds = [*(kind for kind in steps.kinds() if kind == "energy"), *steps.derivatives()]
        counts = {k: sum(receipt.facts["labels"][k] for receipt in receipts) for k in kinds}
        lacking = " and ".join(kind for kind, n in counts.items() if not n)
        if lacking and of == "train":
            raise InputError(
                f"the training set has not all labels of the loss (0 structures have {lacking}), "
                f"so there is nothing to fit. Name them in train.keys of the job file, or remove "
                f"what is not there from loss."
            )
        if lacking:
            raise InputError(
                f"0 structures of {of} have {lacking}, which the loss has; at least 1 is needed. "
                f"Where the files have such labels under other names, give them as test.{of}.keys "
                f"of the job file and run it again; else take another set."
            )


def scan(
    steps: Pipeline, name: str, regularizers: Sequence[float], sample: int = SAMPLE
) -> StageFolder:
    """Fit with many regularizers (positive, ascending), and try every fit on a test set."""
    check_labels(steps, name)
    found = _decomposed(steps, regularizers[0])
    work, numerics = steps.workspace.work, steps.numerics()
    tried = scan_stage.plan(
        work, found, _validation(steps, name), name, regularizers, sample, numerics
    )
    return steps.workspace.finish(f"regularizers tried on {name}", tried)


def _decomposed(steps: Pipeline, least: float) -> StageFolder:
    """The decomposition of rows or fold, by triangles where a Hessian's digits are too few."""
    solver, form = steps.job.solver, steps.form()
    loss = steps.loss().model_dump(mode="json")

    def of(fold: StageFolder | None) -> StageFolder:
        work, numerics = steps.workspace.work, steps.numerics()
        plan = decomposition_stage.plan(work, fold, steps.targets(), steps.model(), loss, numerics)
        return steps.workspace.finish(
            f"decomposition of the {fold.stage if fold else 'rows'}", plan
        )

    if form == "rows":
        return of(None)
    if solver == "qr":
        return of(steps.fold("triangle"))
    found = of(steps.fold("hessian"))
    facts = found.receipts()[0].facts
    is_resolved = least * facts["scale_square"] >= facts["resolved_mu"]
    if is_resolved or solver != "auto" or form == "tiles":
        return found
    return of(steps.fold("triangle"))


def _validation(steps: Pipeline, name: str) -> dict[str, StageFolder]:
    """The rows of a test set, as the loss has those of the training set."""
    workspace, found = steps.workspace, {"rows": steps.rows(name)}
    kinds = steps.derivatives()
    if kinds:
        derivatives = derivatives_stage.plan(workspace.work, found["rows"], kinds)
        role = f"rows of {' and '.join(kinds)} of {name}"
        found["derivatives"] = workspace.finish(role, derivatives)
    return found
