"""What stages took, heard from the events of a pipeline and read off their receipts."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection

from dlpr.engine.events import Event
from dlpr.engine.memory import BASE_NBYTES
from dlpr.engine.pipeline import Pipeline
from dlpr.engine.promise import task_nbytes


class Spent:
    """A listener that adds up what every stage takes, tasks that are reused left out.

    Attributes
    ----------
    cpu, wall : dict of str to float
        By role of the stage: CPU seconds inside its tasks, and seconds from its begin to its end.
    """

    def __init__(self) -> None:
        self.cpu: defaultdict[str, float] = defaultdict(float)
        self.wall: defaultdict[str, float] = defaultdict(float)
        self._begun = 0.0

    def __call__(self, event: Event) -> None:
        if event.kind == "stage":
            self._begun = time.perf_counter()
        elif event.kind == "task" and event.receipt is not None:
            self.cpu[event.stage] += event.receipt.cost["cpu_seconds"]
        elif event.kind == "done":
            self.wall[event.stage] += time.perf_counter() - self._begun

    def of(self, stages: Collection[str]) -> tuple[float, float]:
        """CPU and wall seconds of some stages together."""
        return sum(self.cpu[one] for one in stages), sum(self.wall[one] for one in stages)


def peak_nbytes(steps: Pipeline) -> int:
    """Largest resident memory of any worker, by the receipts of all stages that were used."""
    used = steps.workspace.used.values()
    return max(int(r.cost["peak_nbytes"]) for folder in used for r in folder.receipts())


def promised_nbytes(steps: Pipeline) -> int:
    """What all stages that were used promise of a worker that does one task at a time."""
    return BASE_NBYTES + max(task_nbytes(folder) for folder in steps.workspace.used.values())
