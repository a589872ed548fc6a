"""What shows in a job before anything is read or written."""

from __future__ import annotations

from dlpr.descriptors import Soap, descriptor
from dlpr.errors import InputError, JobError
from dlpr.job import Job, SetSpec
from dlpr.stages import ingest as ingest_stage
from dlpr.stages.structures import open_structures
from dlpr.store.folder import StageFolder
from dlpr.structures.selection import Where


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
    if job.solver == "cholesky" and job.model.spec.regularizer == 0.0:
        raise JobError(
            f"solver: cholesky needs a regularizer above 0, model.{job.model.kind}.regularizer is "
            f"0. Correct one of them in the job file; solver: auto, qr and eigh work with 0."
        )


def _check_derivatives(job: Job) -> None:
    """Refuse what needs more of a descriptor than it has."""
    calculator = descriptor(job.descriptor_of("train"), [1])
    for kind in ("forces", "stress"):
        if getattr(job.loss, kind) > 0.0 and not isinstance(calculator, Soap):
            raise JobError(
                f"loss.{kind} needs gradients of the features, which descriptor.soap alone has; "
                f"this job's is descriptor.{job.descriptor.kind}. Take soap, or leave loss.{kind} "
                f"out."
            )
    if job.test_forces and not isinstance(calculator, Soap):
        raise JobError(
            f"test_forces needs gradients of the features, which descriptor.soap alone has; this "
            f"job's is descriptor.{job.descriptor.kind}. Take soap, or leave test_forces out."
        )
    kernel = job.model.kernel
    if kernel is not None and kernel.references.file is not None and calculator.reads_rows:
        raise JobError(
            "model.kernel.references.file needs a descriptor that is computed from atoms; this "
            "job's features come from files. Take references of the training set: count, indices."
        )


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
    for kind in ("forces", "stress"):
        labelled = any(receipt.facts["labels"][kind] for receipt in structures.receipts())
        if getattr(job.loss, kind) > 0.0 and not labelled:
            raise InputError(
                f"the loss has {kind}, but no structure of the training set has any. Name them in "
                f"train.keys, or remove loss.{kind} from the job file."
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


def _counts(job: Job) -> dict[str, int] | None:
    """Numbers of references that are given by species."""
    count = job.model.kernel.references.count if job.model.kernel else None
    return count if isinstance(count, dict) else None
