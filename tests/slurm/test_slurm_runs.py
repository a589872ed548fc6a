"""Runs on SLURM whose workers, nodes and schedulers go away: bits and work stay."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from slurm_desk import Desk, slurm
from waiting import until as until_soon

ROOT = Path(__file__).parents[2]
until = partial(until_soon, seconds=120.0)


def test_a_run_starts_its_own_workers_and_cleans_up(desk: Desk) -> None:
    text = desk.said("run", desk.job("own", {"slurm": {"profile": "dev"}}))
    desk.check("own")
    assert "rigidity.zarr" in text
    until(lambda: not slurm("squeue", "-h"))
    assert list((desk.folder / "clusters").glob("*")) == []


def test_workers_cancelled_at_random_are_replaced(desk: Desk) -> None:
    run = desk.dlpr("run", desk.job("cancelled", {"slurm": {"profile": "dev"}}))
    rng, before, struck = np.random.default_rng(5), [], set[str]()
    for count in (3, 20, 40):
        before.append(desk.wait_for_receipts("cancelled", count))
        jobs = until(lambda: set(desk.worker_jobs()) - struck)
        struck.add(str(rng.choice(sorted(jobs))))
        slurm("scancel", *struck)
    desk.end(run)
    desk.check("cancelled", *before)


def test_jobs_that_slurm_kills_for_memory_are_replaced(desk: Desk) -> None:
    """Beside each worker something takes all memory of the job after a while."""
    hog = "x = bytearray(3 << 30); import time; time.sleep(99)"
    eater = f"(sleep 8; exec {sys.executable} -c '{hog}') &"
    desk.profile("starved", jobs=1, prologue=[eater])
    desk.said("cluster", "start", "starved", "-p", "starved")
    run = desk.dlpr("run", desk.job("starved"), "--cluster", "starved")
    first = until(desk.worker_jobs)
    before = desk.wait_for_receipts("starved", 10)
    until(lambda: set(desk.worker_jobs()) - set(first))
    logs = desk.folder / "clusters" / "starved" / "logs"
    assert "memory limit" in (logs / f"dlpr-starved-{first[0]}.err").read_text()
    desk.profile("starved", jobs=1)
    desk.end(run)
    desk.check("starved", before)


def test_workers_reach_the_end_of_their_walltime(desk: Desk) -> None:
    """They leave by themselves before SLURM ends them; others come."""
    desk.profile("brief", jobs=1, walltime="00:01:00")
    desk.said("cluster", "start", "brief", "-p", "brief")
    seen = set[str]()
    runs = 0
    latest = time.monotonic() + 180.0
    while len(seen) < 2 and time.monotonic() < latest:
        run = desk.dlpr("run", desk.job(f"brief-{runs}"), "--cluster", "brief")
        while run.poll() is None:
            seen |= set(desk.worker_jobs())
        desk.end(run)
        desk.check(f"brief-{runs}")
        runs += 1
    assert len(seen) > 1
    logs = (desk.folder / "clusters" / "brief" / "logs").glob("dlpr-brief-*.err")
    assert not any("TIME LIMIT" in log.read_text() for log in logs)


def test_a_drained_node_is_explained_and_waited_for(desk: Desk) -> None:
    nodes = ",".join(slurm("sinfo", "-h", "-N", "-p", "debug", "-o", "%N").split())
    slurm("scontrol", "update", f"nodename={nodes}", "state=drain", "reason=test")
    try:
        desk.said("cluster", "start", "drained", "-p", "dev")
        state = until(lambda: _explained(desk, "drained"))
        assert "PENDING" in state
        assert desk.worker_jobs() == []
    finally:
        slurm("scontrol", "update", f"nodename={nodes}", "state=resume")
    desk.said("run", desk.job("drained"), "--cluster", "drained")
    desk.check("drained")


def _explained(desk: Desk, name: str) -> str:
    text = desk.said("cluster", "status", name)
    return text if "no workers:" in text else ""


def test_the_schedulers_job_is_cancelled(desk: Desk) -> None:
    desk.profile("placed", jobs=1, scheduler={"place": "job", "memory": "1GiB"})
    desk.said("cluster", "start", "placed", "-p", "placed")
    run = desk.dlpr("run", desk.job("orphan"), "--cluster", "placed")
    before = desk.wait_for_receipts("orphan", 10)
    slurm("scancel", "--name=dlpr-placed-scheduler")
    text = desk.end(run, code=6)
    assert "run the same command again" in text
    desk.said("cluster", "stop", "placed")
    desk.said("cluster", "start", "placed", "-p", "placed")
    desk.said("run", desk.job("orphan"), "--cluster", "placed")
    desk.check("orphan", before)


def test_one_allocation_holds_scheduler_and_workers(desk: Desk) -> None:
    desk.profile("within", jobs=1, within="allocation", scheduler={"place": "job"})
    desk.said("cluster", "start", "within", "-p", "within")
    run = desk.dlpr("run", desk.job("within"), "--cluster", "within")
    before = desk.wait_for_receipts("within", 5)
    [job] = slurm("squeue", "-h", "-o", "%i").split()
    steps = [line for line in slurm("squeue", "-h", "-s", "-o", "%i").split() if "atch" not in line]
    slurm("scancel", *steps)
    desk.end(run)
    assert slurm("squeue", "-h", "-o", "%i").split() == [job]
    desk.check("within", before)


def test_a_driver_leaves_when_asked_and_comes_back(desk: Desk) -> None:
    """What deploy/run.sbatch does before its walltime."""
    desk.said("cluster", "start", "stays", "-p", "dev")
    run = desk.dlpr("run", desk.job("asked"), "--cluster", "stays")
    desk.wait_for_receipts("asked", 5)
    os.kill(run.pid, signal.SIGUSR1)
    desk.end(run, code=75)
    before = desk.receipts("asked")
    desk.said("run", desk.job("asked"), "--cluster", "stays")
    desk.check("asked", before)


def test_a_drivers_job_is_requeued(desk: Desk) -> None:
    """deploy/run.sbatch, whose job SLURM starts anew in the middle."""
    desk.said("cluster", "start", "stays", "-p", "dev")
    job, script = desk.job("requeued"), ROOT / "deploy" / "run.sbatch"
    number = slurm(
        *(
            "sbatch",
            "--parsable",
            "--job-name=dlpr-driver",
            "--cpus-per-task=1",
            "--mem=1G",
            "--time=10",
            "--requeue",
        ),
        *("--output", str(desk.folder / "driver-%j"), "--open-mode=append"),
        f"--export=ALL,PATH={Path(sys.executable).parent}:{os.environ['PATH']},"
        + ",".join(f"{k}={desk.environment[k]}" for k in ("XDG_CONFIG_HOME", "DLPR_CLUSTERS")),
        *(str(script), str(job), "--cluster", "stays"),
    ).strip()
    before = desk.wait_for_receipts("requeued", 10)
    slurm("scontrol", "requeue", number)
    until(lambda: (desk.folder / "requeued" / "rigidity.zarr").exists())
    until(lambda: number not in slurm("squeue", "-h", "-o", "%A"))
    desk.check("requeued", before)


def test_fewer_workers_are_wanted_in_mid_run(desk: Desk) -> None:
    desk.said("cluster", "start", "shrinks", "-p", "dev")
    until(lambda: len(desk.worker_jobs()) == 2)
    run = desk.dlpr("run", desk.job("shrinks"), "--cluster", "shrinks")
    before = desk.wait_for_receipts("shrinks", 5)
    desk.said("cluster", "scale", "shrinks", "1")
    until(lambda: len(desk.worker_jobs()) == 1)
    desk.end(run)
    assert len(desk.worker_jobs()) == 1
    desk.check("shrinks", before)


def test_a_scheduler_that_is_killed_leaves_no_jobs_behind(desk: Desk) -> None:
    desk.said("cluster", "start", "dead", "-p", "dev")
    until(lambda: len(desk.worker_jobs()) == 2)
    found = json.loads((desk.folder / "clusters" / "dead" / "scheduler.json").read_text())
    os.kill(found["pid"], signal.SIGKILL)
    desk.said("cluster", "stop", "dead")
    until(lambda: not slurm("squeue", "-h"))
    run = desk.dlpr("run", desk.job("killed", {"slurm": {"profile": "dev"}}))
    desk.wait_for_receipts("killed", 5)
    run.kill()
    run.communicate()
    left = desk.worker_jobs()
    assert left
    desk.said("cluster", "start", "next", "-p", "dev")
    until(lambda: not set(left) & set(slurm("squeue", "-h", "-o", "%A").split()))
    assert [path.name for path in (desk.folder / "clusters").iterdir()] == ["next"]


def test_nobody_else_is_let_in(desk: Desk) -> None:
    """Neither by the scheduler nor by workers: with no certificate, or another cluster's."""
    desk.said("cluster", "start", "ours", "-p", "dev")
    desk.said("cluster", "start", "theirs", "-p", "dev", "--jobs", "1")
    until(lambda: len(desk.state("ours").get("workers", [])) == 2)
    addresses = [one["address"] for one in desk.state("ours")["workers"]]
    found = json.loads((desk.folder / "clusters" / "ours" / "scheduler.json").read_text())
    for address in [*addresses, found["address"]]:
        port = int(address.rpartition(":")[2])
        assert speaks(port, desk.folder / "clusters" / "ours" / "tls")
        assert not speaks(port, desk.folder / "clusters" / "theirs" / "tls")
        assert not speaks(port, None)


def speaks(port: int, tls: Path | None) -> bool:
    """Whether a port lets somebody in who trusts everybody and shows a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # says at once that it is refused
    if tls is not None:
        context.load_cert_chain(tls / "cert.pem", tls / "key.pem")
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as plain:
            context.wrap_socket(plain).close()
    except (ssl.SSLError, ConnectionError):
        return False
    return True


def test_two_clusters_side_by_side(desk: Desk) -> None:
    runs = []
    for name in ("left", "right"):
        desk.profile(name, jobs=1)
        desk.said("cluster", "start", name, "-p", name)
        runs.append(desk.dlpr("run", desk.job(name), "--cluster", name))
    for run in runs:
        desk.end(run)
    for name in ("left", "right"):
        desk.check(name)


def test_a_cluster_that_waits_for_its_scheduler_is_there(desk: Desk) -> None:
    later = {"place": "job", "memory": "1GiB", "directives": ["--begin=now+1hour"]}
    desk.profile("later", jobs=1, scheduler=later)
    said = desk.said("cluster", "start", "later", "-p", "later", "--wait", "1s")
    assert "dlpr cluster status later" in said
    assert "PENDING (BeginTime)" in desk.said("cluster", "status", "later")
    again = desk.said("cluster", "start", "later", "-p", "later", "--wait", "1s", code=6)
    assert "dlpr cluster stop later" in again
    assert len(slurm("squeue", "-h").splitlines()) == 1
    desk.said("cluster", "stop", "later")
    until(lambda: not slurm("squeue", "-h"))


def test_work_as_a_job_array_without_dask(desk: Desk) -> None:
    job = desk.job("array")
    desk.said("plan", job)
    command = f"exec {sys.executable} -m dlpr work {desk.folder / 'array'}"
    number = slurm(
        *("sbatch", "--parsable", "--job-name=dlpr-array", "--array=0-2", "--mem=1G"),
        *("--output", str(desk.folder / "%x-%A_%a")),
        *(f"--export=ALL,XDG_CONFIG_HOME={desk.folder}", "--wrap", command),
    ).strip()
    before = desk.wait_for_receipts("array", 10)
    slurm("scancel", f"{number}_1")
    until(lambda: not slurm("squeue", "-h"))
    desk.check("array", before)


@pytest.mark.parametrize("directive", ["--partition=nowhere", "--mem=900G", "--qos=none --foo"])
def test_slurms_own_words_where_it_refuses(desk: Desk, directive: str) -> None:
    desk.profile("refused", jobs=1, directives=[directive])
    text = desk.end(desk.dlpr("run", desk.job("none", {"slurm": {"profile": "refused"}})), code=6)
    assert "sbatch" in text
    assert any(word in text for word in ("invalid", "unrecognized", "not available", "error"))
    assert slurm("squeue", "-h") == ""
