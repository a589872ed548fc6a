"""What happens during a run, told to whoever listens: a progress bar, a log, a test."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from dlpr.store.files import explained
from dlpr.store.folder import Receipt


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Attributes
    ----------
    kind : str
        "stage" (begun), "task" (a receipt was written), "done" (stage finished), "note".
    stage : str
        Role of the stage in the job, e.g. "features of train".
    n_done, n_tasks : int
    text : str
        What a note says.
    receipt : Receipt or None
    """

    kind: str
    stage: str = ""
    n_done: int = 0
    n_tasks: int = 0
    text: str = ""
    receipt: Receipt | None = None


logger = logging.getLogger(__name__)
Listener = Callable[[Event], None]


def tell_all(listeners: Iterable[Listener]) -> Listener:
    """One listener that passes everything on to several."""
    several = tuple(listeners)

    def tell(event: Event) -> None:
        for listener in several:
            listener(event)

    return tell


def log_event(event: Event) -> None:
    """Pass an event on to `logging`, where `dlpr --verbose` shows it."""
    done = f"{event.n_done}/{event.n_tasks}"
    logger.info("%s %s %s %s", event.kind, event.stage, done, event.text)


class EventLog:
    """Appends every event to a file, one JSON object a line.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, event: Event) -> None:
        record = {"time": time.time(), **asdict(event)}
        line = json.dumps(record).encode() + b"\n"
        with explained(self.path), self.path.open("ab", buffering=0) as file:
            file.write(line)  # in one call, so that lines of several writers stay whole


def family(stage: str) -> str:
    """What the stages of all fits of a loss are called together."""
    return re.sub(r"\bfit \d+$", "fits", stage)
