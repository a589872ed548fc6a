"""The text of job scripts, for what profiles may say. Needs no SLURM."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from dlpr.clusters.registry import cluster_folder
from dlpr.clusters.script import HEADROOM, ask, scheduler_script, worker_preview
from dlpr.errors import ClusterError, JobError
from dlpr.job import Job
from dlpr.job.cluster import Cluster, Slurm, load_profile, walltime_seconds

GIB = 1 << 30
BASE = {"cores": 4, "memory": "8GiB"}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without any settings."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("DLPR_CLUSTERS", str(tmp_path / "clusters"))
    (tmp_path / "config" / "dlpr").mkdir(parents=True)
    return tmp_path


def worker(**spec: Any) -> str:
    return worker_preview(ask(Slurm.model_validate({**BASE, **spec})), Path("/shared/c"), "c")


def scheduler(**spec: Any) -> str:
    return scheduler_script(ask(Slurm.model_validate({**BASE, **spec})), Path("/shared/c"), "c")


def directives(text: str) -> dict[str, str]:
    lines = re.findall(r"^#SBATCH (-\w|--[\w-]+)[ =]?(.*)$", text, re.MULTILINE)
    return dict(lines)


def command(text: str) -> list[str]:
    return shlex.split(text.partition("exec")[2].replace("\\\n", " "))


def test_a_worker_is_one_process_with_less_memory_than_its_job() -> None:
    text = worker()
    words = command(text)
    assert directives(text)["--cpus-per-task"] == "4"
    assert directives(text)["--mem"] == "8192M"
    assert words[words.index("--nthreads") + 1] == "4"
    assert "--nworkers" not in words
    limit = ask(Slurm.model_validate(BASE)).size.memory
    assert limit == 8 * GIB - HEADROOM - 8 * GIB // 20
    share = float(words[words.index("--resources") + 1].removeprefix("dlpr_nbytes="))
    assert 0 < share < limit


def test_nothing_but_tls_and_no_open_dashboard() -> None:
    words = command(worker(interface="ib0"))
    assert words[words.index("--protocol") + 1] == "tls://"
    for option in ("--tls-ca-file", "--tls-cert", "--tls-key"):
        assert words[words.index(option) + 1].startswith("/shared/c/tls/")
    assert "--no-dashboard" in words
    assert words[words.index("--dashboard-address") + 1].startswith("127.0.0.1:")
    assert words[words.index("--interface") + 1] == "ib0"


@pytest.mark.parametrize(
    ("spec", "key", "value"),
    [
        ({"partition": "gpu"}, "-p", "gpu"),
        ({"account": "phys"}, "-A", "phys"),
        ({"walltime": "02:00:00"}, "-t", "02:00:00"),
        ({"constraint": "zen4"}, "--constraint", "zen4"),
        ({"directives": ["--requeue", "--qos=long"]}, "--qos", "long"),
        ({"directives": "--exclusive"}, "--exclusive", ""),
    ],
)
def test_what_a_site_asks_for_is_asked_for(spec: dict[str, Any], key: str, value: str) -> None:
    assert directives(worker(**spec))[key] == value


def test_prologue_follows_our_settings_and_so_may_change_them() -> None:
    prologue = ["module load gcc", "export RAYON_NUM_THREADS=2"]
    text = worker(prologue=prologue, environment={"SITE": "c d"})
    lines = text.splitlines()
    ours = lines.index("export RAYON_NUM_THREADS=4")
    assert lines.index("export SITE='c d'") < lines.index("module load gcc")
    assert ours < lines.index("export RAYON_NUM_THREADS=2") < lines.index("exec \\")
    assert "export DASK_CONFIG=/shared/c/dask.yaml" in lines


@pytest.mark.parametrize(
    ("container", "words"),
    [
        ("/images/dlpr.sif", ["apptainer", "exec", "/images/dlpr.sif", "python3"]),
        ("singularity exec -B /scratch a.sif", ["singularity", "exec", "-B", "/scratch", "a.sif"]),
    ],
)
def test_a_container_runs_its_own_python(container: str, words: list[str]) -> None:
    assert command(worker(container=container))[: len(words)] == words


def test_the_kernel_of_unlike_nodes_is_the_users() -> None:
    assert "export OPENBLAS_CORETYPE=Haswell" in worker(blas_kernel="Haswell")
    assert "export OPENBLAS_CORETYPE=Haswell" in scheduler(blas_kernel="Haswell")
    assert "OPENBLAS_CORETYPE" not in scheduler()


@pytest.mark.parametrize(
    ("walltime", "margin"), [("00:30:00", 90), ("1-00:00:00", 4320), ("00:01:00", 30)]
)
def test_a_worker_leaves_before_its_walltime(walltime: str, margin: int) -> None:
    words = command(worker(walltime=walltime))
    life, stagger = (
        int(words[words.index(option) + 1].removesuffix("s"))
        for option in ("--lifetime", "--lifetime-stagger")
    )
    assert walltime_seconds(walltime) - (life + stagger) >= margin
    shortest = ask(Slurm.model_validate({**BASE, "walltime": walltime})).size.lifetime
    assert shortest is not None
    assert 0 < shortest <= life - stagger


def test_without_a_walltime_it_is_jobqueues() -> None:
    assert directives(worker())["-t"] == "00:30:00"
    assert ask(Slurm.model_validate(BASE)).size.lifetime is not None


@pytest.mark.parametrize(
    "spec",
    [
        {"partition": "a\nrm -rf ~"},
        {"directives": ["--x\n#SBATCH --y"]},
        {"environment": {"A B": "c"}},
        {"environment": {"A": "b\nc"}},
    ],
)
def test_a_profile_adds_no_lines_of_shell_but_its_prologue(spec: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="pattern"):
        Slurm.model_validate({**BASE, **spec})


def test_a_folder_that_no_script_could_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLPR_CLUSTERS", "/shared/my clusters")
    with pytest.raises(ClusterError, match="no spaces"):
        cluster_folder("x")


def test_a_scheduler_has_a_job_of_its_own_or_all_of_one() -> None:
    alone = directives(scheduler(scheduler={"memory": "3GiB", "walltime": "3-00:00:00"}, jobs=9))
    assert (alone["--ntasks"], alone["--mem"], alone["--time"]) == ("1", "3072M", "3-00:00:00")
    whole = directives(scheduler(within="allocation", jobs=9))
    assert (whole["--ntasks"], whole["--cpus-per-task"]) == ("10", "4")
    assert whole["--mem-per-cpu"] == "2048M"


def test_gaps_are_filled_from_jobqueue_yaml() -> None:
    import dask

    with dask.config.set({"jobqueue.slurm.cores": 3, "jobqueue.slurm.memory": "6GiB"}):
        found = ask(Slurm())
    assert (found.cores, found.memory) == (3, 6 * GIB)
    with pytest.raises(ClusterError, match=r"jobqueue\.yaml says cores and memory"):
        ask(Slurm())


def test_a_profile_is_the_ground_that_the_job_builds_on(home: Path) -> None:
    file = home / "config" / "dlpr" / "clusters.yaml"
    file.write_text("site: {slurm: {partition: big, cores: 2, memory: 4GiB, jobs: 3}}\n")
    job = {"train": {"files": "a"}, "test": {"t": "train"}, "descriptor": {"soap": {}}}
    job |= {"model": {"linear": {"regularizer": 1.0}}}
    found = Job.from_dict({**job, "cluster": {"slurm": {"profile": "site", "jobs": 7}}})
    spec = found.cluster.spec
    assert (spec.partition, spec.jobs, spec.memory) == ("big", 7, 4 * GIB)
    file.unlink()
    again = Job.from_dict(found.resolved())  # needs no profile any more
    assert again.cluster.spec == spec


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        ("site: {slurm: {}}", "sit", "Did you mean 'site'"),
        ("site: {slurm: {partion: x}}", "site", "did you mean `partition`"),
        ("site: {slurm: {walltime: soon}}", "site", "walltime"),
        ("site: {pbs: {}}", "site", "kind 'pbs'"),
        ("site: 3", "site", "exactly one of"),
        ("site: {slurm: {walltime: '00:00:10'}}", "site", "a minute at least"),
    ],
)
def test_profiles_that_cannot_be_used(home: Path, text: str, name: str, said: str) -> None:
    (home / "config" / "dlpr" / "clusters.yaml").write_text(text + "\n")
    with pytest.raises(JobError, match=re.escape(said)) as caught:
        load_profile(name)
    assert "clusters.yaml" in str(caught.value)


def test_a_cluster_to_attach_to_is_a_name() -> None:
    assert Cluster.model_validate({"attach": "carbon"}).spec.name == "carbon"
