"""What shows in a job before anything is read or written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dlpr.descriptors import check_sets, descriptor, gradient_refusal
from dlpr.errors import InputError, JobError
from dlpr.job import Job, SetSpec
from dlpr.stages import ingest as ingest_stage
from dlpr.stages.derivatives import LABEL
from dlpr.stages.reweight import open_loss, shapes_of
from dlpr.stages.structures import open_structures
from dlpr.store.folder import StageFolder
from dlpr.structures.selection import Where
from dlpr.units import format_bytes

if TYPE_CHECKING:
    from dlpr.engine.pipeline import Pipeline


def check_job(job: Job) -> None:
    """Refuse, before anything is read or written, what a stage would refuse much later.

    Raises
    ------
    JobError
        For hyperparameters, a condition, a type map or a solver that cannot be used.
    """
    descriptor(job.descriptor_of("train"), [1])
    for name, spec in {"train": job.train, **job.test}.items():
        if not isinstance(spec, SetSpec):
            continue
        try:
            ingest_stage.reading_of(spec.model_dump(mode="json"))
            if spec.where:
                Where(spec.where)
        except JobError as error:
            place = "train" if spec is job.train else f"test.{name}"
            raise JobError(f"{place}.{error}") from None
    model = job.model.spec
    if model.regularizer == 0.0 and model.baseline.composition is not None:
        raise JobError(
            f"a baseline of composition has a regularizer beside the model's, and "
            f"model.{job.model.kind}.regularizer is 0: make it positive, or take another baseline."
        )
    _check_derivatives(job)
    _check_reweighted(job)
    if job.cross_validation and job.loss.is_reweighted:
        raise JobError(
            f"cross_validation fits every fold to squared residuals, and the loss of "
            f"{' and '.join(job.loss.reweighted)} has another shape. Take the squared loss, or "
            f"remove cross_validation from the job file."
        )
    if job.solver == "cholesky" and job.model.spec.regularizer == 0.0:
        raise JobError(
            f"solver: cholesky needs a regularizer above 0, model.{job.model.kind}.regularizer is "
            f"0. Correct one of them in the job file; solver: auto, qr and eigh work with 0."
        )


def _check_derivatives(job: Job) -> None:
    """Refuse what needs more of a descriptor than it has."""
    calculator = descriptor(job.descriptor_of("train"), [1])
    wanted = {f"loss.{kind}": LABEL[kind] for kind in job.loss.kinds if kind in LABEL}
    if job.test_forces:
        wanted["test_forces"] = "forces"
    for place, rows in wanted.items():
        refusal = gradient_refusal(calculator, rows)
        if refusal is not None:
            raise JobError(f"{place} needs {refusal}. Take one of these, or leave {place} out.")
    kernel = job.model.kernel
    if kernel is not None and kernel.references.file is not None and calculator.reads_rows:
        raise JobError(
            "model.kernel.references.file needs a descriptor that is computed from atoms; this "
            "job's features come from files. Take references of the training set: count, indices."
        )


def _check_reweighted(job: Job) -> None:
    """Refuse what a loss that is not squared cannot have, and try users' functions."""
    if not job.loss.is_reweighted:
        return
    if job.solver == "dual":
        raise JobError(
            "solver: dual works on rows as they are, and a loss that is not squared weighs them "
            "anew for every fit. Take solver: auto, which folds them."
        )
    loss = job.loss.translated(1, 1).model_dump(mode="json")
    probe = np.linspace(-1.0, 1.0, 3)
    for kind, shape in shapes_of(loss, str(job.base)).items():
        tried = open_loss(shape, kind)
        tried.weight(probe)
        tried.second(probe)


def check_columns(n_columns: int, tile_columns: int) -> None:
    """Refuse a loss that is not squared where the Hessian is cut into tiles."""
    if n_columns > tile_columns:
        raise JobError(
            f"a loss that is not squared is fitted with the Hessian in one piece, of at most "
            f"numerics.tile_columns = {tile_columns} columns; this job has {n_columns}. Raise "
            f"numerics.tile_columns (a factorization then takes some "
            f"{format_bytes(10 * 8 * n_columns**2)} of memory), or take fewer columns."
        )


def check_features(steps: Pipeline, name: str) -> None:
    """Hold users' features against the set, and against those of the training set.

    Raises
    ------
    InputError
        If a file has not one row for each environment of its set.
    JobError
        If the sets' numbers of columns differ.
    """
    sets = dict.fromkeys(["train", name])
    found = {one: descriptor(steps.job.descriptor_of(one), steps.species()) for one in sets}
    check_sets(found, {one: open_structures(steps.ingest(one)).n_environments for one in sets})


def check_training_set(job: Job, structures: StageFolder) -> None:
    """Refuse what a job says of the training set and this has not.

    Raises
    ------
    InputError
        If the loss has forces or stresses that no structure has.
    JobError
        For a group, or a species, that the training set lacks, and one that the job lacks.
    """
    store = open_structures(structures)
    facts = [receipt.facts for receipt in structures.receipts()]
    for kind in job.loss.kinds:
        labelled = any(one["labels"][LABEL.get(kind, kind)] for one in facts)
        if not labelled and (kind != "energy" or job.loss.is_reweighted):
            raise InputError(
                f"the loss has {kind}, but no structure of the training set has any"
                f"{', and one that is not squared needs a fit' if kind == 'energy' else ''}. Name "
                f"them in train.keys, or remove loss.{kind} from the job file."
            )
    is_labelled = any(one["labels"]["energy"] for one in facts)
    fitted = {"committee": job.committee, "cross_validation": job.cross_validation}
    asked = [name for name, section in fitted.items() if section]
    if asked and "energy" in job.loss.kinds and not is_labelled:
        raise InputError(
            f"the job has a {asked[0]}, and 0 of {store.n_structures} structures of the training "
            f"set have an energy: there is nothing to fit. Name it in train.keys (energy: ...), "
            f"or remove {asked[0]} from the job file."
        )
    counted = np.isfinite(store.energy)
    if "energy" not in job.loss.kinds or not counted.any():
        counted[:] = True
    if store.is_weighted and not store.weight[counted].any():
        raise InputError(
            f"all {np.count_nonzero(counted)} structures of the training set that have labels "
            f"have the weight 0 (loss.structure_weight: {job.loss.structure_weight}); at least one "
            f"above 0 is needed."
        )
    if not any(job.loss.groups.get(group, 1.0) for group in store.group_names):
        raise JobError(
            f"loss.groups has 0 for every group of the training set, which are "
            f"{', '.join(store.group_names)}; at least one above 0 is needed."
        )
    for group in job.loss.groups:
        if group not in store.group_names:
            raise JobError(
                f"loss.groups has {group!r}; the groups of the training set are "
                f"{', '.join(store.group_names)} (train.group_by: {job.train.group_by})."
            )
    model, symbols = job.model.spec, store.symbols.split()
    named = {"isolated": model.baseline.isolated, "count": _counts(job)}
    for place, given in named.items():
        for symbol in given or ():
            if symbol not in symbols:
                raise JobError(
                    f"{place} has {symbol}, of which the training set has no atom; it has "
                    f"{store.symbols}. Correct model.{job.model.kind} in the job file."
                )
        for symbol in symbols:
            if given and symbol not in given:
                raise JobError(
                    f"{place} lacks {symbol}, which the training set has; add it to "
                    f"model.{job.model.kind} in the job file."
                )


def check_committee(job: Job, form: str, n_columns: int) -> None:
    """Refuse members that nobody could fit.

    Parameters
    ----------
    form : str
        See `dlpr.stages.fold.form_of`.
    n_columns : int
        Of the model.

    Raises
    ------
    JobError
    """
    if not (job.committee and job.committee.subsample):
        return
    if job.loss.is_reweighted:
        raise JobError(
            "committee.subsample fits every member to squared residuals, and the loss of "
            f"{' and '.join(job.loss.reweighted)} has another shape. Take committee.posterior, or "
            "the squared loss."
        )
    if form == "tiles":
        raise JobError(
            f"committee.subsample factorizes a Hessian for every member, each in one piece: the "
            f"model has {n_columns} columns, and numerics.tile_columns is "
            f"{job.numerics.tile_columns}. Raise that to {n_columns} or more, with memory for "
            f"it, or take committee.posterior, which needs the one factor that there is."
        )


def check_cross_validation(job: Job, form: str, n_columns: int) -> None:
    """Refuse a cross-validation of a Hessian in tiles; parameters as for `check_committee`.

    Raises
    ------
    JobError
    """
    if job.cross_validation and form == "tiles":
        raise JobError(
            f"cross_validation factorizes a Hessian for every fold, each in one piece: the model "
            f"has {n_columns} columns, and numerics.tile_columns is {job.numerics.tile_columns}. "
            f"Raise that to {n_columns} or more, with memory for it, or remove cross_validation "
            f"from the job file."
        )


def _counts(job: Job) -> dict[str, int] | None:
    """Numbers of references that are given by species."""
    count = job.model.kernel.references.count if job.model.kernel else None
    return count if isinstance(count, dict) else None
