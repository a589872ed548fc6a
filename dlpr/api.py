"""The Python interface: a job whole, or step by step, on a client's workers or on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlpr.clusters import starter
from dlpr.engine.check import check_job
from dlpr.engine.dask_executor import DaskExecutor
from dlpr.engine.estimate import check_lifetime
from dlpr.engine.events import Listener
from dlpr.engine.executors import ClusterExecutor, Executor, WorkExecutor
from dlpr.engine.output import planned_kernel, read_job, write_job
from dlpr.engine.pipeline import Pipeline
from dlpr.engine.starter import Running
from dlpr.engine.workspace import Workspace
from dlpr.errors import JobError
from dlpr.handles import CrossValidation, Features, Hessian, Result, Rigidities, Structures
from dlpr.job import Job, load_job
from dlpr.regularizer_scan import write_curve

if TYPE_CHECKING:
    from distributed import Client

JobLike = Job | Mapping[str, Any] | str | os.PathLike[str]


def open_job(
    job: JobLike, output: str | os.PathLike[str] | None = None, cluster: str | None = None
) -> Job:
    """A job from a file, a mapping or a `Job`, its output folder and cluster replaced if given.

    Raises
    ------
    JobError
        If it cannot be used, as far as that shows without its data.
    """
    if isinstance(job, Mapping):
        job = Job.from_dict(job)
    elif not isinstance(job, Job):
        job = load_job(job)
    other: dict[str, Any] = {}
    if output is not None:
        other["output"] = str(Path(output).absolute())
    if cluster is not None:
        other["cluster"] = {"attach": cluster}
    if other:
        job = Job.from_dict({**job.resolved(), **other}, base=job.base)
    check_job(job)
    return job


@contextmanager
def pipeline(
    job: JobLike,
    *,
    client: Client | None = None,
    cluster: str | None = None,
    output: str | os.PathLike[str] | None = None,
    listeners: tuple[Listener, ...] = (),
) -> Iterator[Pipeline]:
    """A job's pipeline, its output folder owned for the length of the block.

    Parameters
    ----------
    job : Job, mapping, or path of a job file
    client : distributed.Client, optional
        Whose workers see the same file system. Without one, a cluster is started, or attached to,
        as the job's section ``cluster`` says, if there is anything to do.
    cluster : str, optional
        Name of a running cluster of ``dlpr cluster start``, in place of the job's section.
    output : path, optional
        In place of the job's own.
    listeners : tuple of callable
        Told of every `dlpr.engine.events.Event`.
    """
    job = open_job(job, output, cluster)
    folder = job.path(job.output)
    begin = starter(job.cluster, job.base)
    kernel = planned_kernel(folder, None if client is not None else begin.kernel)
    executor: Executor
    if client is not None:
        executor = DaskExecutor(Running(client, lambda: None))
    else:
        executor = ClusterExecutor(begin, kernel)
    workspace = Workspace(folder, executor, *listeners)
    try:
        with workspace.owned():
            write_job(workspace.output, job)
            steps = Pipeline(job, workspace, kernel)
            if client is None:
                check_lifetime(steps, begin.size)
            yield steps
    finally:
        executor.close()


def ingest(job: JobLike, name: str = "train", **options: Any) -> Structures:
    """Read, check and store the structures of one set.

    Parameters
    ----------
    job : Job, mapping, or path of a job file
    name : str
        "train" or a test set of the job.
    **options
        ``client``, ``cluster``, ``output``, ``listeners`` of `pipeline`.

    Returns
    -------
    Structures
    """
    with pipeline(job, **options) as steps:
        return Structures(steps.mended(lambda: steps.ingest(name)).path)


def featurize(job: JobLike, name: str = "train", **options: Any) -> Features:
    """Compute and store the features of one set; parameters as for `ingest`.

    Returns
    -------
    Features
    """
    with pipeline(job, **options) as steps:
        return Features(steps.mended(lambda: steps.featurize(name)).path)


def hessian(job: JobLike, **options: Any) -> Hessian:
    """Fold the training set into the Hessian and factorize it; parameters as for `ingest`.

    Returns
    -------
    Hessian
    """
    with pipeline(job, **options) as steps:
        return Hessian(steps.mended(steps.factor).path)


def rigidity(job: JobLike, name: str, **options: Any) -> Rigidities:
    """Compute the rigidities of one test set; parameters as for `ingest`.

    Returns
    -------
    Rigidities
    """
    with pipeline(job, **options) as steps:
        return Rigidities(steps.mended(lambda: steps.rigidity(name)).path)


def cross_validate(job: JobLike, **options: Any) -> CrossValidation:
    """Do the cross-validation that a job asks for; parameters as for `ingest`.

    Returns
    -------
    CrossValidation

    Raises
    ------
    JobError
        If the job has no section ``cross_validation``, or one that its model or loss refuses.
    """
    with pipeline(job, **options) as steps:
        found = steps.mended(steps.cross_validation)
    if found is None:
        raise JobError(
            "the job has no section cross_validation; give one, such as "
            "cross_validation: {folds: 5, by: structure}"
        )
    return CrossValidation(found.path)


def finished(steps: Pipeline) -> Result:
    """The result of a whole job, and beside it the curve of a regularizer that it picks."""
    steps.mended(steps.result)
    steps.mended(lambda: write_curve(steps))
    return Result(steps.workspace.output)


def run(job: JobLike, **options: Any) -> Result:
    """Do the whole job, or what it still lacks; parameters as for `ingest`.

    Returns
    -------
    Result
        The published ``rigidity.zarr`` and its summary.
    """
    with pipeline(job, **options) as steps:
        return finished(steps)


def worker(
    output: str | os.PathLike[str],
    *,
    rank: int | None = None,
    listeners: tuple[Listener, ...] = (),
) -> Pipeline:
    """The pipeline of an output folder's job, for this process alone; parameters as for `work`."""
    folder = Path(output).absolute()
    job = read_job(folder)
    workspace = Workspace(folder, WorkExecutor(rank), *listeners)
    return Pipeline(job, workspace, planned_kernel(folder))


def work(output: str | os.PathLike[str], **options: Any) -> Result:
    """Do whatever the job of an output folder lacks, without Dask, beside others that do the same.

    Parameters
    ----------
    output : path
        Where `run` or ``dlpr plan`` has left a job.
    rank : int, optional
        Number of this process among its fellows; by default that of the SLURM task.
    listeners : tuple of callable, optional
        As for `pipeline`.
    """
    steps = worker(output, **options)
    return finished(steps)
