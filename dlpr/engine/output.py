"""What an output folder says about itself: its job, what is live in it, what is done."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlpr.core.blas import blas_kernel, same_libraries
from dlpr.engine.events import family
from dlpr.engine.workspace import LIVE
from dlpr.errors import OwnerError, StoreError
from dlpr.job import Job
from dlpr.stages.result import STORE
from dlpr.store.files import Json, read_json, write_json
from dlpr.store.folder import FORMAT_VERSION, StageFolder, check_format, folders
from dlpr.store.lease import Lease

JOB = "job.json"


def write_job(output: Path, job: Job) -> None:
    """Keep the job as resolved, so that `dlpr work` and `dlpr status` need the folder alone.

    Raises
    ------
    StoreError
        If a newer dlpr wrote the folder.
    """
    found = read_json(output / JOB)
    if found is not None:
        check_format(found.get("format_version"), output)
    record = {
        "format_version": FORMAT_VERSION,
        "base": str(job.base),
        "job": without_secrets(job.resolved()),
        "kernel": planned_kernel(output),
    }
    if found != record:
        write_json(output / JOB, record)


def without_secrets(job: dict[str, Any]) -> dict[str, Any]:
    """A job without what the environment of worker jobs may hold: others may read the folder."""
    cluster = {kind: {**spec} for kind, spec in job["cluster"].items()}
    for spec in cluster.values():
        spec.pop("environment", None)
    return {**job, "cluster": cluster}


def planned_kernel(output: Path, workers: str | None = None) -> str:
    """The BLAS kernel of a folder's plans: that of the process that made the first of them.

    Or of the workers, where that is known and there was no plan.

    With other BLAS libraries than then it cannot be had any more, and plans are made anew.
    """
    here = workers or blas_kernel()
    planned = (read_json(output / JOB) or {}).get("kernel")
    if isinstance(planned, str) and same_libraries(planned, here):
        return planned
    return here


def read_job(output: Path) -> Job:
    """The job of an output folder.

    Raises
    ------
    StoreError
        If the folder holds no job.
    """
    record = read_json(output / JOB)
    if record is None:
        raise StoreError(
            f"{output} is no output folder of dlpr: it has no readable {JOB}. Give the folder that "
            f"`dlpr run` or `dlpr plan` was told to write to."
        )
    check_format(record.get("format_version"), output)
    return Job.from_dict(record["job"], base=record["base"])


def live_stages(output: Path) -> set[str]:
    """Stages of the latest run, and all that the published result was made from."""
    wanted = list((read_json(output / LIVE) or {}).get("stages", {}).values())
    link = output / STORE
    if link.is_symlink():
        wanted.append(link.readlink().parent.name)
    found: set[str] = set()
    while wanted:
        name = wanted.pop()
        plan = read_json(output / "work" / name / "plan.json")
        if name not in found and plan is not None:
            found.add(name)
            wanted += plan["places"].values()
    return found


@dataclass(frozen=True)
class StageState:
    """How far a stage is.

    Attributes
    ----------
    folder : StageFolder
    missing : list of int
        Tasks without a valid receipt.
    live : bool
    nbytes : int
        Bytes of the finished tasks.
    """

    folder: StageFolder
    missing: list[int]
    live: bool
    nbytes: int


def stage_states(output: Path) -> list[StageState]:
    """Every stage of an output folder, live or not."""
    live = live_stages(output)
    states = []
    for folder in folders(output / "work"):
        missing = folder.missing()
        receipts = [folder.receipt(task) for task in range(folder.n_tasks)]
        nbytes = sum(receipt.nbytes for receipt in receipts if receipt is not None)
        states.append(StageState(folder, missing, folder.name in live, nbytes))
    return states


def clean(output: Path) -> tuple[list[str], int]:
    """Remove the stages that neither the published result nor the latest run refers to.

    Returns
    -------
    names : list of str
    n_bytes : int
        What was freed.

    Raises
    ------
    OwnerError
        While a run is alive in the folder.
    """
    output = output.absolute()
    read_job(output)
    lease = Lease(output / "owner.json")
    try:
        lease.acquire()
    except OwnerError as error:
        raise OwnerError(f"nothing was removed: {error}") from None
    with lease.held():
        busy = [claim for claim in (output / "work").glob("*/claims/*.json") if _is_held(claim)]
        if busy:
            raise OwnerError(
                f"nothing was removed: `dlpr work` is busy in {output} with {len(busy)} task(s), "
                f"the first of them {busy[0]}. Wait for it or stop it."
            )
        live = live_stages(output)
        removed, nbytes = [], 0
        for folder in folders(output / "work"):
            if folder.name not in live:
                nbytes += _freed_nbytes(folder.path)
                shutil.rmtree(folder.path)
                removed.append(folder.name)
        for partial in [*output.glob("*.partial"), *(output / "work").rglob("*.partial")]:
            if partial.is_dir() and not partial.is_symlink():
                shutil.rmtree(partial)
            else:
                partial.unlink(missing_ok=True)
        return removed, nbytes


def _is_held(claim: Path) -> bool:
    lease = Lease(claim)
    owner = lease.owner()
    return owner is not None and lease.is_alive(owner) is not False


def _freed_nbytes(path: Path) -> int:
    """Bytes of files that no other stage has as well."""
    states = (entry.lstat() for entry in path.rglob("*"))
    return sum(state.st_size for state in states if state.st_nlink == 1)


def disk_usage(path: Path) -> tuple[int, int]:
    """Bytes and inodes below a folder."""
    entries = [path, *path.rglob("*")]
    return sum(entry.lstat().st_size for entry in entries), len(entries)


def run_cost(used: Mapping[str, StageFolder]) -> list[dict[str, Any]]:
    """Per stage: tasks, seconds, core-hours, bytes, files and peak memory, off its receipts.

    Those of all fits of a loss are one.
    """
    families: dict[str, list[StageFolder]] = {}
    for role, folder in used.items():
        families.setdefault(family(role), []).append(folder)
    table: list[Json] = []
    for name, stages in families.items():
        receipts = [receipt for folder in stages for receipt in folder.receipts()]
        table.append(
            {
                "stage": name,
                "n_tasks": len(receipts),
                "seconds": sum(r.cost["seconds"] for r in receipts),
                "core_hours": sum(r.cost["cpu_seconds"] for r in receipts) / 3600,
                "nbytes": sum(r.nbytes for r in receipts),
                "n_files": sum(len(r.files) + 1 for r in receipts),
                "peak_nbytes": max((r.cost["peak_nbytes"] for r in receipts), default=0),
            }
        )
    return table


def owner_of(output: Path) -> str:
    """Who owns the folder, as a sentence."""
    owner = read_json(output / "owner.json")
    if owner is None:
        return "no run is going on"
    alive = Lease(output / "owner.json").is_alive(owner)
    state = {True: "is alive", False: "is dead", None: "is on another host"}[alive]
    return f"owner: process {owner.get('pid')} on {owner.get('host')}, which {state}"
