"""A stage whose tasks sleep, fail or wait as told; Dask workers preload this module."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dlpr.stages import tasks
from dlpr.store.folder import StageFolder

tasks.STAGES["fake"] = __name__


def make(work: Path, n_tasks: int, **settings: Any) -> StageFolder:
    """A stage of ``n_tasks``; ``seconds`` each, ``raises`` an error by task, one is ``greedy``."""
    return StageFolder.create(work, "fake", settings, {}, n_tasks)


def run(folder: StageFolder, task: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Note when the task ran and where, and write its number."""
    settings = folder.settings
    note(folder, f"begin {task} {os.getpid()} {time.time()}")
    match settings.get("raises", {}).get(str(task)):
        case "corrupt":
            raise folder.corrupt(task, "parts/x.npz", "a test says so")
        case "oserror":
            raise FileNotFoundError(2, "no such file", "input.xyz")
    if settings.get("greedy") == task:
        hoard = [bytearray(b"x" * (2 << 20)) for _ in _slowly(1000)]
        assert hoard
    time.sleep(settings.get("seconds", 0.0))
    files = folder.write_part(task, {"number": np.array([task])})
    note(folder, f"end {task} {os.getpid()} {time.time()}")
    return files, {"task": task}


def _slowly(n_times: int) -> Iterator[None]:
    for _ in range(n_times):
        time.sleep(0.01)
        yield


def note(folder: StageFolder, line: str) -> None:
    """Append a line in one call."""
    with (folder.path / "notes").open("ab", buffering=0) as file:
        file.write(f"{line}\n".encode())


def notes(folder: StageFolder, kind: str) -> list[tuple[int, int, float]]:
    """All ``(task, pid, time)`` of one kind so far."""
    path = folder.path / "notes"
    lines = path.read_text().splitlines() if path.exists() else []
    found = [line.split() for line in lines if line.startswith(kind)]
    return [(int(task), int(pid), float(at)) for _, task, pid, at in found]
