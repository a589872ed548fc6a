"""`dlpr run` as a user types it: time, memory, overhead, beside the serial script."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import yaml

from dlpr.bench.frames import SMALL, SOAP, TRAIN, carbon_job, small_frames, write_carbon
from dlpr.bench.measure import Bench, Json, Row, timed
from dlpr.bench.overhead import split, tasks_of
from dlpr.bench.peers import FeatomicAlone
from dlpr.engine.estimate import estimate
from dlpr.engine.executors import WorkExecutor
from dlpr.engine.pipeline import Pipeline
from dlpr.engine.workspace import Workspace
from dlpr.job.cluster import n_cores

COLUMNS = 715
_INTERVAL = 0.2
_SERIAL_TRIAL = 10 * SMALL
_MEMORY_SHARE = 0.8
"""Of the machine's free memory, that the serial script may take."""
_AGAIN = 3


@dataclass(frozen=True)
class Run:
    """What a run took.

    Attributes
    ----------
    seconds : float
    again : list of float
        Seconds of runs after it, with nothing changed.
    overhead : dict of str to float
        Core-seconds in which no task computed, see `dlpr.bench.overhead`.
    worker_nbytes : int
        Largest resident memory of a worker.
    promised_nbytes : int
        What `dlpr plan` said of it.
    nbytes : int
        Largest resident memory of all processes together.
    """

    seconds: float
    again: list[float]
    overhead: dict[str, float]
    worker_nbytes: int
    promised_nbytes: int
    nbytes: int


def run(folder: Path, workers: int) -> Run:
    """Run the job of a folder of `write_carbon` from nothing, then again with nothing changed."""
    job = carbon_job(folder, workers, output=f"results-{workers}")
    path = folder / f"job-{workers}.yaml"
    path.write_text(yaml.safe_dump(job.resolved()))
    scout = Workspace(folder / f"plan-{workers}", WorkExecutor())
    promised = estimate(Pipeline(job, scout)).peak_nbytes
    command = [sys.executable, "-m", "dlpr", "run", str(path)]
    watched = _Watched(command)
    begin = time.time()
    seconds = timed(watched.finish)
    lines = (folder / f"results-{workers}" / "events.jsonl").read_text().splitlines()
    again = [
        timed(lambda: subprocess.run(command, capture_output=True, check=True))
        for _ in range(_AGAIN)
    ]
    events = [json.loads(line) for line in lines]
    costs = [event["receipt"]["cost"] for event in events if event["kind"] == "task"]
    return Run(
        seconds,
        again,
        split(tasks_of(events), workers, begin, begin + seconds),
        max(cost["peak_nbytes"] for cost in costs),
        promised,
        watched.nbytes,
    )


class _Watched:
    """A command whose memory is watched, that of its children included.

    Pages that several processes map count in each of them.
    """

    def __init__(self, command: list[str]) -> None:
        self.nbytes = 0
        self._command = command

    def finish(self) -> str:
        """Run it to its end; returns what it printed."""
        process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        done = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(process.pid, done))
        watcher.start()
        output = process.communicate()[0].decode()
        done.set()
        watcher.join()
        if process.returncode:
            raise RuntimeError(f"{' '.join(self._command)} failed:\n{output}")
        return output

    def _watch(self, pid: int, done: threading.Event) -> None:
        while not done.wait(_INTERVAL):
            try:
                root = psutil.Process(pid)
                family = [root, *root.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            self.nbytes = max(self.nbytes, sum(map(_rss, family)))


def _rss(process: Any) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def measure(bench: Bench) -> Iterator[Row]:
    """Runs of every size on all cores, the smallest on one as well, and the serial script."""
    n_train = TRAIN * bench.sizes.train_frames
    found: dict[int, Run] = {}
    for n in bench.sizes.environments:
        folder = bench.scratch / f"carbon-{n}"
        size: Json = {
            "columns": COLUMNS,
            "environments": write_carbon(folder, n, bench.sizes.train_frames),
            "train environments": n_train,
            "workers": n_cores(),
        }
        found[n] = run(folder, n_cores())
        yield from _figures(found[n], size)
        if n == bench.sizes.environments[0] and n_cores() > 1:
            yield from _one_worker(folder, found[n], size)
    if len(found) > 1:
        peaks = [one.worker_nbytes for one in found.values()]
        size = {"environments": f"{min(found):,} to {max(found):,}"}
        value = max(peaks) / min(peaks)
        yield Row("memory of a worker, largest run / smallest", value, "", size, "", 1.1, True)
    with FeatomicAlone(SOAP, small_frames(bench.sizes.frames)) as features:
        seconds = [features.seconds() for _ in range(bench.sizes.repeats)]
    alone = median(seconds) / (SMALL * bench.sizes.frames)
    for n, one in found.items():
        size = {"environments": n, "workers": n_cores()}
        bound = alone * (n + n_train)
        samples = {"dlpr": [one.seconds], "featomic": [bound]}
        name, against = "featomic alone / whole run", "featomic of both sets, all cores"
        yield Row(name, bound / one.seconds, "", size, against, samples=samples)
    yield from _serial(bench, found, alone)


def _figures(done: Run, size: Json) -> Iterator[Row]:
    samples = {"seconds": [done.seconds]}
    yield Row("whole run", done.seconds, "s", size, samples=samples)
    samples = {"seconds": done.again}
    yield Row("second run", median(done.again), "s", size, "", 2.0, True, samples)
    peak, promise = done.worker_nbytes, done.promised_nbytes
    note = f"{peak / 2**20:.0f} MiB of {promise / 2**20:.0f}"
    against = "what `dlpr plan` says"
    yield Row(
        "peak memory of a worker / promise", peak / promise, "", size, against, 1.0, True, {}, note
    )
    whole, against = done.seconds * size["workers"], "the run's core-seconds"
    value = sum(done.overhead.values()) / whole
    note = "all core-seconds but the CPU time inside tasks; its parts follow"
    yield Row("overhead", value, "", size, against, 0.05, True, {}, note)
    for part, spent in done.overhead.items():
        seconds = {"core-seconds": [spent]}
        yield Row(f"overhead: {part}", spent / whole, "", size, against, samples=seconds)


def _one_worker(folder: Path, all_cores: Run, size: Json) -> Iterator[Row]:
    alone = run(folder, 1)
    yield Row("whole run", alone.seconds, "s", {**size, "workers": 1})
    samples = {"dlpr": [all_cores.seconds], "one worker": [alone.seconds]}
    floor = 0.9 * n_cores()
    value = alone.seconds / all_cores.seconds
    yield Row(f"{n_cores()} workers", value, "", size, "1 worker", floor, samples=samples)


def _serial(bench: Bench, found: dict[int, Run], alone: float) -> Iterator[Row]:
    """The serial script at the largest size that time and memory allow, scaled to each run.

    ``alone`` is what an environment costs featomic on all cores, in seconds.
    """
    largest = max(found)
    folder = bench.scratch / f"carbon-{largest}"
    try:
        trial = _script(folder, _SERIAL_TRIAL)
        n = _largest(trial, bench.sizes.serial_seconds, largest)
        script = _script(folder, n) if n > trial["environments"] else trial
    except RuntimeError as error:
        note = str(error).strip().splitlines()[-1]
        yield Row("whole run, times as fast", None, "", {}, "serial script", 6.0, note=note)
        return
    slope = script["test_seconds"] / script["environments"]
    growth = (script["peak_nbytes"] - script["fixed_nbytes"]) / script["environments"]
    note = f"script run at {script['environments']:,} environments, scaled per environment"
    bound = f"; featomic alone on all cores: {slope / alone:.1f} times as fast"
    yield Row(
        "serial script", 1e3 * slope, "ms/environment", {"environments": script["environments"]}
    )
    for n_environments, one in found.items():
        size = {"environments": n_environments, "workers": n_cores()}
        seconds = script["fixed_seconds"] + slope * n_environments
        samples = {"dlpr": [one.seconds], "script, scaled": [seconds]}
        value, against = seconds / one.seconds, "ASE + featomic + scikit-matter, one process"
        yield Row(
            "whole run, times as fast", value, "", size, against, 6.0, False, samples, note + bound
        )
        nbytes = script["fixed_nbytes"] + growth * n_environments
        value = one.nbytes / nbytes
        said = f"{one.nbytes / 2**20:.0f} of {nbytes / 2**20:.0f} MiB; {note}"
        yield Row("memory of all processes", value, "", size, against, 0.1, True, {}, said)


def _script(folder: Path, n_environments: int) -> Json:
    command = [sys.executable, "-m", "dlpr.bench.serial", str(folder), str(n_environments)]
    report: Json = json.loads(_Watched(command).finish().splitlines()[-1])
    return report


def _largest(trial: Json, seconds: float, most: int) -> int:
    """Environments that fit the seconds, the machine's memory, and the files."""
    slope = trial["test_seconds"] / trial["environments"]
    growth = 2 * 8 * 1300.0  # bytes of an environment: featomic's rows, and scikit-matter's copy
    free = _MEMORY_SHARE * psutil.virtual_memory().available - trial["fixed_nbytes"]
    return int(min((seconds - trial["fixed_seconds"]) / slope, free / growth, most))
