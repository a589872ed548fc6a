"""The parts of a run's overhead."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlpr.bench.overhead import PARTS, Task, split, tasks_of


def task(stage: str, end: float, seconds: float, cpu: float, worker: int = 0) -> Task:
    return Task(stage, end, seconds, cpu, worker)


def test_every_idle_second_has_its_name() -> None:
    tasks = [
        task("rows", 12.0, 2.0, 1.5, worker=1),  # 10 to 12
        task("rows", 13.0, 2.5, 2.5, worker=2),  # 10.5 to 13
        task("rows", 16.0, 3.5, 3.0, worker=1),  # 12.5 to 16: worker 2 waits from 13 on
        task("factor", 20.0, 3.0, 6.0, worker=2),  # 17 to 20, two threads; worker 1 has none
    ]
    found = split(tasks, 2, 4.0, 21.0)
    assert found == {
        "start-up": 2 * 6.0,
        "between stages": 2 * 1.0,
        "hand-out in stages": 0.5 + 0.5,
        "tails of stages": 3.0 + 3.0,
        "waiting inside tasks": 0.5 + 0.5 - 3.0,
        "end": 2 * 1.0,
    }


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[Task], int, float, float]:
    """Stages one after the other on some workers, each doing one task at a time."""
    n_workers, now, tasks = draw(st.integers(1, 4)), draw(st.floats(0.0, 5.0)), []
    pauses, lengths = st.floats(0.0, 2.0), st.floats(0.01, 3.0)
    for stage in range(draw(st.integers(0, 4))):
        free = dict.fromkeys(range(n_workers), now + draw(pauses))
        here = []
        for _ in range(draw(st.integers(1, 8))):
            worker = draw(st.integers(0, n_workers - 1))
            seconds = draw(lengths)
            free[worker] += draw(pauses) + seconds
            cpu = seconds * draw(st.floats(0.0, 1.0))
            here.append(task(str(stage), free[worker], seconds, cpu, worker))
        tasks += sorted(here, key=lambda one: one.end)
        now = max(one.end for one in here)
    return tasks, n_workers, 0.0, now + draw(pauses)


@given(runs())
def test_parts_add_up_and_none_is_negative(run: tuple[list[Task], int, float, float]) -> None:
    tasks, n_workers, begin, end = run
    found = split(tasks, n_workers, begin, end)
    assert tuple(found) == PARTS
    whole = n_workers * (end - begin) - sum(one.cpu_seconds for one in tasks)
    assert sum(found.values()) == pytest.approx(whole, abs=1e-9)
    assert min(found.values()) > -1e-9


def test_tasks_are_read_off_the_events() -> None:
    cost = {"seconds": 2.0, "cpu_seconds": 1.0, "host": "a", "pid": 7}
    event = {"kind": "task", "stage": "rows", "time": 5.0, "receipt": {"cost": cost}}
    other = {"kind": "stage", "stage": "rows", "time": 1.0, "receipt": None}
    assert tasks_of([other, event]) == [Task("rows", 5.0, 2.0, 1.0, ("a", 7))]
