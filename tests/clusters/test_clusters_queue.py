"""SLURM's words, from a SLURM that says what it is told to say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dlpr.clusters import queue
from dlpr.clusters.queue import QueueJob
from dlpr.errors import ClusterError


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where commands of SLURM lie."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return tmp_path


def command(tools: Path, name: str, script: str) -> None:
    path = tools / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_jobs_are_those_that_were_asked_for(tools: Path) -> None:
    command(tools, "squeue", "echo '7|a|PENDING|Resources|'; echo '8|b|RUNNING|None|n1'")
    assert queue.jobs(["7", "9"]) == {"7": QueueJob("7", "a", "PENDING", "Resources", "")}
    assert queue.jobs([]) == {}


def test_a_refusal_is_slurms_own_words(tools: Path) -> None:
    command(tools, "sbatch", "echo 'sbatch: error: invalid partition: x' >&2; exit 1")
    with pytest.raises(ClusterError, match="invalid partition: x"):
        queue.submit(Path("script.sh"))
    command(tools, "sbatch", "echo '12;cluster'")
    assert queue.submit(Path("script.sh")) == "12"


def test_a_machine_without_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match=re.escape("no `sbatch` here")):
        queue.submit(Path("script.sh"))


def test_a_controller_that_does_not_answer(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command(tools, "squeue", "exec sleep 20")
    monkeypatch.setattr(queue, "SECONDS", 0.2)
    with pytest.raises(ClusterError, match="did not answer"):
        queue.jobs(["1"])


@pytest.mark.parametrize(
    ("state", "log", "fate"),
    [
        ("OUT_OF_MEMORY", "", "memory"),
        (
            "FAILED",
            "error: Job 5 exceeded memory limit (9 > 8), being killed",
            "memory",
        ),
        ("FAILED", "error: Detected 1 oom_kill event in StepId=5.batch", "memory"),
        ("CANCELLED", "", "preempted"),
        ("PREEMPTED", "", "preempted"),
        ("TIMEOUT", "", "preempted"),
        ("NODE_FAIL", "", "preempted"),
        ("PENDING", "", "preempted"),
        ("RUNNING", "error: Detected 1 oom_kill event in StepId=5.0", ""),
        (None, "*** JOB 5 ON n1 CANCELLED AT 2026-11-21 DUE TO PREEMPTION ***", "preempted"),
        ("RUNNING", "", ""),
        ("FAILED", "Segmentation fault", ""),
        (None, "", ""),
    ],
)
def test_what_ended_a_job(state: str | None, log: str, fate: str) -> None:
    job = None if state is None else QueueJob("5", "dlpr-x", state, "None", "n1")
    assert queue.fate(job, log) == fate


def test_nodes_that_do_not_answer_are_named(tools: Path) -> None:
    assert queue.troubles(["", ""]) == []
    lines = ("n1|mixed*|none", "n1|mixed*|none", "n2|down*|Not responding", "n3|idle|none")
    said = " ".join(f"'{line}'" for line in lines)
    command(tools, "sinfo", f"printf '%s\\n' {said}")
    assert queue.troubles(["n1", "n2", "n3"]) == [
        "node n1 is mixed* (not responding)",
        "node n2 is down* (Not responding)",
    ]


def test_ends_of_logs(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert queue.tail(path) == ""
    path.write_text("".join(f"{k}\n\n" for k in range(100_000)))
    assert queue.tail(path, 4) == "99998\n99999"
