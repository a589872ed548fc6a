"""One owner at a time, by a file that its owner keeps alive.

The file is created exclusively and names host, process, boot and SLURM job; its owner advances a
counter in it. On the owner's host a taker asks the kernel whether the process lives. Elsewhere it
watches the counter by its own clock: no clocks are compared, and no flock is needed.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from dlpr.errors import OwnerError
from dlpr.store.files import Json, explained, fsync_directory, partial_path, read_json

BEAT = 2.0
"""Seconds between two advances of the counter."""
PATIENCE = 20.0
"""Seconds without an advance after which an owner on another host is taken for dead."""


def _boot_id() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else str(psutil.boot_time())


class Lease:
    """Ownership of what a file stands for.

    Parameters
    ----------
    path : Path
    patience : float
        Seconds for which the counter of an owner on another host may stand still.

    Examples
    --------
    >>> lease = Lease(folder / "owner.json")
    >>> lease.acquire()
    >>> with lease.held():
    ...     work()
    """

    def __init__(self, path: Path, patience: float = PATIENCE) -> None:
        self.path = path
        self.patience = patience
        self.lost = False
        self._token = secrets.token_hex(8)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def _content(self, counter: int) -> bytes:
        me = psutil.Process()
        return json.dumps(
            {
                "host": socket.gethostname(),
                "pid": me.pid,
                "started": me.create_time(),
                "boot": _boot_id(),
                "slurm_job": os.environ.get("SLURM_JOB_ID"),
                "token": self._token,
                "counter": counter,
            }
        ).encode()

    def try_acquire(self) -> bool:
        """Take the lease if it is free or its owner is known to be dead; never waits."""
        with explained(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for _ in range(5):
                if self._create():
                    self._thread = threading.Thread(target=self._beat, daemon=True)
                    self._thread.start()
                    return True
                owner = read_json(self.path)
                if owner is not None and self.is_alive(owner) is not False:
                    return False
                self._remove(owner)
        return False

    def acquire(self, wait: bool = True) -> None:
        """Take the lease, watching a silent owner's counter for `patience` seconds.

        Raises
        ------
        OwnerError
            If its owner is alive.
        """
        if self.try_acquire():
            return
        owner = read_json(self.path)
        deadline = time.monotonic() + (self.patience if wait else 0.0)
        while owner is not None and self.is_alive(owner) is None:
            if time.monotonic() > deadline:
                self._remove(owner)
                break
            time.sleep(0.2)
            now = read_json(self.path)
            if now is not None and now.get("counter") != owner.get("counter"):
                owner = now
                break
            owner = now
        if not self.try_acquire():
            raise OwnerError(self._refusal(read_json(self.path) or owner or {}))

    def is_alive(self, owner: Json) -> bool | None:
        """Whether an owner lives; None where only its counter can tell."""
        if owner.get("host") != socket.gethostname():
            return None
        if owner.get("boot") != _boot_id():
            return False
        try:
            process = psutil.Process(int(owner["pid"]))
            return abs(process.create_time() - float(owner["started"])) < 1.0
        except (psutil.NoSuchProcess, KeyError, TypeError, ValueError):
            return False

    def release(self) -> None:
        """Give the lease back."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            if self._is_mine():
                self.path.unlink(missing_ok=True)

    @contextmanager
    def held(self) -> Iterator[Lease]:
        """Give a lease that was acquired back at the end of a block."""
        try:
            yield self
        finally:
            self.release()

    def _create(self) -> bool:
        """Link a finished file to the lease's name: exclusive, and never seen half written."""
        partial = partial_path(self.path)
        partial.write_bytes(self._content(0))
        try:
            os.link(partial, self.path)
        except FileExistsError:
            return False
        finally:
            partial.unlink(missing_ok=True)
        fsync_directory(self.path.parent)
        return True

    def _remove(self, owner: Json | None) -> None:
        """Put a dead owner's file aside; put it back if it was somebody else's by then."""
        aside = partial_path(self.path)
        try:
            self.path.rename(aside)
        except FileNotFoundError:
            return
        taken = read_json(aside)
        if owner is not None and taken is not None and taken.get("token") != owner.get("token"):
            try:
                os.link(aside, self.path)
            except FileExistsError:
                pass
        aside.unlink(missing_ok=True)

    def _is_mine(self) -> bool:
        return (read_json(self.path) or {}).get("token") == self._token

    def _beat(self) -> None:
        counter = 0
        while not self._stop.wait(BEAT):
            counter += 1
            if not self._is_mine():
                self.lost = True
                return
            partial = partial_path(self.path)
            try:
                partial.write_bytes(self._content(counter))
                partial.replace(self.path)
            except OSError:
                partial.unlink(missing_ok=True)

    def _refusal(self, owner: Json) -> str:
        job = f", SLURM job {owner['slurm_job']}" if owner.get("slurm_job") else ""
        return (
            f"{self.path.parent} belongs to a run that is alive: process {owner.get('pid')} on "
            f"{owner.get('host')}{job}. Wait for it, stop it, or choose another folder with "
            f"--output. (`dlpr work {self.path.parent}` helps a run that is going on.)"
        )
