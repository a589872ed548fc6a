"""Tasks on real clusters and in real processes, some of which are killed."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import dask
import distributed  # noqa: F401  (its defaults come before what a test sets)
import fake_stage
import psutil
import pytest
from waiting import until

from dlpr.clusters.local import LocalStarter
from dlpr.engine import dask_executor, probe
from dlpr.engine.dask_executor import DaskExecutor
from dlpr.engine.executors import ClusterExecutor, WorkExecutor
from dlpr.engine.memory import BASE_NBYTES
from dlpr.engine.starter import Running
from dlpr.errors import ClusterError, CorruptPartError, ResourceError
from dlpr.store.folder import StageFolder
from dlpr.units import format_bytes

HERE = Path(__file__).parent
MIB = 1 << 20
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(HERE),
    "DASK_DISTRIBUTED__WORKER__PRELOAD": "fake_stage",
}


def in_background(action: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=action)
    thread.start()
    return thread


def workers() -> list[psutil.Process]:
    """Worker processes of clusters embedded in this process."""
    return [p for p in living(psutil.Process()) if "spawn_main" in " ".join(p.cmdline())]


def living(parent: psutil.Process) -> list[psutil.Process]:
    return [p for p in parent.children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterExecutor]:
    scratch = tmp_path_factory.mktemp("scratch")
    executor = ClusterExecutor(LocalStarter(2, 2, BASE_NBYTES + 100 * MIB, scratch))
    with dask.config.set({"distributed.worker.preload": ["fake_stage"]}):
        assert list(executor.run(fake_stage.make(scratch, 1), [0], MIB))
    yield executor
    mine = workers()
    executor.close()
    assert mine
    until(lambda: not any(p.is_running() for p in mine))


def test_tasks_that_do_not_fit_together_wait(embedded: ClusterExecutor, tmp_path: Path) -> None:
    folder = fake_stage.make(tmp_path, 8, seconds=0.3)
    receipts = list(embedded.run(folder, folder.missing(), 60 * MIB))
    assert sorted(r.task for r in receipts) == list(range(8))
    ends = {task: at for task, _, at in fake_stage.notes(folder, "end")}
    running = sorted((at, ends[task], pid) for task, pid, at in fake_stage.notes(folder, "begin"))
    assert len({pid for *_, pid in running}) == 2
    for start, end, pid in running:
        together = [s for s, e, p in running if p == pid and s < end and e > start]
        assert len(together) == 1, "two threads, but memory for one task"


def test_tasks_that_fit_run_together(embedded: ClusterExecutor, tmp_path: Path) -> None:
    folder = fake_stage.make(tmp_path, 4, seconds=1.5)
    list(embedded.run(folder, folder.missing(), 40 * MIB))
    begin, end = fake_stage.notes(folder, "begin"), fake_stage.notes(folder, "end")
    assert max(at for *_, at in begin) < min(at for *_, at in end)


def test_a_task_that_fits_no_worker_is_refused(embedded: ClusterExecutor, tmp_path: Path) -> None:
    folder = fake_stage.make(tmp_path, 1)
    said = rf"{format_bytes(BASE_NBYTES + 100 * MIB)} .*{format_bytes(BASE_NBYTES)} and 101\.0 MiB"
    with pytest.raises(ResourceError, match=said):
        list(embedded.run(folder, [0], 101 * MIB))
    assert not fake_stage.notes(folder, "begin")


def test_errors_for_users_arrive_as_themselves_and_others_are_tried_twice(
    embedded: ClusterExecutor, tmp_path: Path
) -> None:
    folder = fake_stage.make(tmp_path, 2, raises={"0": "corrupt", "1": "oserror"})
    with pytest.raises(CorruptPartError) as caught:
        list(embedded.run(folder, [0], MIB))
    assert (caught.value.folder, caught.value.task) == (str(folder.path), 0)
    with pytest.raises(ClusterError, match=r"task 1 of .* failed 2 times: .*input\.xyz"):
        list(embedded.run(folder, [1], MIB))
    assert len([task for task, _, _ in fake_stage.notes(folder, "begin") if task == 1]) == 2
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    assert (str(again), again.task) == (str(caught.value), 0)


def test_a_task_that_outgrows_its_promise_is_named(
    embedded: ClusterExecutor, tmp_path: Path
) -> None:
    """With what it held, its worker's limit, and what was promised; its fellows are done."""
    folder = fake_stage.make(tmp_path, 6, seconds=0.2, greedy=3)
    promised = format_bytes(BASE_NBYTES + 60 * MIB)
    limit = format_bytes(BASE_NBYTES + 100 * MIB)
    said = rf"task 3 of .* failed 2 times: it held .* of a limit of {limit} .* promised {promised}"
    with pytest.raises(ClusterError, match=said):
        list(embedded.run(folder, folder.missing(), 60 * MIB))
    begun = Counter(task for task, _, _ in fake_stage.notes(folder, "begin"))
    assert begun[3] == 2
    rest = [task for task in folder.missing() if task != 3]
    assert len(list(embedded.run(folder, rest, 60 * MIB))) == len(rest)
    assert not list((folder.path / "deaths").iterdir())


def test_a_worker_without_the_files_is_refused(
    embedded: ClusterExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fake_stage.make(tmp_path, 2)
    assert embedded._running is not None
    executor = DaskExecutor(embedded._running)
    write = probe.write_json
    monkeypatch.setattr(probe, "write_json", lambda path, content: write(path, {}))
    with pytest.raises(ClusterError, match=r"does not see .* one file system"):
        list(executor.run(folder, [0], MIB))
    monkeypatch.setattr(probe, "write_json", write)
    here = probe.versions()
    monkeypatch.setattr(probe, "versions", lambda: {**here, "featomic": "0.1"})
    with pytest.raises(ClusterError, match=r"other versions: featomic .*\(here 0\.1\)"):
        list(executor.run(folder, [0], MIB))
    assert not fake_stage.notes(folder, "begin")


def test_without_workers_somebody_says_why(
    embedded: ClusterExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Empty:
        def scheduler_info(self, n_workers: int) -> dict[str, Any]:
            return {"workers": {}}

        def submit(self, *arguments: object, **options: object) -> Any:
            return type("Pending", (), {"add_done_callback": lambda self, call: None})()

        def cancel(self, futures: object) -> None:
            pass

    for name in ("_LOOK", "_PATIENCE"):
        monkeypatch.setattr(dask_executor, name, 0.01)
    folder, notes = fake_stage.make(tmp_path, 2), list[str]()
    words = iter(["the queue is full", "the queue is full", ""])
    running = Running(Empty(), lambda: None, explain=lambda: next(words))
    with pytest.raises(ClusterError, match="no worker for"):
        list(DaskExecutor(running).run(folder, [0], MIB, notes.append))
    assert [note.partition(": ")[2] for note in notes] == ["the queue is full"] * 2
    hopeless = Running(Empty(), lambda: None, failure=lambda: "invalid partition")
    with pytest.raises(ClusterError, match="invalid partition"):
        list(DaskExecutor(hopeless).run(folder, [0], MIB))


def embedded_workers(embedded: ClusterExecutor, count: int) -> None:
    """Wait for so many workers."""
    assert embedded._running is not None
    embedded._running.client.wait_for_workers(count, timeout=60)


def test_a_killed_worker_is_replaced(embedded: ClusterExecutor, tmp_path: Path) -> None:
    embedded_workers(embedded, 2)
    folder = fake_stage.make(tmp_path, 6, seconds=0.5)
    killed: list[int] = []

    def kill() -> None:
        until(lambda: bool(fake_stage.notes(folder, "end")))
        seen = len(fake_stage.notes(folder, "begin"))
        until(lambda: len(fake_stage.notes(folder, "begin")) > seen)
        _, pid, _ = fake_stage.notes(folder, "begin")[-1]  # it has just begun
        killed.append(pid)
        os.kill(pid, signal.SIGKILL)

    thread = in_background(kill)
    receipts = list(embedded.run(folder, folder.missing(), 60 * MIB))
    thread.join()
    assert sorted(r.task for r in receipts) == list(range(6))
    assert folder.missing() == []
    again = Counter(task for task, _, _ in fake_stage.notes(folder, "begin"))
    done = {task for task, pid, _ in fake_stage.notes(folder, "end") if pid in killed}
    assert sum(again.values()) == 7
    assert all(again[task] == 1 for task in done)
    until(lambda: len(workers()) == 2)
    embedded._running.client.wait_for_workers(2, timeout=60)
    spill = embedded._running.client.run(dask.config.get, "distributed.worker.memory.spill")
    assert list(spill.values()) == [False, False], "of the new worker too"


def test_embedded_cluster_listens_on_loopback_with_tls(embedded: ClusterExecutor) -> None:
    every = [psutil.Process(), *workers()]
    listening = [c.laddr for p in every for c in p.net_connections("inet") if c.status == "LISTEN"]
    assert len(listening) >= 5, "scheduler, two nannies, two workers"
    assert {address.ip for address in listening} == {"127.0.0.1"}
    info = embedded._running.client.scheduler_info(n_workers=-1)
    addresses = [info["address"], *info["workers"], *(w["nanny"] for w in info["workers"].values())]
    assert all(address.startswith("tls://127.0.0.1:") for address in addresses)
    ports = {
        info["services"]["dashboard"],
        *(w["services"]["dashboard"] for w in info["workers"].values()),
    }
    for port in ports:
        with pytest.raises(HTTPError, match="404") as caught:
            urlopen(f"http://127.0.0.1:{port}/health")
        caught.value.close()


DRIVER = """
import sys, fake_stage, dask
from pathlib import Path
from typing import Any
from dlpr.clusters.local import LocalStarter
from dlpr.engine.executors import ClusterExecutor
from dlpr.engine.memory import BASE_NBYTES
if __name__ == "__main__":
    folder = fake_stage.StageFolder(Path(sys.argv[1]))
    executor = ClusterExecutor(LocalStarter(2, 1, BASE_NBYTES + (100 << 20), folder.path))
    try:
        for receipt in executor.run(folder, folder.missing(), 1 << 20):
            pass
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        executor.close()
"""


def driver(folder: StageFolder, tmp_path: Path) -> subprocess.Popen[str]:
    """A process with an embedded cluster, in a group of its own as a shell would start it."""
    (tmp_path / "driver.py").write_text(DRIVER)
    return subprocess.Popen(
        [sys.executable, str(tmp_path / "driver.py"), str(folder.path)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("how", ["nothing", "ctrl-c", "kill"])
def test_embedded_cluster_leaves_no_process_and_no_word(tmp_path: Path, how: str) -> None:
    folder = fake_stage.make(tmp_path, 4, seconds=0.2 if how == "nothing" else 3.0)
    process = driver(folder, tmp_path)
    until(lambda: bool(fake_stage.notes(folder, "begin")))
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    if how == "ctrl-c":
        os.killpg(process.pid, signal.SIGINT)
    elif how == "kill":
        process.kill()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == {"nothing": 0, "ctrl-c": 130, "kill": -signal.SIGKILL}[how]
    until(lambda: not any(p.is_running() and p.status() != "zombie" for p in children))
    if how != "kill":
        assert output == ""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[list[subprocess.Popen[bytes]], Path]]:
    """A scheduler and a worker with its nanny, in processes of their own."""
    file = tmp_path / "scheduler.json"
    where = ["--scheduler-file", str(file)]
    scheduler = ["scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", *where]
    worker = ["worker", "--host", "127.0.0.1", "--nthreads", "1", "--no-dashboard", *where]
    worker += ["--local-directory", str(tmp_path), "--memory-limit", "1GiB"]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "dask", *command],
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for command in (scheduler, worker)
    ]
    until(file.exists)
    yield started, file
    for process in started:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        process.wait()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_killed_nanny_delays_and_a_killed_scheduler_ends_the_run(
    cluster: tuple[list[subprocess.Popen[bytes]], Path], tmp_path: Path
) -> None:
    from distributed import Client

    (scheduler, worker), file = cluster
    folder = fake_stage.make(tmp_path / "work", 30, seconds=0.5)
    with Client(scheduler_file=str(file), set_as_default=False) as client:
        receipts = DaskExecutor(Running(client, client.close)).run(folder, folder.missing(), MIB)
        next(receipts)
        for process in [*psutil.Process(worker.pid).children(recursive=True), worker]:
            process.kill()
        again = subprocess.Popen(worker.args, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
        try:
            next(receipts)
            next(receipts)
            os.kill(scheduler.pid, signal.SIGKILL)
            start = time.monotonic()
            with pytest.raises(ClusterError, match="run the same command again"):
                list(receipts)
            assert time.monotonic() - start < 60
        finally:
            for process in [*psutil.Process(again.pid).children(recursive=True), again]:
                process.kill()
            again.wait()
    assert 2 <= len(folder.missing()) <= 27


WORKER = """
import sys, fake_stage
from pathlib import Path
from typing import Any
from dlpr.engine.executors import WorkExecutor
folder = fake_stage.StageFolder(Path(sys.argv[1]))
for _ in WorkExecutor(int(sys.argv[2])).run(folder, folder.missing(), 0):
    pass
"""


def work(folder: StageFolder, rank: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(folder.path), str(rank)], env=ENVIRONMENT
    )


def test_processes_side_by_side_do_every_task_once(tmp_path: Path) -> None:
    folder = fake_stage.make(tmp_path, 30, seconds=0.05)
    for process in [work(folder, rank) for rank in range(4)]:
        assert process.wait(60) == 0
    assert folder.missing() == []
    begun = fake_stage.notes(folder, "begin")
    assert sorted(task for task, _, _ in begun) == list(range(30))
    assert len({pid for _, pid, _ in begun}) > 1
    assert list((folder.path / "claims").iterdir()) == []


def test_a_killed_process_is_replaced_by_its_fellows(tmp_path: Path) -> None:
    folder = fake_stage.make(tmp_path, 6, seconds=1.0)
    victim = work(folder, 0)
    until(lambda: bool(fake_stage.notes(folder, "begin")))
    victim.kill()  # and not waited for: a zombie is as dead
    ((task, _, _),) = fake_stage.notes(folder, "begin")
    start = time.monotonic()
    done = list(WorkExecutor(0).run(folder, folder.missing(), 0))
    assert time.monotonic() - start < 6 * 1.0 + 3.0, "the dead owner's claim was waited for"
    assert sorted(r.task for r in done) == list(range(6))
    assert Counter(t for t, _, _ in fake_stage.notes(folder, "begin"))[task] == 2
    victim.wait()
