"""Where the core-seconds of a run go in which no task computes.

The whole is workers times the seconds from the start of `dlpr run` to its end. What counts as
computing is the CPU time inside tasks: also that of reading, checksums and writing there. All else
is overhead: imports and start of the workers, what client and scheduler do between tasks, workers
that wait for the last task of a stage, receipts, and what tasks wait for (disk, pages, the other
programs of the machine). The parts of `split` add up to the whole exactly.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

Json = dict[str, Any]
PARTS = (
    "start-up",
    "between stages",
    "hand-out in stages",
    "tails of stages",
    "waiting inside tasks",
    "end",
)
"""See `split`."""


@dataclass(frozen=True)
class Task:
    """A task, by the event that tells of it.

    Attributes
    ----------
    stage : str
    end : float
        When the client heard of it, in seconds since the epoch.
    seconds, cpu_seconds : float
        Inside the task.
    worker : object
        Host and process.
    """

    stage: str
    end: float
    seconds: float
    cpu_seconds: float
    worker: object


def tasks_of(events: Iterable[Json]) -> list[Task]:
    """The tasks of an event log, as they came."""
    return [
        Task(
            event["stage"],
            event["time"],
            event["receipt"]["cost"]["seconds"],
            event["receipt"]["cost"]["cpu_seconds"],
            (event["receipt"]["cost"]["host"], event["receipt"]["cost"]["pid"]),
        )
        for event in events
        if event["kind"] == "task"
    ]


def split(tasks: list[Task], n_workers: int, begin: float, end: float) -> dict[str, float]:
    """Core-seconds of a run in which no task computed, by what it was.

    Parameters
    ----------
    tasks : list of Task
        In order; those of a stage follow each other.
    n_workers : int
    begin, end : float
        When the run was started, and when its process had ended.

    Returns
    -------
    dict of str to float
        start-up: until the first task begins. between stages: from the last task of one to the
        first of the next. hand-out in stages: workers that have tasks to come and do none. tails of
        stages: workers that get no more tasks of the stage, or got none. waiting inside tasks: wall
        less CPU, negative where a task has several threads. end: after the last task.
    """
    found = dict.fromkeys(PARTS, 0.0)
    before = begin
    for number, (_, stage) in enumerate(groupby(tasks, key=lambda task: task.stage)):
        own = list(stage)
        first = max(before, min(task.end - task.seconds for task in own))
        last = max(task.end for task in own)
        inside = sum(task.seconds for task in own)
        left = [
            last - max(task.end for task in own if task.worker == worker)
            for worker in {task.worker for task in own}
        ]
        tail = sum(left) + (n_workers - len(left)) * (last - first)
        found["between stages" if number else "start-up"] += n_workers * (first - before)
        found["tails of stages"] += tail
        found["hand-out in stages"] += n_workers * (last - first) - inside - tail
        found["waiting inside tasks"] += inside - sum(task.cpu_seconds for task in own)
        before = last
    found["end" if tasks else "start-up"] += n_workers * (end - before)
    return found
