"""Folders that are full, foreign, damaged, owned or left behind: nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import zarr
from cli_desk import JOB, RESOURCE, STORE, Desk, crystals, finished, leftovers
from numpy.typing import NDArray

from dlpr.store.folder import FORMAT_VERSION
from dlpr.store.lease import PATIENCE, Lease

# the output folder --------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["file", "file/results"])
def test_folder_that_cannot_be(desk: Desk, output: str) -> None:
    (desk.path / "file").write_text("mine")
    for command in ("plan", "run"):
        message = desk.refuses(command, "job.yaml", "--output", output, code=STORE)
        assert "cannot write" in message
        assert "file" in message
        assert "--output" in message
    assert (desk.path / "file").read_text() == "mine"
    desk.does("plan", "job.yaml", "--output", "elsewhere")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_folder_without_permission(desk: Desk) -> None:
    locked = desk.path / "locked"
    locked.mkdir(mode=0o500)
    message = desk.refuses("plan", "job.yaml", "--output", "locked/results", code=STORE)
    assert "Permission denied" in message
    locked.chmod(0o700)
    desk.does("plan", "job.yaml", "--output", "locked/results")


@pytest.mark.parametrize("command", ["status", "work", "clean", "info"])
def test_folder_that_is_none_of_dlpr(desk: Desk, command: str) -> None:
    (desk.path / "empty").mkdir()
    for folder in ("empty", "nowhere"):
        said = desk.says(command, folder)
        assert said.code in (JOB, STORE)  # click's own where the folder has to exist
        assert folder in said.err
        assert "Traceback" not in said.err
    assert list((desk.path / "empty").iterdir()) == []
    assert not (desk.path / "nowhere").exists()
    assert command == "info" or "dlpr run" in desk.refuses(command, "empty", code=STORE)


def test_something_else_is_named_like_the_result(desk: Desk, expected: NDArray[np.float64]) -> None:
    desk.does("plan", "job.yaml")
    place = desk.results / "rigidity.zarr"
    for make in (lambda: place.mkdir(), lambda: place.write_text("mine")):
        make()
        message = desk.refuses("work", "results", code=STORE)
        assert str(place) in message
        assert "move that away" in message
        assert leftovers(desk) == []
        place.rename(desk.path / f"kept-{place.is_dir()}")
    assert (desk.path / "kept-False").read_text() == "mine"
    desk.does("work", "results")
    np.testing.assert_array_equal(desk.of_probe("lpr"), expected)


def test_clean_removes_a_link_that_was_left_behind(done: Desk) -> None:
    desk = done
    (desk.results / ".rigidity.zarr.1-aa.partial").symlink_to("work")
    desk.does("clean", "results")
    assert leftovers(desk) == []
    assert np.isfinite(desk.of_probe("lpr")).all()


def test_store_of_a_newer_format(done: Desk) -> None:
    desk = done
    path = desk.results / "job.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"format_version": 99}))
    before = desk.receipts()
    for command in ("work", "status", "info", "clean"):
        message = desk.refuses(command, "results", code=STORE)
        assert "format 99" in message
        assert f"up to {FORMAT_VERSION}" in message
        assert "newer" in message
    for command in ("plan", "run"):
        assert "format 99" in desk.refuses(command, "job.yaml", code=STORE)
    assert json.loads(path.read_text())["format_version"] == 99
    assert desk.receipts() == before
    path.write_text(json.dumps(record))
    desk.does("work", "results")
    assert desk.receipts() == before


@pytest.mark.parametrize("place", ["rows-*/plan.json", "result-*/rigidity.zarr/zarr.json"])
def test_stage_of_a_newer_format(done: Desk, place: str) -> None:
    desk = done
    path = desk.stage(place)
    record = json.loads(path.read_text())
    record.get("attributes", record)["format_version"] = 99
    path.write_text(json.dumps(record))
    message = desk.refuses("info", path.parent, code=STORE)
    assert "format 99" in message
    assert f"up to {FORMAT_VERSION}" in message


# disk full ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "word"), [(errno.ENOSPC, "disk is full"), (errno.EDQUOT, "quota is used up")]
)
def test_disk_full(
    desk: Desk,
    expected: NDArray[np.float64],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    word: str,
) -> None:
    desk.does("plan", "job.yaml")
    real, left = os.fsync, 0

    def fsync(file: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(number, os.strerror(number))
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    kept = desk.receipts()
    for calls in (0, 20, 75, 75, 75, 12, 12, 30, 12):
        left = calls
        message = desk.refuses("work", "results", code=RESOURCE)
        assert word in message
        assert str(desk.results) in message
        assert "dlpr clean" in message
        assert kept.items() <= desk.receipts().items()  # nothing finished is lost
        assert leftovers(desk) == []
        assert not (desk.results / "rigidity.zarr").exists()
        kept = desk.receipts()
    assert len(kept) > 6  # it failed in one stage after another
    monkeypatch.setattr(os, "fsync", real)
    desk.does("work", "results")
    assert kept.items() <= desk.receipts().items()
    np.testing.assert_array_equal(desk.of_probe("lpr"), expected)


def test_write_that_the_system_cuts_short(desk: Desk, expected: NDArray[np.float64]) -> None:
    """A limit on the size of files makes real writes fail, in the middle."""
    desk.does("plan", "job.yaml")
    limit = 3000  # bytes: the plans are smaller, a part of the factor is larger
    process = desk.start(
        "work",
        "results",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    said = finished(process)
    assert said.code == STORE, said
    assert "File too large" in said.message
    assert "run the same command again" in said.message
    assert not (desk.results / "rigidity.zarr").exists()
    np.testing.assert_array_equal(desk.finish(), expected)


# damage -------------------------------------------------------------------------------------------


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


PIECES = ["features", "rows", "rigidity"]
DAMAGED = {
    "index": ("index-*/parts/000000.npz", ["structures"]),
    "structures": ("structures-*/parts/000000.zarr/position/c.0.0", PIECES),
    "structures' metadata": ("structures-*/parts/000000.zarr/position/zarr.json", PIECES),
    "features": ("features-*/parts/000000.zarr/environment_feature/c.0.0", ["rows"]),
    "features' metadata": (
        "features-*/parts/000000.zarr/environment_feature/zarr.json",
        ["rows"],
    ),
    "features' root": ("features-*/parts/000000.zarr/zarr.json", ["rows"]),
    "rows": ("rows-*/parts/000000.npz", ["hessian"]),
    "hessian": ("hessian-*/parts/000001.npz", ["factor"]),
    "factor": ("factor-*/parts/000000.npz", ["rigidity"]),
    "rigidity": ("rigidity-*/parts/000000.npz", ["result"]),
    "result": ("result-*/rigidity.zarr/probe/environment_lpr/c.0", []),
    "result's metadata": ("result-*/rigidity.zarr/probe/environment_lpr/zarr.json", []),
    "result's root": ("result-*/rigidity.zarr/zarr.json", []),
}
"""What is damaged, and the stages that are computed anew and so read it (the result always is)."""


@pytest.mark.parametrize("damage", [_flip, Path.unlink])
@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_data(
    done: Desk, expected: NDArray[np.float64], name: str, damage: Callable[[Path], None]
) -> None:
    desk = done
    pattern, readers = DAMAGED[name]
    for stage in readers:
        for folder in desk.results.glob(f"work/{stage}-*"):
            shutil.rmtree(folder)
    victim = sorted(desk.results.glob(f"work/{pattern}"))[0]
    whole, before = victim.read_bytes(), desk.receipts()
    damage(victim)
    if damage is _flip and victim.name != "zarr.json":
        columns = desk.does("status", "results", "--verify").splitlines()
        stage = victim.relative_to(desk.results / "work").parts[0]
        (line,) = [line for line in columns if stage in line]
        task = str(int(victim.stem)) if victim.suffix == ".npz" else "0"
        assert [cell.strip() for cell in line.split("│")][4] == task, line
        assert "done anew by the next run that reads them" in "\n".join(columns)
    out = desk.does("work", "results")
    assert victim.read_bytes() == whole
    np.testing.assert_array_equal(desk.of_probe("lpr"), expected)
    redone = [place for place, time in before.items() if desk.receipts()[place] != time]
    assert len(redone) <= 1  # that task alone
    noted = "note: " in out and "damaged or gone" in out
    if damage is _flip and name != "result's root":
        assert noted
        assert len(redone) == 1


def test_flipped_bit_is_noticed_by_a_reader_of_the_result(done: Desk) -> None:
    _flip(done.results / "rigidity.zarr" / "probe" / "environment_lpr" / "c.0")
    with pytest.raises(ValueError, match="checksum"):
        done.of_probe("lpr")


def test_receipt_whose_data_vanished(done: Desk, expected: NDArray[np.float64]) -> None:
    desk = done
    parts = desk.stage("rows-*/parts")
    before = desk.receipts()
    shutil.rmtree(parts)
    assert "0/1" in desk.does("status", "results")
    desk.does("work", "results")
    assert parts.exists()
    changed = [place for place, time in before.items() if desk.receipts()[place] != time]
    assert [place.split("/")[1].split("-")[0] for place in changed] == ["rows"]
    np.testing.assert_array_equal(desk.of_probe("lpr"), expected)


@pytest.mark.parametrize("name", ["summary.json", "live.json", "events.jsonl"])
def test_record_that_is_cut_short(done: Desk, name: str) -> None:
    desk = done
    before, summary = desk.receipts(), (desk.results / "summary.json").read_bytes()
    _cut(desk.results / name)
    desk.does("status", "results")
    desk.does("work", "results")
    assert desk.receipts() == before
    assert (desk.results / "summary.json").read_bytes() == summary


def test_job_record_that_is_cut_short(desk: Desk) -> None:
    desk.finish()
    before = desk.receipts()
    _cut(desk.results / "job.json")
    assert "no readable job.json" in desk.refuses("work", "results", code=STORE)
    desk.does("run", "job.yaml")
    assert desk.receipts() == before


# owners and interrupts ----------------------------------------------------------------------------

_DIE_AS_OWNER = """
import os, pathlib, sys
from dlpr.store.lease import Lease
Lease(pathlib.Path(sys.argv[1])).acquire()
os.kill(os.getpid(), 9)
"""


def test_dead_owner_is_taken_over_without_asking(desk: Desk) -> None:
    desk.finish()
    path = desk.results / "owner.json"
    subprocess.run([sys.executable, "-c", _DIE_AS_OWNER, path], check=False)
    record = json.loads(path.read_text())
    other_boot = {**record, "pid": os.getpid(), "boot": "of another time"}
    for text in (json.dumps(record), json.dumps(other_boot)):
        path.write_text(text)
        start = time.monotonic()
        desk.does("run", "job.yaml")
        assert time.monotonic() - start < PATIENCE
        assert not path.exists()


def test_live_owner_is_named(desk: Desk) -> None:
    desk.finish()
    lease = Lease(desk.results / "owner.json")
    lease.acquire()
    with lease.held():
        for arguments in (["run", "job.yaml"], ["ingest", "job.yaml"], ["clean", "results"]):
            message = desk.refuses(*arguments, code=STORE)
            assert f"process {os.getpid()}" in message
            assert "results belongs to a run that is alive" in message
            assert "--output" in message
        assert f"process {os.getpid()}" in desk.does("status", "results")
        desk.does("work", "results")  # helps a run that is going on
    desk.does("clean", "results")


def test_interrupt_of_a_run(desk: Desk) -> None:
    """Ctrl-C as a terminal sends it, to every process of the run."""
    desk.put("train.xyz", crystals(64))
    desk.job["numerics"] = {"block_environments": 8, "task_environments": 8}
    desk.save()
    process = desk.start("run", "job.yaml", start_new_session=True)
    deadline = time.monotonic() + 60
    while len(list(desk.results.glob("work/features-*/receipts/*.json"))) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGSTOP)
    message = desk.refuses("run", "job.yaml", code=STORE)  # two commands at once
    assert f"process {process.pid}" in message
    os.kill(process.pid, signal.SIGCONT)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    os.killpg(process.pid, signal.SIGINT)
    said = finished(process)
    assert said.code == 130
    assert said.err.strip() == (
        "Interrupted. Finished tasks are kept: the same command continues."
    ), said.err
    psutil.wait_procs(children, timeout=5)
    assert not [child for child in children if child.is_running()]
    assert not (desk.results / "owner.json").exists()
    before = desk.receipts()
    assert not list(desk.results.glob("work/result-*/receipts/*"))
    again = finished(desk.start("run", "job.yaml"))
    assert again.code == 0, again
    assert before.items() <= desk.receipts().items()  # no finished task ran again
    assert zarr.open_group(str(desk.results / "rigidity.zarr"), mode="r")["probe"]
