"""Runs that are killed in the middle, and what must hold of the runs that continue them.

By hand, for as many random kills as one likes::

    python tests/chaos/kills.py --worker 7 --scheduler 7 --everything 6
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import ase.build
import ase.io
import numpy as np
import psutil
import yaml

JOB = {
    "train": {"files": ["train.xyz"], "group_by": "config_type"},
    "test": {"test": {"files": ["test.xyz"]}, "train": "train"},
    "descriptor": {
        "soap": {
            "cutoff": {"radius": 5.0, "smoothing": {"type": "ShiftedCosine", "width": 0.5}},
            "density": {"type": "Gaussian", "width": 0.4},
            "basis": {
                "type": "TensorProduct",
                "max_angular": 6,
                "radial": {"type": "Gto", "max_radial": 5},
            },
        }
    },
    "model": {"linear": {"regularizer": 1e-6}},
    "numerics": {"block_environments": 64, "task_environments": 128},
}
KINDS = ("worker", "scheduler", "everything")
PATIENCE = 240.0


def write_inputs(folder: Path) -> None:
    """Structures of a small job with some sixty tasks of a tenth of a second."""
    rng = np.random.default_rng(7)
    for name, n_frames in (("train", 24), ("test", 36)):
        frames = []
        for k in range(n_frames):
            atoms = ase.build.bulk("Si", "diamond", a=5.43 * rng.uniform(0.95, 1.1), cubic=True)
            atoms = atoms.repeat((2, 2, 2))
            atoms.positions += rng.normal(0, 0.1 + 0.01 * k, atoms.positions.shape)
            atoms.info["config_type"] = "AB"[k % 2]
            frames.append(atoms)
        ase.io.write(folder / f"{name}.xyz", frames, format="extxyz")


def write_job(folder: Path, output: Path, workers: int) -> Path:
    """A job file that writes to ``output``."""
    job = {**JOB, "output": str(output)}
    job["cluster"] = {"local": {"workers": workers, "memory_per_worker": "2GiB"}}
    path = folder / f"{output.name}.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


DRIVER = """
import sys
from distributed import Client
import dlpr
with Client(sys.argv[2], timeout=30, set_as_default=False) as client:
    dlpr.run(sys.argv[1], client=client)
"""


def environment() -> dict[str, str]:
    """The environment of every process: no BLAS setting of this shell, quick to give up."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS")}
    return {
        **kept,
        "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "10s",
        "RAYON_NUM_THREADS": "1",
    }


@dataclass
class Fleet:
    """Processes of one run: the one whose exit ends it, and the others by their role."""

    main: subprocess.Popen[bytes]
    others: list[subprocess.Popen[bytes]]

    def kill_all(self) -> None:
        """SIGKILL every process and child."""
        for process in [self.main, *self.others]:
            for child in _children(process.pid):
                _kill(child)
            _kill(process.pid)
        for process in [self.main, *self.others]:
            process.wait()


def _children(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, *arguments], stdout=file, stderr=file, env=environment()
        )


def start_embedded(job: Path, log: Path) -> Fleet:
    """`dlpr run` with its own scheduler and workers."""
    return Fleet(_start(["-m", "dlpr", "run", str(job)], log), [])


def start_attached(job: Path, workers: int, folder: Path, log: Path) -> Fleet:
    """A scheduler, workers and a driver, each a process of its own."""
    file = folder / f"scheduler-{time.time_ns()}.json"
    common = ["--scheduler-file", str(file), "--no-dashboard"]
    scheduler = _start(
        ["-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", *common], log
    )
    hands = [
        _start(
            [
                *("-m", "distributed.cli.dask_worker", "--host", "127.0.0.1", "--nthreads", "1"),
                *("--memory-limit", "2GiB", "--death-timeout", "20", *common),
                *("--local-directory", str(folder)),
            ],
            log,
        )
        for _ in range(workers)
    ]
    while not file.exists():
        time.sleep(0.05)
    address = json.loads(file.read_text())["address"]
    return Fleet(_start(["-c", DRIVER, str(job), address], log), [scheduler, *hands])


def receipts(output: Path) -> dict[str, bytes]:
    """All receipts of a run by their path."""
    found = output.glob("work/*/receipts/0*.json")
    return {str(path.relative_to(output)): path.read_bytes() for path in found}


def published(output: Path) -> dict[str, bytes]:
    """Every chunk of the published result."""
    root = (output / "rigidity.zarr").resolve()
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("c.*")}


def wait_for_receipts(output: Path, count: int, fleet: Fleet) -> None:
    """Until a run has so many receipts."""
    deadline = time.monotonic() + PATIENCE
    while len(receipts(output)) < count:
        if fleet.main.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the run ended with {fleet.main.poll()} before {count} receipts")
        time.sleep(0.01)


def kill_one(kind: str, fleet: Fleet, rng: np.random.Generator) -> None:
    """Strike one role."""
    if kind == "everything":
        fleet.kill_all()
    elif kind == "scheduler":
        _kill(fleet.others[0].pid)
    else:
        hands = [
            pid
            for pid in _children(fleet.main.pid)
            if "spawn_main" in " ".join(psutil.Process(pid).cmdline())
        ]
        _kill(int(rng.choice(hands)))


def disturbed_run(
    kind: str, workers: int, expected: dict[str, bytes], folder: Path, seed: int
) -> dict[str, object]:
    """Kill one role of a run at a random receipt; continue; compare.

    Returns
    -------
    dict
        When the kill came, and how the disturbed run ended.
    """
    rng = np.random.default_rng(seed)
    output, log = folder / f"{kind}-{seed}", folder / f"{kind}-{seed}.log"
    job = write_job(folder, output, workers)
    attached = kind == "scheduler"
    fleet = start_attached(job, workers, folder, log) if attached else start_embedded(job, log)
    total = N_RECEIPTS
    count = int(rng.integers(1, total - 1))
    wait_for_receipts(output, count, fleet)
    kill_one(kind, fleet, rng)
    try:
        code = fleet.main.wait(timeout=PATIENCE)
    finally:
        fleet.kill_all()
    text = log.read_text()
    before = receipts(output)
    if kind == "worker":
        assert code == 0, f"the run did not survive a worker's death: {text[-2000:]}"
    else:
        assert code != 0
        assert len(before) < total, "the kill came too late"
        again = start_embedded(job, log)
        assert again.main.wait(timeout=PATIENCE) == 0, log.read_text()[-2000:]
    after = receipts(output)
    redone = [name for name, content in before.items() if after.get(name) != content]
    assert not redone, f"finished tasks were done again: {redone}"
    assert published(output) == expected, "the result differs from that of an undisturbed run"
    return {"kind": kind, "workers": workers, "at": f"{count}/{total}", "exit code": code}


N_RECEIPTS = 0


def undisturbed(folder: Path) -> dict[str, bytes]:
    """The result that every other run must equal."""
    global N_RECEIPTS
    write_inputs(folder)
    output = folder / "undisturbed"
    fleet = start_embedded(write_job(folder, output, 1), folder / "undisturbed.log")
    code = fleet.main.wait(timeout=PATIENCE)
    assert code == 0, (folder / "undisturbed.log").read_text()
    N_RECEIPTS = len(receipts(output))
    return published(output)


def main() -> None:
    """Kill as often as asked, with 1, 2 and 3 workers in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    for kind in KINDS:
        parser.add_argument(f"--{kind}", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        expected = undisturbed(folder)
        seed = options.seed
        for kind in KINDS:
            for k in range(getattr(options, kind)):
                report = disturbed_run(kind, 1 + k % 3, expected, folder, seed)
                sys.stdout.write(json.dumps(report) + "\n")
                sys.stdout.flush()
                seed += 1


if __name__ == "__main__":
    main()
