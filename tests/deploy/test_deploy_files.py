"""What `deploy/` gives to a site: it parses, loads and prints scripts, and is nobody's own."""

from __future__ import annotations

import configparser
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dlpr.clusters.script import ask, scheduler_script, worker_preview
from dlpr.job.cluster import SchedulerPlace, Slurm, load_profile
from dlpr.job.text import read_mapping

DEPLOY = Path(__file__).parents[2] / "deploy"
PROFILES = DEPLOY / "clusters.yaml"
SLURM = [name for name, kinds in read_mapping(PROFILES).items() if "slurm" in kinds]
SCRIPTS = sorted([*DEPLOY.glob("*.sbatch"), *DEPLOY.glob("*.sh")])
FILES = sorted(path for path in DEPLOY.iterdir() if path.is_file())


@pytest.fixture(autouse=True)
def _profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The profiles where a user keeps them."""
    place = tmp_path / "config" / "dlpr" / "clusters.yaml"
    place.parent.mkdir(parents=True)
    place.write_bytes(PROFILES.read_bytes())
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.mark.parametrize("name", SLURM)
def test_a_profile_prints_the_scripts_of_worker_and_scheduler(name: str, tmp_path: Path) -> None:
    found = ask(load_profile(name).spec)
    spec = found.spec
    worker = worker_preview(found, tmp_path, "carbon")
    scheduler = scheduler_script(found, tmp_path, "carbon")
    assert f"#SBATCH -p {spec.partition}\n" in worker
    assert f"--mem={found.memory >> 20}M\n" in worker
    assert f"#SBATCH --time={spec.scheduler.walltime or spec.walltime}\n" in scheduler
    for line in spec.prologue:
        assert f"{line}\n" in worker
        assert f"{line}\n" in scheduler
    for one in spec.directives:
        assert f"#SBATCH {one}\n" in worker
        assert (f"#SBATCH {one}\n" in scheduler) == (spec.within == "allocation")
    for text in (worker, scheduler):
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_there_are_profiles_of_slurm_and_of_one_machine() -> None:
    assert len(SLURM) >= 6
    assert load_profile("workstation").kind == "local"


def test_every_key_is_explained_once() -> None:
    explained = re.findall(r"^#(?: {1}| {3})([a-z_]+) {2,}\S", PROFILES.read_text(), re.MULTILINE)
    assert sorted(explained) == sorted([*Slurm.model_fields, *SchedulerPlace.model_fields])


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_whole(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_names_somebodys_folder(path: Path) -> None:
    assert not re.findall(r"(?:^|[^\w.])/(?:home|root|Users|work|tmp/w)/\S*", path.read_text())


def settings(path: Path) -> configparser.ConfigParser:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(path.read_text())
    return unit


@pytest.mark.parametrize("name", ["dlpr-nightly", "dlpr-audit"])
def test_the_unit_stops_softly_and_the_timer_is_enabled(name: str) -> None:
    service = settings(DEPLOY / f"{name}.service")["Service"]
    assert service["KillMode"] == "mixed"  # workers hear nothing: dlpr finishes their tasks
    assert service["SuccessExitStatus"] == "75"
    assert "%h" in service["ExecStart"]
    timer = settings(DEPLOY / f"{name}.timer")
    assert timer["Install"]["WantedBy"] == "timers.target"
    assert timer["Timer"]["OnCalendar"]


def lines(path: Path) -> Iterator[str]:
    return (line for line in path.read_text().splitlines() if line and not line.startswith("#"))


TABLES = [f"{name}.{kind}" for name in ("nightly", "audit") for kind in ("cron", "scrontab")]


@pytest.mark.parametrize("name", TABLES)
def test_a_nightly_table_has_one_line(name: str) -> None:
    (line,) = lines(DEPLOY / name)
    assert re.fullmatch(r"0 [23] \* \* \* [^%]+", line)  # cron takes % for the end of a line


@pytest.mark.parametrize(
    ("do", "call"), [({}, "dlpr run"), ({"DO": "audit run"}, "dlpr audit run")]
)
def test_a_job_does_what_it_is_told(do: dict[str, str], call: str, tmp_path: Path) -> None:
    process = begin("run.sbatch", tmp_path, STATUS="0", **do)
    assert end(process, tmp_path) == (0, [])
    assert (tmp_path / "calls").read_text().splitlines()[0] == f"{call} carbon"


PROGRAM = """#!/usr/bin/env bash
echo "dlpr $*" >>calls
[[ $STATUS == wait ]] || exit "$STATUS"
trap 'sleep 0.3; touch finished; exit 75' USR1 TERM
touch ready
while :; do sleep 0.05; done
"""
QUEUE = """#!/usr/bin/env bash
[[ -e finished ]] || early=" too early"
echo "$(basename "$0") $*$early" >>calls
"""


def begin(script: str, folder: Path, **variables: str) -> subprocess.Popen[str]:
    """Start a job script; stand-ins for dlpr and SLURM write down their calls."""
    for name, text in (("dlpr", PROGRAM), ("scontrol", QUEUE), ("sbatch", QUEUE)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "SLURM_JOB_ID": "7", **variables}
    process = subprocess.Popen(
        ["bash", str(DEPLOY / script), "carbon"],
        cwd=folder,
        env={**environment, "SLURM_ARRAY_TASK_ID": "3"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while variables["STATUS"] == "wait" and not (folder / "ready").exists():
        assert process.poll() is None
        time.sleep(0.02)
    return process


def end(process: subprocess.Popen[str], folder: Path) -> tuple[int, list[str]]:
    process.communicate(timeout=20)
    return process.returncode, (folder / "calls").read_text().splitlines()[1:]


AGAIN = [
    ("run.sbatch", "requeue", "scontrol requeue 7"),
    ("run.sbatch", "resubmit", "sbatch --dependency=singleton"),
    ("work-array.sbatch", "requeue", "scontrol requeue 7"),
    ("work-array.sbatch", "resubmit", "sbatch --array=3 --dependency=afterany:7"),
]


@pytest.mark.parametrize(("script", "again", "call"), AGAIN)
def test_a_signalled_job_waits_for_dlpr_and_comes_back(
    script: str, again: str, call: str, tmp_path: Path
) -> None:
    process = begin(script, tmp_path, STATUS="wait", AGAIN=again)
    process.send_signal(signal.SIGUSR1)
    status, calls = end(process, tmp_path)
    assert status == 0
    assert len(calls) == 1
    assert calls[0].startswith(call)
    assert "too early" not in calls[0]


@pytest.mark.parametrize("script", ["run.sbatch", "work-array.sbatch"])
def test_a_cancelled_job_does_not_come_back(script: str, tmp_path: Path) -> None:
    process = begin(script, tmp_path, STATUS="wait")
    os.killpg(process.pid, signal.SIGTERM)  # SLURM tells all processes of the job
    assert end(process, tmp_path) == (75, [])


@pytest.mark.parametrize("script", ["run.sbatch", "work-array.sbatch"])
@pytest.mark.parametrize(
    ("status", "variables"),
    [("0", {}), ("3", {}), ("75", {"AGAIN": "no"}), ("75", {"SLURM_RESTART_COUNT": "100"})],
    ids=["done", "failed", "no", "too often"],
)
def test_a_job_does_not_come_back(
    script: str, status: str, variables: dict[str, str], tmp_path: Path
) -> None:
    process = begin(script, tmp_path, STATUS=status, **variables)
    assert end(process, tmp_path) == (int(status), [])
