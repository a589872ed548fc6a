"""An output folder: its owner, its stages, and the executor that finishes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dlpr.engine.events import Event, EventLog, Listener, log_event, tell_all
from dlpr.engine.executors import Executor
from dlpr.engine.promise import task_nbytes
from dlpr.errors import CorruptPartError, OwnerError, StoreError
from dlpr.store.files import Json, explained, keep_json, read_json
from dlpr.store.folder import StageFolder
from dlpr.store.lease import Lease

LIVE = "live.json"


class Workspace:
    """Where a job's stages live and who does their tasks.

    Parameters
    ----------
    output : Path
    executor : Executor
    listeners : Listener
        Told of everything that happens; a log of it is kept beside the results.
    """

    def __init__(self, output: Path, executor: Executor, *listeners: Listener) -> None:
        self.output = output.absolute()
        self.work = self.output / "work"
        self.executor = executor
        with explained(self.work):
            self.work.mkdir(parents=True, exist_ok=True)
        self.tell = tell_all([*listeners, log_event, EventLog(self.output / "events.jsonl")])
        self._lease: Lease | None = None
        self.used: dict[str, StageFolder] = {}
        self._before: dict[str, str] = (read_json(self.output / LIVE) or {}).get("stages", {})

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Be the one owner of the folder for the length of a block."""
        lease = Lease(self.output / "owner.json")
        lease.acquire()
        with lease.held():
            self._lease = lease
            yield

    def finish(self, role: str, folder: StageFolder) -> StageFolder:
        """Do what a stage lacks.

        Parameters
        ----------
        role : str
            What the stage is in the job, e.g. "features of train".
        folder : StageFolder

        Raises
        ------
        StoreError
            If a task was done and its data are not there.
        """
        if self._lease is not None and self._lease.lost:
            raise OwnerError(
                f"{self.output} was taken over by another run while this one was suspended. "
                f"`dlpr status {self.output}` says by whom."
            )
        missing = folder.missing()
        reason = self._reason(role, folder, missing)
        self._use(role, folder)
        if folder.adopt(missing):
            missing = folder.missing()
            reason += f"; {len(missing)} of {folder.n_tasks} tasks are new"
        done = folder.n_tasks - len(missing)
        self.tell(Event("stage", role, done, folder.n_tasks, reason))
        if missing:
            nbytes, lacking = task_nbytes(folder), set(missing)

            def note(text: str) -> None:
                self.tell(Event("note", role, text=text))

            for wave in folder.waves():
                ready = [task for task in wave if task in lacking]
                for receipt in self.executor.run(folder, ready, nbytes, note) if ready else ():
                    done += 1
                    self.tell(Event("task", role, done, folder.n_tasks, receipt=receipt))
        left = folder.missing() if missing else []
        if left:
            raise StoreError(
                f"{folder.path}: task {left[0]} was done, but its data cannot be seen from here. "
                f"Do all workers write to the same file system? Run the same command again."
            )
        self.tell(Event("done", role, done, folder.n_tasks))
        return folder.settle()

    def _use(self, role: str, folder: StageFolder) -> None:
        """Say in the folder which stages are worked with: `dlpr clean` spares them."""
        self.used[role] = folder
        names = {role: used.name for role, used in self.used.items()}
        keep_json(self.output / LIVE, {"stages": {**self._before, **names}})

    def settle(self) -> None:
        """Forget the stages of earlier runs: the result of this one is published."""
        self._before = {role: used.name for role, used in self.used.items()}
        keep_json(self.output / LIVE, {"stages": self._before})

    def _reason(self, role: str, folder: StageFolder, missing: list[int]) -> str:
        """Why there is something to do."""
        if not missing:
            return "reused"
        if len(missing) < folder.n_tasks:
            return "continued"
        before = StageFolder(self.work / self._before.get(role, folder.name))
        if before.name == folder.name or not (before.path / "plan.json").exists():
            return "new"
        changes = differences(folder.settings, before.settings)
        inputs, old = folder.plan["inputs"], before.plan["inputs"]
        changes += [name for name in sorted(inputs) if inputs[name] != old.get(name)]
        return "changed: " + "; ".join(changes[:4] or ["files that it reads"])

    def mend(self, error: CorruptPartError) -> None:
        """Make a task whose data are damaged undone, so that it is done again."""
        StageFolder(Path(error.folder)).withdraw(error.task)
        self.tell(Event("note", Path(error.folder).name, text=str(error)))


def differences(settings: Json, other: Json, prefix: str = "") -> list[str]:
    """Dotted names of what differs between two plans' settings; values, but of long ones."""
    lines: list[str] = []
    for key in sorted(set(settings) | set(other)):
        old, new = other.get(key), settings.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differences(new, old, f"{prefix}{key}.")
        elif old != new:
            was, now = (json.dumps(value) for value in (old, new))
            is_short = not isinstance(new, list) and max(len(was), len(now)) <= 60
            lines.append(f"{prefix}{key}" + f": {was} -> {now}" * is_short)
    return lines
