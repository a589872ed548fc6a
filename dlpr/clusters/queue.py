"""SLURM's own words: states of jobs and why they wait, refusals, and the tails of their logs."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from getpass import getuser
from pathlib import Path

from dlpr.engine.starter import Fate
from dlpr.errors import ClusterError

SECONDS = 60.0
"""For which a command of SLURM may think."""
FRESH = 2.0
"""Seconds for which its answer is good enough to judge a death."""
WAITING = frozenset({"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED"})
TAKEN = frozenset({"CANCELLED", "PREEMPTED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "DEADLINE"})
"""Ends that are no fault of what ran."""
ENDED = frozenset({*TAKEN, "COMPLETED", "FAILED", "OUT_OF_MEMORY", "REVOKED", "LAUNCH_FAILED"})
_SILENCE = ("Unable to contact", "connect failure", "timed out", "Connection refused")
"""Words of commands whose controller is away for a while."""
_MEMORY_WORDS = ("exceeded memory limit", "oom_kill", "oom-kill", "out of memory", "Out Of Memory")
_ADVICE = {
    "Resources": "the queue is full: wait, or ask for less (cores, memory, walltime)",
    "Priority": "other jobs come first: wait, or ask for less (cores, memory, walltime)",
    "QOSMaxJobsPerUserLimit": "your site limits jobs: lower `jobs`, or use `within: allocation`",
    "AssocMaxJobsLimit": "your site limits jobs: lower `jobs`, or use `within: allocation`",
    "PartitionTimeLimit": "lower `walltime` below the partition's limit (`sinfo`)",
    "PartitionNodeLimit": "no node of this partition is large enough: lower `cores` or `memory`",
    "PartitionDown": "the partition is down: use another",
    "ReqNodeNotAvail": "nodes are reserved or down (`sinfo -R`): lower `walltime`, or wait",
    "BadConstraints": "no node has this `constraint`, or so many `cores` with so much `memory`",
    "JobHeldUser": "the job is held: `scontrol release` it",
    "JobHeldAdmin": "the job is held by an administrator: ask your site",
    "AssocGrpCpuLimit": "your account's share is in use: wait, or use another `account`",
    "PartitionConfig": "the partition has no such nodes: lower `jobs`, `cores` or `memory`",
    "BeginTime": "SLURM puts requeued jobs off for some minutes: wait",
    "Nodes required for job are DOWN": "nodes are down or drained (`sinfo -R` says why): wait",
}
_TROUBLE = ("down", "drain", "fail", "error", "reboot")
"""How states of nodes begin that do no work."""


@dataclass(frozen=True)
class QueueJob:
    """A job as SLURM sees it.

    Attributes
    ----------
    number : str
    name : str
    state : str
        SLURM's long form, such as PENDING.
    reason : str
        Why it waits or has ended, SLURM's word.
    node : str
    """

    number: str
    name: str
    state: str
    reason: str
    node: str

    @property
    def is_alive(self) -> bool:
        """Whether it waits, runs, or ends just now."""
        return self.state not in ENDED

    def __str__(self) -> str:
        where = f" on {self.node}" if self.node else ""
        why = f" ({self.reason})" if self.reason not in ("", "None") else ""
        return f"job {self.number} {self.state}{why}{where}"

    @property
    def advice(self) -> str:
        """What its user can do, "" if nothing."""
        return _ADVICE.get(self.reason.split(",")[0], "")


def call(command: Sequence[str]) -> str:
    """What a command of SLURM says.

    Raises
    ------
    ClusterError
        With SLURM's own words, if it refuses or is not there.
    """
    if shutil.which(command[0]) is None:
        raise ClusterError(
            f"there is no `{command[0]}` here: this machine has no SLURM. Go to one that has it, "
            f"or set `cluster: {{local: {{}}}}`."
        )
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(
            f"`{command[0]}` did not answer in {SECONDS:.0f} s: is SLURM's controller up? Run the "
            f"same command again."
        ) from None
    if done.returncode != 0:
        raise ClusterError(f"`{' '.join(command)}` was refused: {said(done.stderr or done.stdout)}")
    return done.stdout


def is_silence(words: str) -> bool:
    """Whether a refusal says no more than that the controller did not answer."""
    return any(word in words for word in _SILENCE)


def said(text: str) -> str:
    """Words of SLURM on one line, without the program's name before each."""
    lines = [line.split(": error: ")[-1].strip() for line in text.splitlines()]
    return "; ".join(line for line in lines if line) or "it said nothing"


def jobs(numbers: Iterable[str], fresh: bool = True) -> dict[str, QueueJob]:
    """The jobs of these numbers that SLURM still knows, ended ones for some minutes.

    Parameters
    ----------
    numbers : iterable of str
    fresh : bool
        Whether SLURM must be asked now; else its answer of a few seconds ago will do.
    """
    wanted = {number for number in numbers if number}
    if not wanted:
        return {}
    if fresh:
        _listing.cache_clear()
    found: dict[str, QueueJob] = {}
    for line in _listing(int(time.monotonic() / FRESH)).splitlines():
        number, name, state, reason, node = (line.strip().split("|") + [""] * 5)[:5]
        if number in wanted:
            found[number] = QueueJob(number, name, state, reason, node)
    return found


@lru_cache(maxsize=1)
def _listing(tick: int) -> str:
    columns = "--format=%i|%j|%T|%r|%N"
    return call(["squeue", "--noheader", "--states=all", columns, f"--user={getuser()}"])


def reasons(found: Iterable[QueueJob]) -> list[str]:
    """Why jobs have no worker: each reason once, with how many and what to try."""
    alike: dict[tuple[str, str, str], list[str]] = {}
    for job in found:
        if job.is_alive:
            alike.setdefault((job.state, job.reason, job.advice), []).append(job.number)
    return [
        f"{len(numbers)} job(s) {state}"
        + (f" ({reason})" if reason not in ("", "None") else "")
        + f", the first of them {numbers[0]}"
        + (f": {advice}" if advice else "")
        for (state, reason, advice), numbers in alike.items()
    ]


def troubles(names: Iterable[str]) -> list[str]:
    """What SLURM says of those nodes that do not answer or do no work; its * is the former."""
    wanted = ",".join(sorted({name for name in names if name}))
    if not wanted:
        return []
    said = call(["sinfo", "--noheader", "--Node", "--format=%N|%T|%E", f"--nodes={wanted}"])
    found = []
    for line in sorted(set(said.splitlines())):  # a node is listed once per partition
        node, state, reason = (line.strip().split("|", 2) + [""] * 3)[:3]
        silent = state.endswith("*")
        if silent or state.startswith(_TROUBLE):
            why = "not responding" if silent and reason in ("", "none") else reason
            found.append(f"node {node} is {state} ({why})")
    return found


def submit(script: Path) -> str:
    """Give a script to sbatch, and say the job's number.

    Raises
    ------
    ClusterError
        With SLURM's words, if it is refused.
    """
    return call(["sbatch", "--parsable", str(script)]).strip().split(";")[0]


def cancel(numbers: Iterable[str]) -> None:
    """Cancel jobs; those that have ended do not mind."""
    wanted = [number for number in numbers if number]
    if wanted:
        call(["scancel", *wanted])


def tail(path: Path, n_lines: int = 8) -> str:
    """The last lines of a log, "" if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16384))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(line for line in lines[-n_lines:] if line.strip())


def fate_of(number: str, log: str) -> Fate:
    """What became of the worker of a job, as far as SLURM says."""
    try:
        return fate(jobs([number], fresh=False).get(number), log)
    except ClusterError:
        return ""


def fate(job: QueueJob | None, log: str) -> Fate:
    """What ended a job: "memory", "preempted", or "" if that is not known or it runs.

    Parameters
    ----------
    job : QueueJob or None
        None: SLURM has forgotten it.
    log : str
        The end of its error log.
    """
    if job is not None and job.state == "RUNNING":
        return ""
    if (job is not None and job.state == "OUT_OF_MEMORY") or any(w in log for w in _MEMORY_WORDS):
        return "memory"
    words = ("CANCELLED", "PREEMPTION", "TIME LIMIT", "NODE FAILURE", "REQUEUE")
    taken = job is not None and (job.state in TAKEN or job.state in WAITING)
    return "preempted" if taken or any(word in log for word in words) else ""
