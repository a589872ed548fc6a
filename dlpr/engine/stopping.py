"""A soft stop: finish the tasks in hand, begin no other, and say that there is more to do."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from dlpr.errors import StoppedError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_asked = threading.Event()


@contextmanager
def soft_stops() -> Iterator[None]:
    """For the length of a block, SIGTERM and SIGUSR1 ask for a soft stop; asked twice, a hard one.

    In the main thread only.
    """

    def ask(number: int, frame: FrameType | None) -> None:
        if _asked.is_set():
            raise KeyboardInterrupt
        _asked.set()

    before = {one: signal.signal(one, ask) for one in SIGNALS}
    try:
        yield
    finally:
        _asked.clear()
        for one, handler in before.items():
            signal.signal(one, handler)


def is_asked() -> bool:
    """Whether a stop is asked for."""
    return _asked.is_set()


def leave() -> None:
    """Leave the run, if that is asked for.

    Raises
    ------
    StoppedError
    """
    if is_asked():
        raise StoppedError(
            "stopped as asked; finished tasks are kept: run the same command again to continue."
        )
