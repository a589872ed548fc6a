"""Who owns a folder, when owners race, die, fall silent or come back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from dlpr.errors import OwnerError
from dlpr.store import lease as module
from dlpr.store.lease import Lease

RACER = """
import sys, time
from pathlib import Path
from dlpr.store.lease import Lease
folder, start = Path(sys.argv[1]), float(sys.argv[2])
while time.time() < start:
    pass
lease = Lease(folder / "owner.json")
won = lease.try_acquire()
with (folder / "racers").open("a") as file:
    file.write("x" if won else "-")
while won and len((folder / "racers").read_text()) < int(sys.argv[3]):
    time.sleep(0.05)
if won:
    lease.release()
"""


def write_owner(path: Path, **changes: Any) -> dict[str, Any]:
    """An owner's file as another process would have left it."""
    lease = Lease(path)
    assert lease.try_acquire()
    owner = json.loads(path.read_text()) | changes
    lease.release()
    path.write_text(json.dumps(owner))
    return owner


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def race(folder: Path, n: int = 8) -> int:
    start = str(time.time() + 2.0)
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, str(folder), start, str(n)])
        for _ in range(n)
    ]
    assert [racer.wait(60) for racer in racers] == [0] * n
    return (folder / "racers").read_text().count("x")


@pytest.fixture(autouse=True)
def quick_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT", 0.05)


def test_one_of_eight_processes_gets_a_free_lease(tmp_path: Path) -> None:
    assert race(tmp_path) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["racers"]


def test_one_of_eight_processes_gets_a_dead_owners_lease(tmp_path: Path) -> None:
    write_owner(tmp_path / "owner.json", pid=dead_pid())
    assert race(tmp_path) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["racers"]


def test_takers_of_one_dead_owner_never_both_win(tmp_path: Path) -> None:
    path = tmp_path / "owner.json"
    for _ in range(20):
        write_owner(path, pid=dead_pid())
        leases = [Lease(path) for _ in range(6)]
        won: list[Lease] = []
        gate = threading.Barrier(len(leases))

        def take(lease: Lease, gate: threading.Barrier = gate, won: list[Lease] = won) -> None:
            gate.wait()
            if lease.try_acquire():
                won.append(lease)

        threads = [threading.Thread(target=take, args=(lease,)) for lease in leases]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert json.loads(path.read_text())["token"] == won[0]._token
        won[0].release()
        assert list(tmp_path.iterdir()) == []


def test_a_slow_taker_does_not_take_from_a_quick_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "owner.json"
    write_owner(path, pid=dead_pid())
    slow, quick = Lease(path), Lease(path)
    take_over = Lease._take_over

    def after_another(self: Lease, dead: dict[str, Any]) -> bool:
        monkeypatch.setattr(Lease, "_take_over", take_over)
        assert quick.try_acquire()
        return take_over(self, dead)

    monkeypatch.setattr(Lease, "_take_over", after_another)
    assert not slow.try_acquire()
    with quick.held():
        assert json.loads(path.read_text())["token"] == quick._token
    assert not quick.lost


def test_a_live_owner_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    owner, other = Lease(tmp_path / "owner.json"), Lease(tmp_path / "owner.json")
    owner.acquire()
    with owner.held():
        start = time.monotonic()
        with pytest.raises(OwnerError, match=rf"process {os.getpid()} on .*SLURM job 4711"):
            other.acquire()
        assert time.monotonic() - start < 2.0
    other.acquire()
    other.release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["gone", "zombie", "number given anew", "rebooted", "no number"])
def test_a_dead_owner_is_taken_over_at_once(tmp_path: Path, how: str) -> None:
    path = tmp_path / "owner.json"
    zombie = None
    match how:
        case "gone":
            write_owner(path, pid=dead_pid())
        case "zombie":
            command = [sys.executable, "-c", RACER, str(tmp_path), "0", "die"]
            zombie = subprocess.Popen(command)
            while not path.exists():
                time.sleep(0.02)
            zombie.kill()
            os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
        case "number given anew":
            write_owner(path, started="1")
        case "rebooted":
            write_owner(path, boot="another")
        case "no number":
            write_owner(path, pid=None)
    lease = Lease(path)
    assert lease.try_acquire()
    lease.release()
    if zombie is not None:
        zombie.wait()


@pytest.mark.parametrize("changes", [{"host": "elsewhere"}, {"pids": "pid:[1]"}])
def test_an_owner_elsewhere_that_counts_is_refused_and_named(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    path = tmp_path / "owner.json"
    owner = write_owner(path, pid=dead_pid(), **changes)
    stop = threading.Event()

    def count() -> None:
        while not stop.wait(0.3):
            owner["counter"] = f"{int(owner['counter']) + 1:012d}"
            partial = tmp_path / "new"
            partial.write_text(json.dumps(owner))
            partial.replace(path)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        with pytest.raises(OwnerError, match=f"process {owner['pid']} on {owner['host']}"):
            Lease(path, patience=30.0).acquire()
    finally:
        stop.set()
        thread.join()
    assert json.loads(path.read_text())["token"] == owner["token"]


@pytest.mark.parametrize("content", [None, "", "not json"])
def test_a_silent_owner_elsewhere_is_taken_over_after_patience(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    path = tmp_path / "owner.json"
    write_owner(path, host="elsewhere")
    if content is not None:
        path.write_text(content)
    monkeypatch.setattr(time, "time", lambda: 0.0)  # nobody looks at the wall clock
    os.utime(path, (4e9, 4e9))
    lease = Lease(path, patience=1.0)
    assert not lease.try_acquire()
    start = time.monotonic()
    lease.acquire()
    assert 0.5 < time.monotonic() - start < 10.0
    lease.release()
    assert list(tmp_path.iterdir()) == []


def test_trying_now_and_then_is_watching(tmp_path: Path) -> None:
    path = tmp_path / "owner.json"
    owner = write_owner(path, host="elsewhere")
    lease = Lease(path, patience=0.5)
    assert not lease.try_acquire()
    time.sleep(0.6)
    path.write_text(json.dumps(owner | {"counter": 1}))
    assert not lease.try_acquire()
    time.sleep(0.6)
    assert lease.try_acquire()
    lease.release()


def test_a_taker_that_died_taking_over_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "owner.json"
    dead = write_owner(path, pid=dead_pid())
    guard = tmp_path / f".owner.json.{dead['token']}.partial"
    guard.write_text(json.dumps(dead | {"token": "taker"}))
    lease = Lease(path)
    assert lease.try_acquire()
    lease.release()
    assert list(tmp_path.iterdir()) == []


def test_the_counter_advances_and_is_always_whole(tmp_path: Path) -> None:
    path = tmp_path / "owner.json"
    lease = Lease(path)
    lease.acquire()
    with lease.held():
        inode, seen = path.stat().st_ino, set()
        deadline = time.monotonic() + 30.0
        while len(seen) < 12 and time.monotonic() < deadline:
            seen.add(json.loads(path.read_text())["counter"])
        assert len(seen) == 12
        assert path.stat().st_ino == inode
    assert not lease.lost


def test_a_lost_lease_is_noticed_and_not_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "owner.json"
    suspended = Lease(path)
    suspended.acquire()
    taken = tmp_path / "new"
    taken.write_text(json.dumps(json.loads(path.read_text()) | {"token": "taker"}))
    suspended._write(suspended._file, 7)
    taken.replace(path)
    suspended._write(suspended._file, 8)  # a beat that was on its way
    deadline = time.monotonic() + 10.0
    while not suspended.lost and time.monotonic() < deadline:
        time.sleep(0.02)
    assert suspended.lost
    suspended.release()
    assert json.loads(path.read_text())["token"] == "taker"


def test_errors_of_a_beat_are_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = Lease(tmp_path / "owner.json")
    lease.acquire()
    with lease.held():
        with monkeypatch.context() as patch:
            patch.setattr(module, "read_json", lambda _: (_ for _ in ()).throw(OSError(5, "EIO")))
            time.sleep(0.3)
        before = json.loads(lease.path.read_text())["counter"]
        time.sleep(0.5)
        assert json.loads(lease.path.read_text())["counter"] > before
    assert not lease.lost
