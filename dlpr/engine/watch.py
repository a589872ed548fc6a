"""In a worker: tasks under watch, so that one that outgrows its memory is named before it dies."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from dlpr.stages.tasks import run_task
from dlpr.store.files import Json, read_json, write_json
from dlpr.store.folder import Receipt

PERIOD = 0.05
"""Seconds between two looks at the memory."""
SHARE = 0.97
"""Of the worker's limit, below the share at which Dask's nanny ends it without a word."""

_tasks: dict[int, tuple[str, int]] = {}
_lock = threading.Lock()
_watcher: list[threading.Thread] = []


def watched_task(path: str, task: int) -> Receipt:
    """`run_task` on a Dask worker; see `death`."""
    from distributed import get_worker

    limit: Any = get_worker().memory_manager.memory_limit
    with _lock:
        _tasks[threading.get_ident()] = (path, task)
        if limit and not _watcher:
            _watcher.append(threading.Thread(target=_watch, args=(int(limit),), daemon=True))
            _watcher[0].start()
    try:
        return run_task(path, task)
    finally:
        with _lock:
            del _tasks[threading.get_ident()]


def _watch(limit: int) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    statm = Path("/proc/self/statm")
    while statm.exists():
        resident = int(statm.read_text().split()[1]) * page
        if resident > SHARE * limit:
            with _lock:
                running = list(_tasks.values())
            for path, task in running:
                record = {"resident_nbytes": resident, "limit_nbytes": limit}
                with suppress(OSError):
                    write_json(_death(path, task), {**record, "host": socket.gethostname()})
            if running:
                os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(PERIOD)


def _death(path: str, task: int) -> Path:
    return Path(path) / "deaths" / f"{task:06d}.json"


def death(path: str, task: int) -> Json | None:
    """What a worker said before it died of a task's memory; said once."""
    place = _death(path, task)
    found = read_json(place)
    place.unlink(missing_ok=True)
    return found
