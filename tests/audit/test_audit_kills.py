"""Audits that are killed at random moments: the history never shows half of one."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
from audit_cases import Nights, alarms, crystals, shorten

from dlpr.audit.history import History

LAST_WRITES = (1, 2, 3, 5, 8)
"""Of an audit, from the end: where nothing is computed, these are its publishing."""


def night(path: Path, deadline: int, counted: Any) -> None:
    """One night in a process of its own, which ends at its ``deadline``-th write."""

    def durable(_: int) -> None:
        counted.value += 1
        if counted.value == deadline:
            os.kill(os.getpid(), signal.SIGKILL)

    shorten(pytest.MonkeyPatch(), durable)
    Nights(path).run()


def test_the_history_has_whole_audits_alone(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dlpr.audit.night", "dlpr.audit.page", "ase.build", "pytest"])
    nights = Nights(tmp_path)
    history = History(nights.spec().folder)

    def begin(deadline: int = -1) -> tuple[int, int]:
        counted = context.Value("q", 0)
        process = context.Process(target=night, args=(tmp_path, deadline, counted))
        process.start()
        process.join(60)
        return process.exitcode or 0, counted.value

    assert begin()[0] == 0
    (first,) = history.audits()
    rng = random.Random(6)
    for number in (1, 2):
        nights.put(f"md_{number:03d}.xyz", crystals(10, 3 + number, 0.15))
        assert begin(rng.randrange(1, 60))[0] == -signal.SIGKILL
        check_whole(history, 1)
    assert begin()[0] == 0
    code, total = begin()
    assert code == 0
    check_whole(history, 3)
    for left in LAST_WRITES:
        assert begin(total - left)[0] == -signal.SIGKILL
        check_whole(history, 3)
    assert begin()[0] == 0
    check_whole(history, 4)
    last = history.audits()[-1].record
    assert not alarms(last)
    assert last.sets[1].n_files == 3
    assert history.audits()[0] == first
    assert not list(history.path.glob(".*.partial"))


def check_whole(history: History, n: int) -> None:
    """There are so many audits, and each is whole."""
    assert len(history.audits()) == n
    for audit in history.audits():
        audit.verify()
