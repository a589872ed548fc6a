"""One owner at a time, by a file that its owner keeps alive.

The file is created exclusively and names host, process, boot and SLURM job; its owner advances a
counter in it. On the owner's host a taker asks the kernel whether the process lives. Elsewhere it
watches the counter by its own clock: no clocks are compared, and no flock is needed.

The owner writes to the file that it created and never to the file's name, so it cannot take the
name back from whoever took it over. Takers of one dead owner agree by a lease on the taking over.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from dlpr.errors import OwnerError, StoreError
from dlpr.store.files import Json, explained, look_again, make_folder, partial_path, read_json

BEAT = 2.0
"""Seconds between two advances of the counter."""
PATIENCE = 20.0
"""Seconds without an advance after which an owner that cannot be asked is taken for dead."""
_POLL = 0.2


def _place() -> Json:
    """Where a process's number means something: host, boot, and namespace of processes."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    return {
        "host": socket.gethostname(),
        "boot": boot.read_text().strip() if boot.exists() else str(psutil.boot_time()),
        "pids": str(namespace.readlink()) if namespace.is_symlink() else None,
    }


def _birth(pid: int) -> str | None:
    """When a process here began, on a clock that nobody sets; None if it is dead or a zombie."""
    try:
        if Path("/proc/self/stat").exists():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return None if fields[0] in "ZX" else fields[19]
        process = psutil.Process(pid)
        dead = process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        return None if dead else f"{process.create_time():.2f}"
    except (OSError, psutil.Error):
        return None


class Lease:
    """Ownership of what a file stands for.

    Parameters
    ----------
    path : Path
    patience : float
        Seconds for which the counter of an owner on another host may stand still.

    Attributes
    ----------
    lost : bool
        Whether somebody took the lease over: only from an owner that was silent for long.

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
        self._file = -1
        self._seen: tuple[object, object] | None = None
        self._since = 0.0
        self._guard: Lease | None = None

    def try_acquire(self) -> bool:
        """Take the lease if it is free or its owner is known to be dead; never waits.

        An owner that cannot be asked counts as dead when calls over `patience` seconds have seen
        its counter stand still.
        """
        with explained(self.path):
            if not self._take():
                return False
        self._stop.clear()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return True

    def acquire(self) -> None:
        """Take the lease, watching the counter of an owner on another host.

        Raises
        ------
        OwnerError
            If its owner is alive.
        """
        first: Json | None = None
        while not self.try_acquire():
            owner = self.owner()
            if owner is None:
                continue
            first = first or owner
            moved = any(owner.get(key) != first.get(key) for key in ("token", "counter"))
            if moved or self.is_alive(owner):
                raise OwnerError(self._refusal(owner))
            time.sleep(_POLL)

    def owner(self) -> Json | None:
        """What the file says of its owner; None if there is no owner."""
        look_again(self.path.parent)
        owner = read_json(self.path)
        return {} if owner is None and self.path.exists() else owner

    def is_alive(self, owner: Json) -> bool | None:
        """Whether an owner lives; None where only its counter can tell."""
        here = _place()
        if owner.get("host") != here["host"]:
            return None
        if owner.get("boot") != here["boot"]:
            return False
        if owner.get("pids") != here["pids"]:
            return None
        pid = owner.get("pid")
        birth = _birth(pid) if isinstance(pid, int) else None
        return birth is not None and birth == owner.get("started")

    def release(self) -> None:
        """Give the lease back."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self._drop()

    @contextmanager
    def held(self) -> Iterator[Lease]:
        """Give a lease that was acquired back at the end of a block."""
        try:
            yield self
        finally:
            self.release()

    def _take(self) -> bool:
        owner = self.owner()
        if owner is None:
            make_folder(self.path.parent)
            return self._publish(os.link)
        seen = owner.get("token"), owner.get("counter")
        if seen != self._seen:
            self._seen, self._since = seen, time.monotonic()
        alive = self.is_alive(owner)
        if alive is None:
            alive = time.monotonic() - self._since < self.patience
        return not alive and self._take_over(owner)

    def _take_over(self, dead: Json) -> bool:
        """Put one's own file in the place of a dead owner's, if no other taker is doing so."""
        path = self.path.with_name(f".{self.path.name}.{dead.get('token')}.partial")
        if self._guard is None or self._guard.path != path:
            self._guard = Lease(path, self.patience)
        if not self._guard._take():
            return False
        try:
            now = self.owner()
            if now is None or now.get("token") != dead.get("token"):
                return False
            return self._publish(os.replace)
        finally:
            self._guard._drop()

    def _publish(self, put: Callable[[Path, Path], None]) -> bool:
        """Give a finished file the lease's name: never seen half written. Keep it open."""
        partial = partial_path(self.path)
        file = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            self._write(file, 0)
            with suppress(FileExistsError):  # NFS may say so of a link that was made
                put(partial, self.path)
            if self._is_mine():
                self._file, file = file, -1
                return True
            return False
        finally:
            if file >= 0:
                os.close(file)
            partial.unlink(missing_ok=True)

    def _drop(self) -> None:
        os.close(self._file)
        self._file = -1
        if self._is_mine():
            self.path.unlink(missing_ok=True)

    def _write(self, file: int, counter: int) -> None:
        content = {
            **_place(),
            "pid": os.getpid(),
            "started": _birth(os.getpid()),
            "slurm_job": os.environ.get("SLURM_JOB_ID"),
            "token": self._token,
            "counter": f"{counter:012d}",  # one length: a reader may meet a write half done
        }
        os.pwrite(file, json.dumps(content).encode(), 0)
        os.close(os.dup(file))  # at every close NFS sends what was written

    def _is_mine(self) -> bool:
        return (self.owner() or {}).get("token") == self._token

    def _beat(self) -> None:
        counter = 0
        while not self._stop.wait(BEAT):
            counter += 1
            with suppress(OSError, StoreError):
                if not self._is_mine():
                    self.lost = True
                    return
                self._write(self._file, counter)

    def _refusal(self, owner: Json) -> str:
        job = f", SLURM job {owner['slurm_job']}" if owner.get("slurm_job") else ""
        return (
            f"{self.path.parent} belongs to a run that is alive: process {owner.get('pid')} on "
            f"{owner.get('host')}{job}. Wait for it, stop it, or choose another folder with "
            f"--output. (`dlpr work {self.path.parent}` helps a run that is going on.)"
        )
