"""Nodes that vanish, jobs that SLURM ends at their walltime, allocations of several workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest
from slurm_desk import Desk, slurm
from waiting import until as until_soon

SLURM_DEV = Path(__file__).parents[2] / "deploy" / "slurm-dev" / "slurm-dev"
until = partial(until_soon, seconds=120.0)


@pytest.fixture
def nodes(desk: Desk) -> Iterator[list[str]]:
    """Names of nodes that can be struck, as `slurm-dev up --nodes 2` makes them."""
    found = slurm("sinfo", "-h", "-N", "-p", "debug", "-o", "%N").split()
    if len(found) < 2 or not Path(f"/run/slurm-dev/slurmd-{found[0]}.pid").exists():
        pytest.skip("needs `deploy/slurm-dev/slurm-dev up --nodes 2`, and to be root")
    yield found
    bring_back(found)


def bring_back(nodes: list[str]) -> None:
    up = [SLURM_DEV, "up", "--nodes", str(len(nodes))]
    subprocess.run(up, check=True, capture_output=True, timeout=120)


def strike(node: str) -> None:
    """Kill all that a node runs, SLURM's own daemon first."""
    victims = [int(Path(f"/run/slurm-dev/slurmd-{node}.pid").read_text())]
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("SLURMD_NODENAME") == node:
                above = process.parents()
                victims += [one.pid for one in above if one.name().startswith("slurmstepd")]
                victims.append(process.pid)
    for victim in victims:
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)


def node_of(job: str) -> str:
    return slurm("squeue", "-h", "-j", job, "-o", "%N").strip()


def test_a_vanished_nodes_job_is_given_up_before_slurm_does(desk: Desk, nodes: list[str]) -> None:
    """The other node has the replacement while SLURM still shows the old job as running."""
    main = "import dlpr.clusters.crew as crew; crew.LOST = 3.0; from dlpr.cli import main; main()"
    desk.profile("lost", jobs=1)
    job = desk.job("lost", {"slurm": {"profile": "lost"}})
    run = subprocess.Popen(
        [sys.executable, "-c", main, "run", str(job)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=desk.environment,
    )
    before = desk.wait_for_receipts("lost", 5)
    [first] = desk.worker_jobs()
    struck = node_of(first)
    strike(struck)
    [second] = until(lambda: set(desk.worker_jobs()) - {first})
    assert node_of(second) != struck
    assert "down" not in slurm("sinfo", "-h", "-n", struck, "-o", "%T")
    desk.end(run)
    desk.check("lost", before)


def test_all_nodes_vanish_and_come_back(desk: Desk, nodes: list[str]) -> None:
    desk.profile("dark", jobs=1)
    desk.said("cluster", "start", "dark", "-p", "dark")
    run = desk.dlpr("run", desk.job("dark"), "--cluster", "dark")
    before = desk.wait_for_receipts("dark", 5)
    for node in nodes:
        strike(node)
    until(lambda: "Nodes required for job are DOWN" in explanation(desk, "dark"))
    assert "no workers:" in desk.said("cluster", "status", "dark")
    held = desk.receipts("dark")
    assert before.items() <= held.items()
    bring_back(nodes)
    desk.end(run)
    desk.check("dark", held)


def explanation(desk: Desk, name: str) -> str:
    return str(desk.state(name).get("explanation"))


def test_an_allocation_of_several_workers_loses_a_node(desk: Desk, nodes: list[str]) -> None:
    changes = {"within": "allocation", "memory": "1GiB", "scheduler": {"place": "job"}}
    desk.profile("several", jobs=3, **changes)
    assert "#SBATCH --ntasks=4\n" in desk.said("cluster", "script", "several", "--scheduler")
    desk.said("cluster", "start", "several", "-p", "several")
    until(lambda: len(desk.state("several").get("workers", [])) == 3)
    steps = slurm("scontrol", "-o", "show", "step").splitlines()
    workers = [line for line in steps if "Name=several-" in line]
    assert len(workers) == 3
    assert all("TRES=cpu=1,mem=1G,node=1" in line for line in workers)
    assert {node for node in nodes if any(f"={node} " in line for line in workers)} == set(nodes)

    run = desk.dlpr("run", desk.job("several"), "--cluster", "several")
    before = desk.wait_for_receipts("several", 5)
    [job] = slurm("squeue", "-h", "-o", "%A").split()
    host = slurm("scontrol", "show", "job", job).partition("BatchHost=")[2].split()[0]
    [other] = set(nodes) - {host}
    strike(other)
    desk.end(run)
    desk.check("several", before)
    until(lambda: node_of(job) == host)
    desk.said("run", desk.job("left"), "--cluster", "several")
    desk.check("left")
    desk.said("cluster", "stop", "several")
    bring_back(nodes)
    until(lambda: not slurm("squeue", "-h"))


def test_jobs_that_wait_are_cancelled_for_a_killed_scheduler(desk: Desk) -> None:
    desk.profile("waits", jobs=2, directives=["--begin=now+1hour"])
    desk.said("cluster", "start", "waits", "-p", "waits")
    until(lambda: len(desk.worker_jobs(state="PENDING")) == 2)
    folder = desk.folder / "clusters" / "waits"
    until(lambda: (folder / "state.json").exists() and "PENDING" in explanation(desk, "waits"))
    os.kill(json.loads((folder / "scheduler.json").read_text())["pid"], signal.SIGKILL)
    desk.said("cluster", "stop", "waits")
    until_soon(lambda: not slurm("squeue", "-h"), 10.0)


def test_the_schedulers_job_is_requeued(desk: Desk) -> None:
    """It comes back with new credentials, and its old workers are no more."""
    desk.profile("again", jobs=1, scheduler={"place": "job", "memory": "1GiB"})
    desk.said("cluster", "start", "again", "-p", "again")
    until(lambda: desk.state("again").get("workers"))
    before = set(desk.worker_jobs())
    key = (desk.folder / "clusters" / "again" / "tls" / "key.pem").read_bytes()
    found = slurm("squeue", "-h", "-n", "dlpr-again-scheduler", "-o", "%A").strip()
    slurm("scontrol", "requeue", found)
    until(lambda: set(desk.worker_jobs()) - before)
    assert not before & set(slurm("squeue", "-h", "-t", "R,PD", "-o", "%A").split())
    assert (desk.folder / "clusters" / "again" / "tls" / "key.pem").read_bytes() != key
    desk.said("run", desk.job("again"), "--cluster", "again")
    desk.check("again")


def test_slurm_ends_a_worker_at_its_walltime(desk: Desk) -> None:
    """A worker that does not leave by itself: it is stopped, with a task in hand."""
    desk.profile("late", jobs=1)
    desk.said("cluster", "start", "late", "-p", "late")
    run = desk.dlpr("run", desk.job("late"), "--cluster", "late")
    desk.wait_for_receipts("late", 5)
    [first] = desk.worker_jobs()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("SLURM_JOB_ID") == first:
                process.suspend()
    before = desk.receipts("late")
    slurm("scontrol", "update", f"JobId={first}", "EndTime=now")
    until(lambda: set(desk.worker_jobs()) - {first})
    assert "JobState=TIMEOUT" in slurm("scontrol", "show", "job", first)
    assert (
        "DUE TO TIME LIMIT"
        in (desk.folder / "clusters" / "late" / "logs" / f"dlpr-late-{first}.err").read_text()
    )
    desk.end(run)
    desk.check("late", before)
